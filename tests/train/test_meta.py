from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from twofold.contracts import ConfigError, Sample
from twofold.losses import l2
from twofold.nets.fourier import Circular
from twofold.restorers.fixed_point import (
    Deconvolution,
    FixedPointRestorer,
    Problem,
    RidgeDenoiser,
    SplitDeconvolution,
)
from twofold.restorers.sparse_coding import LearnedALM, PatchCoding, SparseModel
from twofold.solve import Harmonic, stretch
from twofold.train.convergence import Convergence, history, residuals
from twofold.train.learner import Learner
from twofold.train.loop import JsonLines, Run, fit
from twofold.train.meta import MetaTraining, contraction, solve
from twofold.train.schemes import load_state, state_of

KERNEL = torch.full((1, 1, 3, 3), 1 / 9)


def blurred(seed: int) -> Sample:
    generator = torch.Generator().manual_seed(seed)
    clean = nn.functional.interpolate(torch.rand(1, 1, 5, 5, generator=generator), (16, 16), mode="nearest")
    spectrum = torch.fft.rfft2(clean) * torch.fft.rfft2(
        nn.functional.pad(KERNEL, (0, 13, 0, 13)).roll((-1, -1), (-2, -1))
    )
    observed = torch.fft.irfft2(spectrum, s=(16, 16)) + 0.02 * torch.randn(clean.shape, generator=generator)
    return Sample(clean, observed, kernel=KERNEL)


def deconvolution() -> Deconvolution:
    torch.manual_seed(0)
    return Deconvolution(RidgeDenoiser(filters=8, size=3), penalty=0.1, border=Circular())


def scheme(restorer: FixedPointRestorer, *, mu: float = 0.3, rate: float = 2e-2) -> MetaTraining:
    learner = Learner(
        [p for p in restorer.parameters() if p.requires_grad], lambda p: torch.optim.Adam(p, rate), clip=1.0
    )
    return MetaTraining(restorer, l2, learner, iterations=8, mu=mu)


def test_one_sample_is_learned_and_the_gradient_falls() -> None:
    training, sample = scheme(deconvolution()), blurred(0)
    log = [training.step([sample]) for _ in range(60)]
    # A convex prior with 8 small filters: half of the squared error, not 30 dB.
    assert log[-1]["restoration"] < 0.6 * log[0]["restoration"]
    gradients = [line["gradient"] for line in log]
    assert sum(gradients[-10:]) < 0.7 * max(sum(gradients[i : i + 10]) for i in range(0, 40, 10))
    for line in log:
        assert line["residual/7"] < 0.5 * line["residual/0"]
        assert 0 < line["contraction"] < 1
        assert line["lower"] == pytest.approx(line["residual/7"] ** 2 / 2)


def test_without_a_leader_the_solve_is_the_operator_alone() -> None:
    restorer, sample = deconvolution(), blurred(1)
    problem = restorer.problem(sample.observed, sample.kernel)
    state, found = solve(problem, lambda _: torch.zeros(()), iterations=3, mu=0.0, schedule=Harmonic(0.5))
    u = problem.start
    for _ in range(3):
        u = problem.operator(u)
    torch.testing.assert_close(state, u)
    assert len(found) == 3


def test_the_leader_draws_the_solve_towards_the_clean_picture() -> None:
    restorer, sample = deconvolution(), blurred(2)

    def leader(image: Tensor) -> Tensor:
        return 0.5 * (image - sample.clean).square().sum()

    def error(mu: float) -> float:
        problem = restorer.problem(sample.observed, sample.kernel)
        u, _ = solve(problem, leader, iterations=6, mu=mu, schedule=Harmonic(0.5))
        return float(l2(problem.image(u), sample.clean).detach())

    assert error(0.5) < error(0.2) < error(0.0)


def test_the_gradient_of_a_step_is_that_of_the_aggregated_iteration() -> None:
    """Against a central difference of φ_K in one number, ρ."""
    sample = blurred(3)
    sample = Sample(sample.clean.double(), sample.observed.double(), kernel=KERNEL.double())
    restorer = deconvolution().double()
    training = scheme(restorer)

    def phi() -> Tensor:
        problem = restorer.problem(sample.observed, sample.kernel)
        u, _ = solve(
            problem,
            lambda image: 0.5 * (image - sample.clean).square().sum(),
            iterations=8,
            mu=0.3,
            schedule=training.schedule,
        )
        return l2(problem.image(u), sample.clean)

    (exact,) = torch.autograd.grad(phi(), [restorer.log_penalty])
    at = restorer.log_penalty.data.clone()
    values = []
    for shift in (1e-4, -1e-4):
        restorer.log_penalty.data = at + shift
        values.append(phi().item())
    assert exact.item() == pytest.approx((values[0] - values[1]) / 2e-4, rel=1e-4)


def test_training_projects_every_iterate_onto_the_problems_set() -> None:
    """Halved to [0, 1]: the fixed point lies outside, so the iterates stay on the border, in training alone."""

    class Bounded(Halving):
        def problem(self, observed: Tensor, kernel: Tensor | None = None) -> Problem:
            return super().problem(observed, kernel)._replace(project=lambda u: u.clamp(0, 1))

    sample = Sample(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1))
    found = {}
    for project in (True, False):
        restorer = Bounded()
        learner = Learner(restorer.parameters(), lambda p: torch.optim.SGD(p, 0.0))
        training = MetaTraining(restorer, l2, learner, iterations=4, mu=0.0, project=project)
        found[project] = training.step([sample])
    assert found[True]["restoration"] == pytest.approx(1.0)
    assert found[False]["restoration"] == pytest.approx(1.875**2)
    assert found[True]["residual/3"] == pytest.approx(0.5)  # T(1) − 1: how far the border is from a fixed point


def test_the_scheme_trains_an_admm_in_its_own_metric() -> None:
    torch.manual_seed(0)
    restorer = SplitDeconvolution(RidgeDenoiser(filters=8, size=3), penalty=0.02, threshold=0.004, border=Circular())
    training, sample = scheme(restorer), blurred(0)
    log = [training.step([sample]) for _ in range(40)]
    assert log[-1]["restoration"] < 0.8 * log[0]["restoration"]
    for p in restorer.parameters():
        assert p.grad is None or p.grad.isfinite().all()
    with torch.no_grad():
        problem = restorer.problem(sample.observed, sample.kernel)
        p, q = problem.start, tuple(t + 0.1 * torch.randn_like(t) for t in problem.start)
        assert stretch(problem.operator, p, q).max() <= 1 + 1e-5


def test_a_metric_that_is_learned_does_not_hinder() -> None:
    A = nn.functional.normalize(torch.randn(16, 24, generator=torch.Generator().manual_seed(0)), dim=0)
    restorer = PatchCoding(LearnedALM(SparseModel(A, 0.3), tune_weights=True))
    clean = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    training = scheme(restorer)
    log = [training.step([Sample(clean, clean)]) for _ in range(30)]
    assert log[-1]["restoration"] < log[0]["restoration"]


class Halving(FixedPointRestorer):
    """T(u) = u / 2 + w: its factor and its residuals are known."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(1.0))

    def problem(self, observed: Tensor, kernel: Tensor | None = None) -> Problem:
        return Problem(lambda u: u / 2 + self.w, torch.zeros_like(observed), lambda u: u)


def test_what_is_logged_is_what_happened() -> None:
    restorer = Halving()
    learner = Learner(restorer.parameters(), lambda p: torch.optim.SGD(p, 0.1))
    training = MetaTraining(restorer, l2, learner, iterations=4, mu=0.0)
    found = training.step([Sample(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1))])
    assert [found[f"residual/{k}"] for k in range(4)] == pytest.approx([1, 0.5, 0.25, 0.125])
    assert found["contraction"] == pytest.approx(0.5)
    assert found["restoration"] == pytest.approx(1.875**2)  # u_4 = 1 + ½ + ¼ + ⅛
    assert found["gradient"] == pytest.approx(2 * 1.875**2)
    assert found["change"] == pytest.approx(0.2 * 1.875**2)
    assert math.isnan(contraction([1.0]))


def test_a_run_leaves_a_picture_and_a_json_of_its_convergence(tmp_path: Path) -> None:
    reports = [JsonLines(tmp_path / "log.jsonl", every=1), Convergence(tmp_path)]
    fit(scheme(deconvolution()), lambda n: ([blurred(n)],), until=3, run=Run(tmp_path), reports=reports)
    series = json.loads((tmp_path / "convergence.json").read_text())
    assert series["step"] == [1, 2, 3]
    assert len(residuals(series)) == 3
    assert len(residuals(series)[0]) == 8
    assert (tmp_path / "convergence.png").read_bytes()[:4] == b"\x89PNG"


def test_a_log_without_residuals_is_refused_and_a_step_done_twice_counts_once(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 1, "restoration": 0.1}\n')
    with pytest.raises(ConfigError, match="fixed point"):
        history(log)
    log.write_text('{"step": 1, "residual/0": 3.0}\n{"step": 2, "residual/0": 2.0}\n{"step": 1, "residual/0": 1.0}\n')
    assert history(log) == {"step": [1.0, 2.0], "residual/0": [1.0, 2.0]}


def test_a_scheme_restored_from_its_state_goes_on_bit_for_bit() -> None:
    first, second = scheme(deconvolution()), scheme(deconvolution(), rate=2e-2)
    first.step([blurred(0)])
    load_state(second, copy.deepcopy(state_of(first)))
    assert first.step([blurred(1)]) == second.step([blurred(1)])
