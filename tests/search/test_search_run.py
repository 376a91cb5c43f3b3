"""Whole searches on tiny pictures: what they hand over, what plain training makes of it, and who may judge."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from twofold import zoo
from twofold.cli.app import run_command_line as command_line
from twofold.contracts import ConfigError, Sample, WeightsError
from twofold.losses import PLAIN, LossSpec
from twofold.nets.hadamard import HadamardNet
from twofold.nets.judge import Judge
from twofold.search import judge as judges
from twofold.search.recipe import JudgeRecipe, SearchRecipe, Stage
from twofold.search.run import search
from twofold.search.scheme import Collapsed
from twofold.search.seeds import searches
from twofold.settings import checked
from twofold.space.genotype import Genotype, uniform_genotype
from twofold.space.loss_space import LossSpace, searchable
from twofold.train import reading
from twofold.train.run import train

OPTIMIZER = {"learning_rate": 0.05}
TREE: dict[str, Any] = {
    "kind": "search",
    "name": "tiny",
    "task": "dark",
    "search": {"kind": "hierarchical", "loss": 3, "architecture": 3},
    "net": {"kind": "supernet", "width": 4, "units": 1, "ops_per_branch": 2},
    "data": {"crop": 8, "batch": 1, "train": [{"kind": "pairs", "pairs": [{"root": "pairs"}]}]},
    "loss": {"terms": list(PLAIN)},
    "judge": "judge-dark",
    "final": "lowlight",
    "loss_optimizer": OPTIMIZER,
    "architecture_optimizer": OPTIMIZER,
    "warmup": 1,
    "collapse": 1.0,
}
JUDGE: dict[str, Any] = {
    "kind": "judge",
    "name": "judge-dark",
    "task": "dark",
    "judge": {"kind": "small", "width": 4},
    "data": {**TREE["data"], "batch": 2},
    "optimizer": {"learning_rate": 0.01},
    "steps": 60,
    "held_out": 8,
    "counterfeits": 0.5,
}


def settings(**changes: Any) -> SearchRecipe:
    return checked(SearchRecipe, {**TREE, **changes})


@pytest.fixture
def root(picture: Callable[..., Path], tmp_path: Path) -> Path:
    """Four pairs: bright noise, and the same without its contrast."""
    from PIL import Image

    for n in range(4):
        clean = picture(f"data/pairs/high/{'x' * (n + 1)}.png", 12, 12)
        dark = tmp_path / "data" / "pairs" / "low" / clean.name
        dark.parent.mkdir(exist_ok=True)
        Image.open(clean).point(lambda v: v // 5).save(dark)
    return tmp_path / "data"


def a_judge(path: Path, **changes: Any) -> Path:
    torch.manual_seed(0)
    facts: dict[str, Any] = {
        "judge": {"kind": "small", "width": 4},
        "task": "dark",
        "recipe": "x",
        "seed": 0,
        "accuracy": 0.95,
        "caught": 0.8,
    }
    facts |= {"held_out": 8, "crop": 8, "train": TREE["data"]["train"], "terms": "", **changes}
    judges.save_judge(path, Judge(width=4), checked(judges.JudgeFacts, facts))
    return path


def test_a_search_hands_over_a_genotype_a_loss_pictures_and_facts(root: Path, tmp_path: Path) -> None:
    result = search(settings(), root, tmp_path / "out", judge=a_judge(tmp_path / "j.safetensors"), device="cpu")
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"genotype.json", "loss.yaml", "architecture.png", "weights.png", "traces.png", "traces.json"} <= left
    genotype = Genotype.from_json((tmp_path / "out" / "genotype.json").read_text())
    assert sum(p.numel() for p in genotype.network(width=4).parameters()) == result["parameters"]
    assert json.loads((tmp_path / "out" / "search.json").read_text()) == result
    traces = json.loads((tmp_path / "out" / "traces.json").read_text())
    assert traces["loss"]["weight/l1"][0] == 1.0  # the warm-up
    assert traces["loss"]["upper"][0] is None, "the judge speaks after the warm-up"
    assert traces["loss"]["upper"][-1] > 0
    assert traces["loss"]["weight/l1"][-1] != 1.0
    assert len(set(traces["architecture"]["weight/l1"])) == 1, "the second stage takes the found loss as it is"


def test_the_same_seed_finds_the_same_files_and_a_finished_search_is_not_done_again(root: Path, tmp_path: Path) -> None:
    judge = a_judge(tmp_path / "j.safetensors")
    first, second, again = (
        search(settings(), root, tmp_path / name, judge=judge, device="cpu") for name in ("one", "two", "two")
    )
    assert first["stages"]["loss"]["cpu_seconds"] > 0
    assert second == again, "with the time that it took when it was done"
    for file in ("genotype.json", "loss.yaml", "traces.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_seeds_are_searched_one_by_one_and_what_they_agree_on_is_left(root: Path, tmp_path: Path) -> None:
    judge = a_judge(tmp_path / "j.safetensors")
    found = searches(settings(seed=3), root, tmp_path / "out", seeds=2, judge=judge, device="cpu")
    assert found["seeds"] == [3, 4]
    assert json.loads((tmp_path / "out" / "stability.json").read_text()) == found
    assert (tmp_path / "out" / "stability.png").exists()
    losses = [LossSpec.from_yaml((tmp_path / "out" / f"seed{n}" / "loss.yaml").read_text()) for n in (3, 4)]
    mean = sum(loss.weights["l1"] for loss in losses) / 2
    low, high = found["weights"]["l1"]["interval"]
    assert found["weights"]["l1"]["mean"] == pytest.approx(mean)
    assert low <= mean <= high
    genotypes = [Genotype.from_json((tmp_path / "out" / f"seed{n}" / "genotype.json").read_text()) for n in (3, 4)]
    rows = [[name for names in genotype.groups.values() for name in names] for genotype in genotypes]
    assert found["agreement"] == sum(a == b for a, b in zip(*rows, strict=True)) / len(rows[0])
    alone = search(settings(seed=4), root, tmp_path / "alone", judge=judge, device="cpu")
    assert alone["parameters"] == found["parameters"][1], "a seed finds the same alone"
    with pytest.raises(ConfigError, match="takes at least 2, got 1"):
        searches(settings(), root, tmp_path / "out", seeds=1, judge=judge, device="cpu")


def test_what_was_found_is_trained_saved_and_loaded_again(root: Path, tmp_path: Path) -> None:
    search(settings(), root, tmp_path / "out", judge=a_judge(tmp_path / "j.safetensors"), device="cpu")
    tree = {
        "name": "found",
        "task": "dark",
        "model": {"kind": "plain", "net": {"kind": "hadamard", "genotype": "out/genotype.json", "width": 4}},
        "scheme": {"kind": "supervised"},
        "loss": {"file": "out/loss.yaml"},
        "data": TREE["data"],
        "steps": 2,
        "average": 0,
        "precision": "float32",
    }
    (tmp_path / "found.yaml").write_text(yaml.safe_dump(tree))
    recipe = reading.read_recipe(tmp_path / "found.yaml")
    train(recipe, root, tmp_path / "run", device="cpu")
    assert reading.read_recipe(tmp_path / "run" / "recipe.yaml") == recipe  # whole, without the files it named
    restorer = zoo.load_restorer(tmp_path / "run" / "model.safetensors")
    assert isinstance(restorer.net, HadamardNet)
    assert restorer(torch.rand(1, 3, 9, 10)).image.shape == (1, 3, 9, 10)


def test_synchronous_and_loss_only_searches_run_and_architecture_only_needs_no_judge(
    root: Path, tmp_path: Path
) -> None:
    judge = a_judge(tmp_path / "j.safetensors")
    both = search(
        settings(search={"kind": "synchronous", "steps": 2}), root, tmp_path / "both", judge=judge, device="cpu"
    )
    assert "genotype.json" in {path.name for path in (tmp_path / "both").iterdir()}
    assert both["judge"]["accuracy"] == 0.95
    assert both["judge"]["sha256"] == hashlib.sha256(judge.read_bytes()).hexdigest()
    unet = {"kind": "plain", "net": {"kind": "unet", "widths": [8, 8], "blocks": [1, 1]}}
    loss = search(
        settings(search={"kind": "loss", "steps": 2}, net=unet), root, tmp_path / "loss", judge=judge, device="cpu"
    )
    assert "parameters" not in loss
    alone = {"kind": "architecture", "steps": 2, "loss": {"weights": {"l1": 2.0}}}
    found = search(settings(search=alone), root, tmp_path / "alone", device="cpu")
    assert found["judge"] is None
    assert found["loss"]["l1"] == 2.0
    assert found["loss"].get("ssim", 0.0) == 0.0


def test_a_judge_below_ninety_percent_and_one_of_another_task_are_refused(root: Path, tmp_path: Path) -> None:
    weak = a_judge(tmp_path / "weak.safetensors", accuracy=0.89)
    with pytest.raises(ConfigError, match=r"calls 89\.0% of 8 held-out crops right, and a search takes at least 90%"):
        search(settings(), root, tmp_path / "out", judge=weak, device="cpu")
    other = a_judge(tmp_path / "other.safetensors", task="haze")
    with pytest.raises(ConfigError, match="judges haze, and this search is for dark"):
        search(settings(), root, tmp_path / "out2", judge=other, device="cpu")


def test_a_judge_that_counterfeits_fool_and_one_of_other_pictures_are_refused(root: Path, tmp_path: Path) -> None:
    fooled = a_judge(tmp_path / "fooled.safetensors", caught=0.25)
    with pytest.raises(ConfigError, match="calls 75% of the counterfeits clear"):
        search(settings(), root, tmp_path / "out", judge=fooled, device="cpu")
    elsewhere = a_judge(
        tmp_path / "elsewhere.safetensors", train=[{"kind": "pairs", "pairs": [{"root": "pairs", "every": 2}]}]
    )
    with pytest.raises(ConfigError, match=r"give both recipes the same data\.train"):
        search(settings(), root, tmp_path / "out", judge=elsewhere, device="cpu")
    untried = a_judge(tmp_path / "untried.safetensors", caught=None)  # the paper's, which was shown none
    assert judges.competent(untried, task="dark", train=settings().data.train)[1].caught is None


def test_a_judge_of_another_recipe_is_not_taken_for_that_of_the_search(root: Path, tmp_path: Path) -> None:
    (tmp_path / "judge.yaml").write_text(yaml.safe_dump({**JUDGE, "steps": 2}))
    named = settings(judge=str(tmp_path / "judge.yaml"))
    path = judges.train_judge_of(named, root, tmp_path / "judge", device="cpu")
    assert judges.train_judge_of(named, root, tmp_path / "judge", device="cpu") == path
    before = path.read_bytes()
    (tmp_path / "judge.yaml").write_text(yaml.safe_dump({**JUDGE, "steps": 6}))  # trained longer, as an error advises
    assert judges.train_judge_of(named, root, tmp_path / "judge", device="cpu").read_bytes() != before
    (tmp_path / "judge.yaml").write_text(yaml.safe_dump({**JUDGE, "steps": 2, "seed": 5}))
    with pytest.raises(ConfigError, match="holds a run of another recipe"):
        judges.train_judge_of(named, root, tmp_path / "judge", device="cpu")


def test_a_file_that_holds_no_judge_says_so(tmp_path: Path, plain_model: Path) -> None:
    with pytest.raises(WeightsError, match="holds no judge"):
        judges.load_judge(plain_model)
    with pytest.raises(WeightsError, match="no judge at"):
        judges.load_judge(tmp_path / "none.safetensors")


def test_a_judge_learns_to_tell_clear_from_dark_and_carries_its_accuracy(root: Path, tmp_path: Path) -> None:
    recipe = checked(JudgeRecipe, JUDGE)
    facts = judges.train_judge(recipe, root, tmp_path / "judge", device="cpu")
    assert facts["accuracy"] >= 0.9
    judge, read = judges.load_judge(tmp_path / "judge" / "judge.safetensors")
    assert read.model_dump(mode="json") == facts
    assert read.train == recipe.data.train
    assert 0 <= facts["caught"] <= 1
    assert not any(p.requires_grad for p in judge.parameters())


def test_counterfeits_are_neither_the_clean_picture_nor_out_of_its_shape() -> None:
    clean = torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    sample = Sample(clean, clean * 0.2)
    degraded = judges.counterfeit(sample, torch.Generator().manual_seed(1))
    assert degraded.shape == clean.shape
    assert ((degraded - clean).abs().amax(dim=(1, 2, 3)) > 0.02).all()


def test_a_loss_space_takes_over_a_found_loss() -> None:
    space = LossSpace(searchable(PLAIN))
    space.assume(LossSpec({"l1": 1.5, "ssim": 0.25}, {}))
    assert {name: weight for name, weight in space.derive().weights.items() if weight} == {"l1": 1.5, "ssim": 0.25}
    with pytest.raises(ConfigError, match="features_squeeze"):
        space.assume(LossSpec({"features_squeeze": 1.0}, {"features_squeeze": (1,)}))


def test_a_plain_network_has_no_architecture_to_search() -> None:
    unet = {"kind": "plain", "net": {"kind": "unet"}}
    with pytest.raises(ConfigError, match="net: 'hierarchical' searches an architecture, and a plain network has none"):
        settings(net=unet)


def test_the_stages_of_a_hierarchical_search_are_the_loss_and_then_the_architecture() -> None:
    assert settings().search.stages() == [Stage("loss", "loss", 3), Stage("architecture", "architecture", 3)]
    twice = settings(search={"kind": "hierarchical", "loss": 3, "architecture": 4, "rounds": 2})
    assert [(stage.name, stage.what, stage.steps) for stage in twice.search.stages()] == [
        ("loss", "loss", 3),
        ("architecture", "architecture", 4),
        ("loss2", "loss", 3),
        ("architecture2", "architecture", 4),
    ]


def test_a_search_of_a_loss_without_a_judge_says_how_to_make_one(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs a judge; `twofold train judge-dark` makes one"):
        search(settings(), root, tmp_path / "out", device="cpu")


def test_rounds_go_on_from_the_loss_and_the_architecture_of_the_round_before(root: Path, tmp_path: Path) -> None:
    judge = a_judge(tmp_path / "j.safetensors")
    stages = {"kind": "hierarchical", "loss": 3, "architecture": 3}
    once = search(settings(search=stages), root, tmp_path / "once", judge=judge, device="cpu")
    asked = settings(search={**stages, "rounds": 2})
    twice = search(asked, root, tmp_path / "twice", judge=judge, device="cpu")
    assert list(twice["stages"]) == ["loss", "architecture", "loss2", "architecture2"]
    first, second = (json.loads((tmp_path / name / "traces.json").read_text()) for name in ("once", "twice"))
    for stage in ("loss", "architecture"):
        assert first[stage]["weight/l1"] == second[stage]["weight/l1"], "the first round is a search of one round"
        assert first[stage]["entropy"] == second[stage]["entropy"]
    # a stage begins with a step of ω alone, so that its first line shows what it took over
    assert second["loss2"]["weight/l1"][0] == second["loss"]["weight/l1"][-1] != 1.0, "β goes on"
    assert second["loss2"]["entropy"][0] == second["architecture"]["entropy"][-1], "with α of the round before"
    assert len(set(second["loss2"]["entropy"])) == 1, "which is fixed in it"
    assert second["architecture2"]["entropy"][0] == second["architecture"]["entropy"][-1], "α goes on"
    assert second["architecture2"]["weight/l1"][0] == second["loss2"]["weight/l1"][-1], "with the second loss"
    assert twice["loss"] != once["loss"]
    assert twice["loss"]["l1"] == pytest.approx(second["loss2"]["weight/l1"][-1])
    again = search(asked, root, tmp_path / "again", judge=judge, device="cpu")
    for file in ("genotype.json", "loss.yaml", "traces.json"):
        assert (tmp_path / "twice" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()
    assert again["parameters"] == twice["parameters"]


def test_an_interrupted_search_of_several_rounds_goes_on_where_it_stopped(root: Path, tmp_path: Path) -> None:
    judge = a_judge(tmp_path / "j.safetensors")
    asked = settings(search={"kind": "hierarchical", "loss": 2, "architecture": 2, "rounds": 2})

    class Stop(Exception):
        pass

    class Stopper:
        def step(self, done: int, until: int, losses: dict[str, float], images_per_second: float) -> None:
            raise Stop

        def validated(self, done: int, scores: dict[str, float]) -> None: ...

    def stopping(stage: str) -> list[Stopper]:
        return [Stopper()] if stage == "architecture2" else []

    whole = tmp_path / "whole"
    search(asked, root, whole, judge=judge, device="cpu")
    parts = tmp_path / "parts"
    with pytest.raises(Stop):
        search(asked, root, parts, judge=judge, device="cpu", reports=stopping)
    search(asked, root, parts, judge=judge, device="cpu")
    for file in ("genotype.json", "loss.yaml"):
        assert (whole / file).read_bytes() == (parts / file).read_bytes()


def test_a_collapsed_architecture_is_no_start_for_another_round(root: Path, tmp_path: Path) -> None:
    class Guard:
        def step(self, done: int, until: int, losses: dict[str, float], images_per_second: float) -> None:
            raise Collapsed(done, 0.9)

        def validated(self, done: int, scores: dict[str, float]) -> None: ...

    def reports(stage: str) -> list[Guard]:
        return [Guard()] if stage == "architecture" else []

    asked = settings(search={"kind": "hierarchical", "loss": 2, "architecture": 2, "rounds": 3})
    judge = a_judge(tmp_path / "j.safetensors")
    result = search(asked, root, tmp_path / "out", judge=judge, device="cpu", reports=reports)
    assert list(result["stages"]) == ["loss", "architecture"]
    assert "SC leads at 90%" in result["stages"]["architecture"]["ended_early"]


def test_the_supernet_depends_on_the_seed_alone() -> None:
    first, second, other = (settings(seed=seed).build_net() for seed in (0, 0, 1))
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(next(first.parameters()), next(other.parameters()))


@pytest.mark.parametrize("name", reading.names("judge", "search"))
def test_every_shipped_search_and_judge_is_valid_and_names_recipes_that_are_there(name: str) -> None:
    tree = reading.tree_of(name)
    if reading.kind_of(tree) == "judge":
        assert checked(JudgeRecipe, tree, name).name == name
        return
    recipe = checked(SearchRecipe, tree, name)
    assert recipe.name == name
    judge = checked(JudgeRecipe, reading.tree_of(recipe.judge))
    assert judge.task == recipe.task
    assert judge.data.train == recipe.data.train, "a judge of other data would see pictures of the validation half"
    assert recipe.final in reading.names("train")


def test_a_misspelt_key_of_a_search_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown key colapse; did you mean 'collapse'"):
        settings(colapse=0.5)


def test_a_misspelt_loss_is_found_in_trained_and_searched_losses() -> None:
    with pytest.raises(ConfigError, match="unknown loss 'l3'; did you mean"):
        LossSpec({"l3": 1.0})
    with pytest.raises(ConfigError, match=r"loss\.terms\.1: unknown loss 'l3'; did you mean"):
        settings(loss={"terms": ["l1", "l3"]})


def test_train_takes_a_loss_file_for_any_model(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    LossSpec({"l1": 0.5, "colour": 2.0}, {}).write(tmp_path / "loss.yaml")
    assert command_line(["train", "derain", "--loss", str(tmp_path / "loss.yaml"), "--show"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["loss"]["weights"] == {"l1": 0.5, "colour": 2.0}


def test_the_command_searches_and_says_how_to_train_what_it_found(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TREE))
    judge = a_judge(tmp_path / "j.safetensors")
    arguments = [str(tmp_path / "tiny.yaml"), "--data", str(root), "--output", str(tmp_path / "out"), "--device", "cpu"]
    assert command_line(["search", *arguments, "--judge", str(judge)]) == 0
    said = capsys.readouterr().out
    assert f"twofold train lowlight --data {root} --loss {tmp_path / 'out' / 'loss.yaml'}" in said
    asked = said.splitlines()[-1].removeprefix("train it: twofold ").split()
    assert command_line([*asked, "--show"]) == 0
    model = reading.parse(yaml.safe_load(capsys.readouterr().out)).model.build()
    facts = json.loads((tmp_path / "out" / "search.json").read_text())
    assert sum(p.numel() for p in model.parameters()) == facts["parameters"], "its width is the one that was searched"
    assert command_line(["search", *arguments, "--judge", str(judge)]) == 0
    assert "were found before" in capsys.readouterr().out
    assert command_line(["search", "derain"]) == 2
    assert command_line(["search", "list"]) == 0
    assert "search-lowlight" in capsys.readouterr().out


def test_recipes_that_a_search_names_are_sought_beside_it_and_before_it_starts(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "search.yaml").write_text(yaml.safe_dump({**TREE, "judge": "judge.yaml", "final": "lowlite"}))
    (tmp_path / "mine" / "judge.yaml").write_text(yaml.safe_dump({**JUDGE, "steps": 2}))
    monkeypatch.chdir(tmp_path)
    assert reading.tree_of(Path("mine/search.yaml"))["judge"] == str(tmp_path / "mine" / "judge.yaml")
    assert command_line(["search", "mine/search.yaml", "--data", str(root), "-o", "out"]) == 1
    assert "unknown recipe 'lowlite'; did you mean 'lowlight'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_search_on_features_of_vgg19_asks_for_its_weights(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no weights of vgg19"):
        settings(loss={"terms": ["l1", "features_vgg19"]}).loss.build(tmp_path)


def test_the_command_searches_several_seeds_and_says_what_they_agree_on(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TREE))
    asked = ["search", str(tmp_path / "tiny.yaml"), "--data", str(root), "-o", str(tmp_path / "out"), "--seeds", "2"]
    judge = a_judge(tmp_path / "j.safetensors")
    assert command_line([*asked, "--judge", str(judge), "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "2 seeds: weight of each loss" in printed
    assert "two seeds agree at" in printed
    assert "stability.png" in printed


def test_a_genotype_in_a_recipe_may_be_a_file_or_the_thing_itself(tmp_path: Path) -> None:
    genotype = uniform_genotype("SC", "1-C", units=1)
    genotype.write(tmp_path / "genotype.json")
    net = {"kind": "hadamard", "genotype": str(tmp_path / "genotype.json")}
    tree = {"model": {"kind": "plain", "net": net}}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(tree))
    groups = reading.tree_of(tmp_path / "r.yaml")["model"]["net"]["genotype"]["groups"]
    assert {name: tuple(row) for name, row in groups.items()} == genotype.groups
    with pytest.raises(ConfigError, match=r"cannot read none\.json"):
        reading.tree_of(tmp_path / "r.yaml", ["model.net.genotype=none.json"])
