"""Searches as schemes: what moves, what is repeatable, and how the data are split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from twofold.contracts import ConfigError, DataError, Sample
from twofold.data.crops import CropCache
from twofold.data.sources import PairCrops, SourceMixture, SyntheticCrops
from twofold.degrade.additive import GaussianNoise
from twofold.losses import PLAIN
from twofold.nets.hadamard import HadamardNet
from twofold.nets.judge import Judge
from twofold.search.halves import split_source
from twofold.search.judge import judged
from twofold.search.recipe import What
from twofold.search.scheme import Collapsed, CollapseGuard, Search
from twofold.solve import FirstOrder, OneStepUnrolled, SolveError, Strategy, hypergradient
from twofold.space.genotype import derive
from twofold.space.loss_space import LossSpace, searchable
from twofold.space.supernet import architecture, mixtures
from twofold.train.learner import Learner
from twofold.train.loop import Run, fit


def batches(n: int) -> tuple[list[Sample], list[Sample]]:
    generator = torch.Generator().manual_seed(n)
    clean = torch.rand(2, 2, 3, 8, 8, generator=generator)
    train, validation = (Sample(part, part * 0.3) for part in clean)
    return [train], [validation]


def search(what: What, strategy: Strategy, *, upper: bool, rate: float = 0.05) -> Search:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    net = HadamardNet(mixtures(generator), width=4, units=1, ops_per_branch=2)
    space, judge = LossSpace(searchable(PLAIN)), Judge(width=4)
    beta = [] if what == "architecture" else list(space.parameters())
    alpha = [] if what == "loss" else list(architecture(net).values())
    searcher = Learner(beta + alpha, lambda p: torch.optim.Adam(p, rate))
    trained = [p for name, p in net.named_parameters() if name not in architecture(net)]
    learner = Learner(trained, lambda p: torch.optim.SGD(p, 0.01, momentum=0.9))
    return Search(net, space, what, judged(judge) if upper else None, strategy, searcher, learner)


KINDS: dict[str, Callable[[], Search]] = {
    "loss": lambda: search("loss", OneStepUnrolled(0.01), upper=True),
    "architecture": lambda: search("architecture", FirstOrder(), upper=False),
    "both": lambda: search("both", OneStepUnrolled(0.01), upper=True),
}


def state(scheme: Search) -> list[Tensor]:
    return [p.detach().clone() for module in (scheme.restorer, scheme.space) for p in module.parameters()]


@pytest.mark.parametrize("kind", KINDS)
def test_a_search_moves_what_is_searched_and_the_weights_and_nothing_else(kind: str) -> None:
    scheme = KINDS[kind]()
    alpha = {name: p.detach().clone() for name, p in architecture(scheme.restorer).items()}
    beta, omega = scheme.space.raw.detach().clone(), {n: p.detach().clone() for n, p in scheme.omega().items()}
    shown = scheme.step(*batches(0))
    moved = any(not torch.equal(p, alpha[name]) for name, p in architecture(scheme.restorer).items())
    assert moved == (kind != "loss")
    assert (not torch.equal(scheme.space.raw, beta)) == (kind != "architecture")
    assert any(not torch.equal(p, omega[name]) for name, p in scheme.omega().items())
    assert {"restoration", "upper", "weight/l1", "entropy", "skip_ratio"} <= shown.keys()


def test_the_first_order_gradient_of_the_judge_in_the_loss_weights_is_refused_because_it_is_zero() -> None:
    with pytest.raises(SolveError, match="identically zero"):
        search("loss", FirstOrder(), upper=True).step(*batches(0))


def test_the_loss_weights_descend_the_judges_verdict_after_one_step_of_training() -> None:
    """The hypergradient agrees with differences of the judge's loss in each weight."""
    found = search("loss", OneStepUnrolled(0.01), upper=True)
    found.restorer.double()
    found.space.double()
    found.upper = judged(Judge(width=4).double())
    (sample,), (held,) = ([Sample(s.clean.double(), s.observed.double()) for s in draw] for draw in batches(0))
    problem = found.problem(sample, held)
    omega = {name: p.detach().requires_grad_() for name, p in found.omega().items()}

    def after(raw: Tensor) -> float:
        w = {"loss": {"raw": raw}, "architecture": {}}
        slopes = torch.autograd.grad(problem.lower(w, omega), list(omega.values()))  # type: ignore[misc]
        moved = {name: p - 0.01 * g for (name, p), g in zip(omega.items(), slopes, strict=True)}
        return float(problem.upper(w, moved).detach())

    exact = hypergradient(problem, found.searched(), found.omega(), strategy=OneStepUnrolled(0.01))
    raw, e = torch.ones(len(PLAIN)).double(), 1e-4
    for i, slope in enumerate(exact.gradient["loss"]["raw"]):
        step = e * torch.eye(len(PLAIN)).double()[i]
        assert float(slope) == pytest.approx((after(raw + step) - after(raw - step)) / (2 * e), rel=1e-3, abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_finds_the_same_bit_for_bit(kind: str) -> None:
    first, second = KINDS[kind](), KINDS[kind]()
    for n in range(3):
        first.step(*batches(n))
        second.step(*batches(n))
    assert all(torch.equal(a, b) for a, b in zip(state(first), state(second), strict=True))
    assert derive(first.restorer) == derive(second.restorer)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_search_equals_an_uninterrupted_one_bit_for_bit(kind: str, tmp_path: Path) -> None:
    whole = KINDS[kind]()
    fit(whole, batches, until=4, run=Run(tmp_path / "whole"))
    fit(KINDS[kind](), batches, until=2, run=Run(tmp_path / "parts"))
    resumed = KINDS[kind]()
    fit(resumed, batches, until=4, run=Run(tmp_path / "parts"))
    assert all(torch.equal(a, b) for a, b in zip(state(whole), state(resumed), strict=True))


def test_loss_weights_never_become_negative() -> None:
    scheme = search("loss", OneStepUnrolled(0.01), upper=True, rate=5.0)
    for n in range(3):
        scheme.step(*batches(n))
        assert scheme.space.weights().min() >= 0


def test_any_network_can_have_its_loss_searched() -> None:
    scheme = search("loss", OneStepUnrolled(0.01), upper=True)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.SiLU(), nn.Conv2d(4, 3, 3, padding=1))
    plain = Search(
        net, scheme.space, "loss", scheme.upper, scheme.strategy, scheme.searcher,
        Learner(net.parameters(), lambda p: torch.optim.SGD(p, 0.01)),
    )  # fmt: skip
    assert "entropy" not in plain.step(*batches(0))
    assert not torch.equal(plain.space.raw, torch.ones(len(PLAIN)))


def test_a_search_that_collapses_to_skips_is_stopped() -> None:
    guard = CollapseGuard(0.5)
    guard.step(1, 9, {"skip_ratio": 0.5}, 1.0)
    with pytest.raises(Collapsed, match="after 2 steps SC leads at 75%"):
        guard.step(2, 9, {"skip_ratio": 0.75}, 1.0)


def pictures(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 255, (3, 8, 8), generator=generator, dtype=torch.uint8) for _ in range(count)]


def test_data_are_split_by_picture_and_the_densities_of_a_scene_stay_together() -> None:
    clean = [picture for picture in pictures(5) for _ in range(3)]  # five scenes, three densities
    first, second = split_source(PairCrops(CropCache(pictures(15)), CropCache(clean), 8))
    scenes = [{bytes(p.numpy().tobytes()) for p in half.clean.pictures} for half in (first, second)]  # type: ignore[attr-defined]
    assert not scenes[0] & scenes[1]
    assert [len(s) for s in scenes] == [3, 2]
    assert len(first.observed.pictures) == 9  # type: ignore[attr-defined]


def test_so_many_pictures_are_taken_as_asked_for() -> None:
    source = SyntheticCrops(CropCache(pictures(10)), GaussianNoise((0.1, 0.1)), 8)
    parts = split_source(SourceMixture([source, source], [1.0, 1.0]), pictures=8)
    assert [[len(inner.clean.pictures) for inner in part.sources] for part in parts] == [[2, 2], [2, 2]]  # type: ignore[attr-defined]


def test_a_picture_that_two_sources_share_stays_in_one_half() -> None:
    shared = pictures(5)
    left, right = (PairCrops(CropCache(part), CropCache(part), 8) for part in (shared[:4], shared[1:]))
    first, second = split_source(SourceMixture([left, right], [1.0, 1.0]))
    seen = [
        {bytes(p.numpy().tobytes()) for inner in half.sources for p in inner.clean.pictures}  # type: ignore[attr-defined]
        for half in (first, second)
    ]
    assert not seen[0] & seen[1]
    assert len(seen[0] | seen[1]) == 5


def test_a_loss_that_would_judge_itself_is_refused() -> None:
    with pytest.raises(ConfigError, match="a loss that judges itself shrinks to zero"):
        replace(KINDS["loss"](), upper=None)


def test_a_single_picture_cannot_be_split() -> None:
    with pytest.raises(DataError, match="at least 2 different"):
        split_source(SyntheticCrops(CropCache(pictures(1) * 3), GaussianNoise((0.1, 0.1)), 8))
    with pytest.raises(DataError, match=r"data\.pictures asks for 1"):
        split_source(SyntheticCrops(CropCache(pictures(3)), GaussianNoise((0.1, 0.1)), 8), pictures=1)
