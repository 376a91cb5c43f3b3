"""What a recipe says, and what it is told when it says nonsense."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from twofold.contracts import ConfigError
from twofold.restorers.guided import Guided
from twofold.settings import to_yaml
from twofold.train import reading
from twofold.train.learner import Machine, Optimizer, Schedule
from twofold.train.run import build_restorer, build_scheme, keep_recipe

PAIRS = "data.train=[{kind: pairs, pairs: [{}], %s}]"
NOISE = "data.train=[{kind: synthetic, clean: [{path: .}], degradation: {kind: noise, %s}}]"


@pytest.mark.parametrize("name", reading.names("train"))
def test_a_shipped_recipe_is_sound_and_builds_its_model_and_scheme(name: str) -> None:
    recipe = reading.read_recipe(name)
    assert recipe.name == name
    restorer = build_restorer(recipe)
    scheme = build_scheme(recipe, restorer, Machine())
    assert scheme.restorer is restorer
    assert reading.parse(yaml.safe_load(to_yaml(recipe))) == recipe


def test_a_change_reaches_into_lists_by_number() -> None:
    shipped, changed = (
        reading.read_recipe("underwater-hnu"),
        reading.read_recipe("underwater-hnu", ["data.train.1.weight=0.25"]),
    )
    assert [source.weight for source in changed.data.train] == [shipped.data.train[0].weight, 0.25]


@pytest.mark.parametrize("name", ["paper-a-rain100l", "paper-a-rain100h"])
def test_the_papers_recipes_train_the_published_network_with_its_schedule(name: str) -> None:
    recipe = reading.read_recipe(name)
    restorer = build_restorer(recipe)
    assert isinstance(restorer, Guided)
    assert sum(p.numel() for p in restorer.net.parameters()) == 169_251
    factor = recipe.schedule.build(recipe.steps)
    epochs = [factor(epoch * recipe.validate_every) for epoch in (0, 29, 30, 49, 50, 79, 80, 99)]
    assert epochs == pytest.approx([1, 1, 0.2, 0.2, 0.04, 0.04, 0.008, 0.008])
    assert recipe.steps == 100 * recipe.validate_every


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("optimzer.clip=1", "unknown key optimzer; did you mean 'optimizer'"),
        ("optimizer.learning_rat=1", "unknown key optimizer.learning_rat; did you mean 'learning_rate'"),
        ("scheme.net_update=2", "unknown key scheme.net_update; did you mean 'net_updates'"),
        ("model.net.width=2", "unknown key model.net.width; did you mean 'widths'"),
        ("data.validation.light.rot=x", "unknown key data.validation.light.rot; did you mean 'root'"),
        (PAIRS % "wieght: 2", "unknown key data.train.0.wieght; did you mean 'weight'"),
        (NOISE % "levl: [0, 1]", "unknown key data.train.0.degradation.levl; did you mean 'level'"),
        ("scheme.kind=gided", "scheme.kind: unknown 'gided'; did you mean 'guided'"),
        ("model.net={widths: [8]}", "model.net.kind is missing; known: unet, prenet"),
        ("loss={l3: 1}", "loss: unknown loss 'l3'; did you mean 'l2'"),
        ("precision=bf61", "precision: unknown 'bf61'; did you mean 'bf16'"),
        ("steps=many", "steps: input should be a valid integer, got 'many'"),
        ("data.crop=true", "data.crop: input should be a valid integer, got True"),
        ("model=prenet", "model: expected a group of settings, got 'prenet'"),
        ("scheme.guide_updates=-1", "scheme.guide_updates: input should be greater than or equal to 1, got -1"),
        ("steps=0", "steps: input should be greater than or equal to 1"),
        ("validate_every=0", "validate_every: input should be greater than or equal to 1"),
        ("average=1.0", "average: input should be less than 1"),
        ("optimizer.learning_rate=-0.1", "optimizer.learning_rate: input should be greater than 0"),
        ("loss={}", "loss: no loss has a weight above 0"),
        (NOISE % "level: [5, 10]", "data.train.0.degradation: level is on the [0, 1] scale, got (5.0, 10.0)"),
        ("data.train=[]", "data.train: list should have at least 1 item"),
        ("data.train.7.weight=2", "has no item '7'; items count from 0"),
        ("data.train.first.weight=2", "has no item 'first'"),
        ("steps.most=3", "'steps' is not a group of settings"),
        ("steps", "key.path=value"),
        ("data=[}", "not YAML"),
    ],
)
def test_a_mistake_is_named_with_its_path_and_what_was_meant(change: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        reading.read_recipe("derain", [change])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_key_is_named_unless_a_misspelt_one_explains_it() -> None:
    tree = yaml.safe_load(to_yaml(reading.read_recipe("derain")))
    del tree["steps"]
    with pytest.raises(ConfigError, match="steps is missing"):
        reading.parse(tree)
    with pytest.raises(ConfigError, match="unknown key stesp; did you mean 'steps'"):
        reading.parse({**tree, "stesp": 3})


def test_changes_reach_nested_settings_and_numbers_may_be_written_without_a_point() -> None:
    recipe = reading.read_recipe(
        "derain", ["optimizer.learning_rate=1e-4", "data.batch=4", "data.validation.light.every=7"]
    )
    assert recipe.optimizer.learning_rate == 1e-4
    assert recipe.data.batch == 4
    assert recipe.data.validation["light"].every == 7


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [", "\xff"])
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"recipe\.yaml"):
        reading.read_recipe(path)


def test_an_unknown_recipe_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'derain'"):
        reading.read_recipe("derian")
    with pytest.raises(ConfigError, match="cannot read the recipe"):
        reading.read_recipe("nowhere.yaml")


def test_settings_of_a_model_that_do_not_fit_together_are_an_error_of_the_recipe() -> None:
    with pytest.raises(ConfigError, match="expected as many widths as blocks, got 2 and 3"):
        build_restorer(reading.read_recipe("derain", ["model.net.widths=[8, 16]"]))


def test_a_scheme_with_a_guide_needs_a_model_with_one() -> None:
    recipe = reading.read_recipe("derain", ["model={kind: plain, net: {kind: unet, widths: [8], blocks: [1]}}"])
    with pytest.raises(ConfigError, match=r"scheme.kind: 'guided' trains a guide, but model.kind is 'plain'"):
        build_scheme(recipe, build_restorer(recipe), Machine())


def test_a_folder_belongs_to_one_recipe_but_may_go_on_longer(tmp_path: Path) -> None:
    keep_recipe(reading.read_recipe("derain"), tmp_path)
    keep_recipe(reading.read_recipe("derain", ["steps=14000"]), tmp_path)
    assert reading.read_recipe(tmp_path / "recipe.yaml").steps == 14000
    with pytest.raises(ConfigError, match="another recipe \\(seed, data differ from"):
        keep_recipe(reading.read_recipe("derain", ["seed=1", "data.batch=4"]), tmp_path)


def test_schedules_rise_fall_and_stay() -> None:
    cosine = Schedule(kind="cosine", warmup=4, floor=0.1).build(104)
    assert [cosine(n) for n in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert cosine(4) == 1
    assert cosine(54) == pytest.approx(0.55)
    assert cosine(104) == cosine(200) == pytest.approx(0.1)
    steps = Schedule(kind="multistep", milestones=[0.5, 0.8], factor=0.1).build(10)
    assert [steps(n) for n in (4, 5, 7, 8, 9)] == pytest.approx([1, 0.1, 0.1, 0.01, 0.01])
    constant = Schedule(kind="constant").build(10)
    assert {constant(n) for n in range(20)} == {1.0}


@pytest.mark.parametrize("kind", ["adam", "adamw", "sgd"])
def test_an_optimizer_descends(kind: str) -> None:
    x = torch.nn.Parameter(torch.ones(3))
    settings = Optimizer.model_validate({"kind": kind, "learning_rate": 0.05, "weight_decay": 0.01})
    optimizer = settings.build([x])
    for _ in range(30):
        optimizer.zero_grad()
        x.square().sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert x.abs().max() < 0.5
    assert {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[kind] is type(optimizer)
