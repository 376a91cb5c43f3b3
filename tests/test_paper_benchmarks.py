"""The benchmarks of the papers' claims: what they compare, their figures, and the command that makes all searches."""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from PIL import Image
from torch import Tensor

from twofold import losses
from twofold.contracts import RAIN_REGION, Sample
from twofold.nets.guide import Guide
from twofold.nets.hadamard import HadamardNet
from twofold.nets.perceptual import DirectionDistance, squeezenet
from twofold.search.judge import JudgeFacts
from twofold.search.recipe import JudgeRecipe, SearchRecipe
from twofold.settings import checked
from twofold.space.genotype import uniform_genotype
from twofold.train import reading

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module


def test_a_loss_has_settled_when_nine_tenths_of_its_fall_are_done(benchmark: Callable[[str], ModuleType]) -> None:
    claims = benchmark("paper_a_claims")
    assert claims.settled([10.0, 1.0, 1.0, 1.0], width=1) == 0.5
    assert claims.settled([8.0, 6.0, 4.0, 2.0], width=1) == 1.0
    runs = [
        {"way": "guided", "layers": 9, "seed": seed, "curves": {"restoration": [9.0, 5.0, 0.0] * 5, "guidance": g}}
        for seed, g in enumerate(([9.0] + [0.0] * 14, [9.0] * 14 + [0.0]))
    ]
    assert claims.convergence(runs, 9)["g"] > 0.5


def test_the_seeds_that_an_interval_takes_give_that_interval(benchmark: Callable[[str], ModuleType]) -> None:
    harness = benchmark("harness")
    needed = harness.seeds_needed(1.0, 1.2421)  # three values with deviation 1: 4.3027 / √3 = 2.4842; n = 5: 1.2416
    assert needed == 5
    assert harness.half_interval([-1.0, 0.0, 1.0]) == pytest.approx(2.4842, abs=1e-3)


@pytest.mark.parametrize("change", ["shifted", "thick", "with_gaps", "coarse"])
def test_an_inaccurate_truth_differs_from_the_accurate_one_and_keeps_its_range(
    change: str, benchmark: Callable[[str], ModuleType]
) -> None:
    truths = benchmark("paper_a_truths")
    truth = (torch.rand(2, 1, 50, 70, generator=torch.Generator().manual_seed(0)) > 0.7).float()
    taught = getattr(truths, change)(truth, torch.Generator().manual_seed(0))
    assert taught.shape == truth.shape
    assert 0 <= taught.min() <= taught.max() <= 1
    assert (taught != truth).any()


def test_maps_are_judged_by_error_and_by_their_details(benchmark: Callable[[str], ModuleType]) -> None:
    truths = benchmark("paper_a_truths")
    truth = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    found = truths.judged(Guide(RAIN_REGION), truths.coarse, [Sample(truth, truth.expand(1, 3, 64, 64), truth)])
    assert found["taught"]["details"] < 0.2  # a coarse map has lost them
    assert found["constant"]["error"] == pytest.approx(float(truth.var(unbiased=False)), abs=1e-4)
    assert truths.details(truth, truth) == pytest.approx(1, abs=1e-5)


def test_the_power_of_a_divisor_is_what_a_unit_divides_by(benchmark: Callable[[str], ModuleType]) -> None:
    maps = benchmark("hadamard_maps")
    torch.manual_seed(0)
    net: HadamardNet = uniform_genotype("3-RC", "3-C", units=2, ops_per_branch=1).network(width=4).eval()
    observed = torch.rand(1, 3, 32, 32)
    seen = maps.divisors(net, observed)
    assert seen.shape == (2, 4, 8, 8)
    assert (seen >= 0.5).all()
    before = net(observed)
    found = maps.steered(net, [Sample(observed, observed)])
    assert torch.equal(net(observed), before), "the network is as it was"
    assert len({facts["psnr"] for facts in found.values()}) == len(maps.STRENGTHS)


def test_a_divisor_moved_to_the_true_transmission_is_that(benchmark: Callable[[str], ModuleType]) -> None:
    guided = benchmark("hadamard_guided")
    torch.manual_seed(0)
    net: HadamardNet = uniform_genotype("3-RC", "3-C", units=2, ops_per_branch=1).network(width=4).eval()
    clean = torch.rand(1, 3, 32, 32)
    depth = torch.linspace(0.1, 1, 32).expand(1, 1, 32, 32)
    sample = Sample(clean, clean, depth)
    t = guided.transmission(sample)
    assert t.shape == (1, 1, 8, 8)
    torch.testing.assert_close(t[0, 0, 0, 0], torch.exp(-guided.BETA * depth[..., :4]).mean())
    restored, drawn = guided.first_divisor(net, clean)
    assert torch.equal(restored, net(clean))
    torch.testing.assert_close(drawn[0, 0], 2 * benchmark("hadamard_maps").divisors(net, clean)[0].mean(0) - 1)
    plain = net.units[0].combine
    found = guided.judged(net, [sample])
    assert net.units[0].combine is plain
    assert set(found) == set(guided.COLUMNS)


def test_a_linear_map_is_read_off_where_there_is_one(benchmark: Callable[[str], ModuleType]) -> None:
    maps = benchmark("hadamard_maps")
    features = torch.randn(500, 3, generator=torch.Generator().manual_seed(0))
    weights: Tensor = maps.ridge(features, features @ torch.tensor([1.0, -2.0, 0.0]) + 3, weight=1e-6)
    torch.testing.assert_close(weights, torch.tensor([1.0, -2.0, 0.0, 3.0]), atol=1e-3, rtol=0)


def test_the_problem_of_the_loss_strategies_has_one_minimum(benchmark: Callable[[str], ModuleType]) -> None:
    """Its Hessian is positive definite wherever it is looked at, and each strategy has a row of its own."""
    strategies = benchmark("loss_strategies")
    observed, clean = torch.rand(2, 2, 1, 24, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    edge = strategies.TAPS // 2

    def lower(omega: Tensor) -> Tensor:
        image = torch.nn.functional.conv2d(observed - 0.5, omega.view(1, 1, strategies.TAPS, strategies.TAPS))
        losses = [loss(image, clean[..., edge:-edge, edge:-edge]) for loss in strategies.TERMS.values()]
        return torch.stack(losses).sum()

    at = torch.rand(strategies.TAPS**2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    hessian: Tensor = torch.autograd.functional.hessian(lower, at)
    assert torch.linalg.eigvalsh(hessian)[0] > 0
    facts = {"weights": dict.fromkeys(strategies.TERMS, 1.0), "upper": 0.5, "lower_gradients": 1, "products": 0}
    ways = {name: {**facts, "cpu_seconds": 1.0, "cosine": 1.0} for name in strategies.WAYS}
    table = strategies.tables({"seeds": [{"all ones": {"upper": 0.6}, **ways}] * 2})["loss_strategies"]
    assert table.count("| +0.1000 (") == len(strategies.WAYS)


def test_a_found_loss_is_compared_with_fixed_ones_seed_by_seed(benchmark: Callable[[str], ModuleType]) -> None:
    """Two seeds whose differences are 1 and 2 dB: 1.5 ± 12.706 · 0.5; an unfinished third one does not count."""
    fixed = benchmark("fixed_losses")
    for task in fixed.HELD_OUT:
        losses = fixed.losses_of(task)
        assert list(losses) == [fixed.FOUND, *fixed.FIXED]
        assert len(losses[fixed.FOUND].weights) == 8, "the shipped loss of eight terms"

    def seed(found: float) -> dict[str, dict[str, float]]:
        of = {name: {"psnr": 20.0, "ssim": 0.8, "perceptual_squeeze": 0.5, "ms": 9.0} for name in fixed.FIXED}
        return {fixed.FOUND: {"psnr": found, "ssim": 0.9, "perceptual_squeeze": 0.4, "ms": 30.0}, **of}

    seeds = {"0": seed(21.0), "1": seed(22.0), "2": {fixed.FOUND: seed(30.0)[fixed.FOUND]}}
    lines = fixed.tables({"tasks": {"haze": {"seeds": seeds}}})["fixed_losses"].splitlines()
    assert len(lines) == 2 + 5
    assert lines[2] == "| haze, 2 seeds | found by search | 21.50 / 0.900 | 0.400 |  |  | 30 |"
    assert lines[3].startswith("| haze, 2 seeds | l1 | 20.00 / 0.800 | 0.500 | +1.50 (-4.85 … +7.85) | +0.100 (")


def test_every_loss_trains_the_same_network_on_the_same_batches(
    benchmark: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    fixed = benchmark("fixed_losses")
    seen: list[tuple[Tensor, Tensor]] = []

    def recorded(restored: Tensor, clean: Tensor) -> Tensor:
        if restored.requires_grad:
            seen.append((restored.detach().clone(), clean))
        return losses.l1(restored, clean)

    def source(generator: torch.Generator) -> Sample:
        clean = torch.rand(1, 3, 32, 32, generator=generator)
        return Sample(clean, clean / 2)

    monkeypatch.setattr(fixed, "network", lambda: torch.nn.Conv2d(3, 3, 1))
    data = SimpleNamespace(batch=1)
    asked = SimpleNamespace(steps=3, device="cpu")
    bench = fixed.Bench(
        asked, SimpleNamespace(data=data), Path(), source, source, source, [source(torch.Generator())],
        torch.nn.Identity(), DirectionDistance(squeezenet(), (1,), name="random"),
    )  # fmt: skip
    monkeypatch.setitem(losses.LOSSES, "recorded", recorded)
    scores = fixed.training(bench, losses.LossSpec({"recorded": 1.0}), 0)
    fixed.training(bench, losses.LossSpec({"recorded": 1.0, "l2": 1.0}), 0)
    assert set(scores) == {"ms", "psnr", "ssim", "perceptual_squeeze", "parameters"}
    assert len(seen) == 6
    torch.testing.assert_close(seen[0], seen[3])
    assert torch.equal(seen[2][1], seen[5][1])
    assert not torch.equal(seen[2][0], seen[5][0]), "another loss, another network"


def test_the_softmax_of_figure_7_leaves_the_smoothness_terms_out(benchmark: Callable[[str], ModuleType]) -> None:
    figures = benchmark("figures")
    assert figures.softmaxed({"l1": 1.0, "l2": 1.0, "tv": 9.0, "laplacian": 3.0}) == {"l1": 0.5, "l2": 0.5}


def test_mbllen_has_its_published_size_and_keeps_that_of_the_picture(benchmark: Callable[[str], ModuleType]) -> None:
    network = benchmark("paper_b_networks").MBLLEN()
    assert sum(p.numel() for p in network.parameters()) == 450_171
    assert network(torch.rand(1, 3, 13, 20)).shape == (1, 3, 13, 20)


def test_committed_figures_are_there_and_small(benchmark: Callable[[str], ModuleType]) -> None:
    figures = benchmark("figures")
    for file, _ in figures.COMMITTED.values():
        path = ROOT / "docs" / "pictures" / file
        assert path.stat().st_size <= figures.LARGEST
        with Image.open(path) as picture:
            assert min(picture.size) > 100


def test_make_searches_names_recipes_and_settings_that_exist() -> None:
    made = (ROOT / "Makefile").read_text().split("searches:")[1].split("\n\n")[0]
    (tasks,) = re.findall(r"for t in ([\w ]+);", made)
    asked: list[tuple[str, list[str]]] = []
    for task in tasks.split():
        assert checked(JudgeRecipe, reading.tree_of(f"judge-{task}")).task == task
        for line in made.replace("\\\n", " ").replace("$$t", task).replace("&&", "\n").splitlines():
            words = shlex.split(line, posix=True) if line.count('"') % 2 == 0 else []
            asked.append((f"search-{task}", [b for a, b in pairwise(words) if a == "--set"]))
    assert sum(len(changes) for _, changes in asked) >= 3 * 2 + 4
    for name, changes in asked:
        assert checked(SearchRecipe, reading.tree_of(name, changes), name).name == name
    assert "caught" in JudgeFacts.model_fields, "what a search keeps of its judge"
