"""Every limit of a setting is where its message says: the last legal value is taken, the first illegal one refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import islice
from typing import Any

import pytest
import torch

from twofold.solve import (
    BOME,
    F2SA,
    F3SA,
    PBGD,
    PDHG,
    SOBA,
    Adaptive,
    Aggregated,
    AmIGO,
    Anderson,
    Bilevel,
    Broyden,
    Damped,
    DenoiserStep,
    FirstOrder,
    GradientDescent,
    KrasnoselskiiMann,
    LinearisedADMM,
    Momentum,
    PhantomGradient,
    Polynomial,
    ProximalALM,
    ProximalGradient,
    Regularity,
    Relax,
    Settled,
    SolveError,
    StocBiO,
    Truncated,
    TruncatedAdjoint,
    Unrolled,
    ValueFunction,
    descend,
    gmres,
    jacobian_penalty,
    matrix_map,
    minibatches,
    no_prox,
    nystrom,
    whole,
)
from twofold.solve.unroll import graphs_within, replayed

INF, NAN = math.inf, math.nan
SMALL, STEP = Polynomial(0.1), GradientDescent(0.1)
LINEAR, TARGET = matrix_map(torch.eye(1)), torch.ones(1, 1)
ONE = torch.ones(1, dtype=torch.float64)
PROBLEM = Bilevel(lambda w, u: ((u - 1) ** 2).sum() / 2, lambda w, u: ((u - w) ** 2).sum() / 2)


def same(v: Any) -> Any:
    return v


def one_iteration(method: Any) -> Any:
    return next(iter(descend(method, whole(PROBLEM), ONE, ONE)))


def two_iterations(method: Any) -> Any:
    return list(islice(descend(method, whole(PROBLEM), ONE, ONE), 2))


def low_rank(rank: int, ridge: float = 0.5) -> Any:
    return nystrom(same, torch.ones(3), rank=rank, ridge=ridge, generator=torch.Generator().manual_seed(0))


def replay(**settings: int) -> Any:
    return replayed(lambda k, w, u: w * u, ONE, ONE, **{"steps": 2, **settings})


def rest(**constants: float) -> Regularity:
    return Regularity(**{"strong_convexity": 0.5, "mixed_norm": 0.5, "upper_lipschitz": 0.5, **constants})


def penalty_of(samples: int) -> Any:
    return jacobian_penalty(same, torch.ones(1, 2), generator=torch.Generator(), samples=samples)


def batches(samples: int, size: int) -> Any:
    return minibatches(lambda w, u, i: u, samples, size)


# What makes a thing of one value, the legal values at its limits, and the first illegal ones.
LIMITS: dict[str, tuple[Callable[[Any], Any], list[Any], list[Any]]] = {
    "Adaptive.shrink": (lambda v: Adaptive(shrink=v), [0.01, 0.99], [0.0, 1.0, NAN]),
    "Adaptive.grow": (lambda v: Adaptive(grow=v), [1.0, 1.5], [0.99]),
    "Adaptive.shorten": (lambda v: Adaptive(shorten=v), [0.01, 0.99], [0.0, 1.0]),
    "Adaptive.lengthen": (lambda v: Adaptive(lengthen=v), [1.0, 1.5], [0.99]),
    "Adaptive.trust": (lambda v: Adaptive(trust=v), [0.11, 0.99], [0.1, 1.0]),
    "Adaptive.decrease": (lambda v: Adaptive(decrease=v), [0.01, 0.49], [0.0, 0.5]),
    "Aggregated.mu": (lambda v: Aggregated(STEP, mu=v), [0, 0.99], [-0.01, 1.0]),
    "AmIGO.inner": (lambda v: AmIGO(SMALL, SMALL, SMALL, inner=v), [1], [0]),
    "AmIGO.linear": (lambda v: AmIGO(SMALL, SMALL, SMALL, linear=v), [1], [0]),
    "Anderson.memory": (lambda v: Anderson(memory=v), [1], [0]),
    "Anderson.relaxation": (lambda v: Anderson(relaxation=v), [0.01, 1.0], [0.0, 1.01]),
    "Anderson.steps": (lambda v: Anderson(steps=v), [1], [0]),
    "BOME.control": (lambda v: BOME(SMALL, 0.1, control=v), [0.01, 0.99], [0.0, 1.0]),
    "BOME.inner": (lambda v: BOME(SMALL, 0.1, inner=v), [1], [0]),
    "BOME.upper_scale": (lambda v: BOME(SMALL, 0.1, upper_scale=v), [0.01], [0.0]),
    "Broyden.growth": (lambda v: Broyden(growth=v), [1.01], [1.0, NAN]),
    "Broyden.memory": (lambda v: Broyden(memory=v), [1], [0]),
    "Damped.ridge": (lambda v: Damped(0, STEP, ridge=v), [0.0], [-0.01]),
    "DenoiserStep.weight": (lambda v: DenoiserStep(same, v), [0.01, 1.0], [0.0, 1.01]),
    "F2SA.inner": (lambda v: F2SA(SMALL, SMALL, SMALL, inner=v), [1], [0]),
    "F2SA.penalty": (lambda v: one_iteration(F2SA(SMALL, lambda k: v, SMALL)), [0.01], [0.0, NAN]),
    "F3SA.momentum": (lambda v: two_iterations(F3SA(SMALL, SMALL, SMALL, lambda k: v)), [0.01, 1.0], [0.0, 1.01]),
    "FirstOrder.steps": (lambda v: FirstOrder(v), [0], [1]),
    "GradientDescent.step_size": (GradientDescent, [0.01, 1, 10.0], [0.0, -1.0, NAN, INF, True, "1"]),
    "KrasnoselskiiMann.absolute": (lambda v: KrasnoselskiiMann(absolute=v), [0.0], [-0.01, NAN]),
    "KrasnoselskiiMann.relaxation": (lambda v: KrasnoselskiiMann(relaxation=v), [0.01, 1.0], [0.0, 1.01]),
    "KrasnoselskiiMann.steps": (lambda v: KrasnoselskiiMann(steps=v), [1], [0]),
    "KrasnoselskiiMann.tolerance": (lambda v: KrasnoselskiiMann(tolerance=v), [0.0], [-0.01, NAN]),
    "LinearisedADMM.fraction": (
        lambda v: LinearisedADMM(no_prox, no_prox, LINEAR, TARGET, fraction=v),
        [0.01, 0.99],
        [0.0, 1.0],
    ),
    "LinearisedADMM.penalty": (
        lambda v: LinearisedADMM(no_prox, no_prox, LINEAR, TARGET, penalty=v),
        [0.01, 10.0],
        [0.0],
    ),
    "Momentum.step_size": (Momentum, [0.01], [0.0]),
    "PBGD.inner": (lambda v: PBGD(SMALL, 1.0, 0.1, inner=v), [1], [0]),
    "PBGD.penalty": (lambda v: PBGD(SMALL, v, 0.1), [0.01], [0.0]),
    "PBGD.upper_scale": (lambda v: PBGD(SMALL, 1.0, 0.1, upper_scale=v), [0.01], [0.0]),
    "PDHG.fraction": (lambda v: PDHG(no_prox, no_prox, LINEAR, fraction=v), [0.01, 0.99], [0.0, 1.0]),
    "PDHG.ratio": (lambda v: PDHG(no_prox, no_prox, LINEAR, ratio=v), [0.01, 10.0], [0.0]),
    "PhantomGradient.damping": (lambda v: PhantomGradient(1, v), [0.01, 1.0], [0.0, 1.01]),
    "PhantomGradient.last": (PhantomGradient, [1], [0]),
    "Polynomial.first": (Polynomial, [0.01], [0.0, NAN]),
    "ProximalALM.penalty": (lambda v: ProximalALM(same, LINEAR, TARGET, v, 0.5), [0.01], [0.0]),
    "ProximalALM.weight": (lambda v: ProximalALM(same, LINEAR, TARGET, 0.5, v), [0.01], [0.0]),
    "ProximalGradient.fraction": (lambda v: ProximalGradient(same, 0.5, v), [0.01, 0.99], [0.0, 1.0]),
    "ProximalGradient.smoothness": (lambda v: ProximalGradient(same, v), [0.01], [0.0]),
    "Regularity.direct_lipschitz": (lambda v: rest(direct_lipschitz=v), [0.0], [-0.01, INF]),
    "Regularity.hessian_lipschitz": (lambda v: rest(hessian_lipschitz=v), [0.0], [-0.01, INF]),
    "Regularity.mixed_lipschitz": (lambda v: rest(mixed_lipschitz=v), [0.0], [-0.01, INF]),
    "Regularity.mixed_norm": (lambda v: rest(mixed_norm=v), [0.0], [-0.01, INF, NAN]),
    "Regularity.strong_convexity": (lambda v: rest(strong_convexity=v), [0.01], [0.0, NAN]),
    "Regularity.upper_lipschitz": (lambda v: rest(upper_lipschitz=v), [0.0], [-0.01, INF]),
    "Relax.amount": (lambda v: Relax(same, v), [0.01, 1.0], [0.0, 1.01]),
    "SOBA.averaging": (lambda v: one_iteration(SOBA(SMALL, SMALL, lambda k: v)), [0.01, 1.0], [0.0, 1.01]),
    "Settled.absolute": (lambda v: Settled(absolute=v), [0.0], [-0.01, NAN]),
    "Settled.products": (lambda v: Settled(products=v), [1], [0]),
    "Settled.relative": (lambda v: Settled(relative=v), [0.0, INF], [-0.01, NAN]),
    "Settled.strong_convexity": (lambda v: Settled(strong_convexity=v), [0.01, None], [0.0, NAN]),
    "StocBiO.inner": (lambda v: StocBiO(SMALL, 0.1, SMALL, inner=v), [1], [0]),
    "StocBiO.series_step": (lambda v: StocBiO(SMALL, v, SMALL), [0.01], [0.0, NAN]),
    "StocBiO.terms": (lambda v: StocBiO(SMALL, 0.1, SMALL, terms=v), [0], [-1]),
    "Truncated.last": (lambda v: Truncated(2, v, STEP), [0, 2], [-1, 3]),
    "TruncatedAdjoint.last": (TruncatedAdjoint, [1], [0]),
    "Unrolled.steps": (lambda v: Unrolled(v, STEP), [0, 1], [-1, True, 1.0]),
    "ValueFunction.order": (lambda v: ValueFunction(1.0, 1, STEP, order=v), [1, 2], [0, 3]),
    "ValueFunction.penalty": (lambda v: ValueFunction(v, 1, STEP), [0.01], [0.0, NAN]),
    "ValueFunction.steps": (lambda v: ValueFunction(1.0, v, STEP), [1], [0]),
    "gmres.restart": (lambda v: gmres(same, ONE, steps=1, tolerance=0.1, restart=v), [1], [0]),
    "graphs_within.memory": (
        lambda v: graphs_within(v, lambda k, w, u: w * u, ONE, ONE, steps=1),
        [0, 1, INF],
        [-1, NAN],
    ),
    "jacobian_penalty.samples": (penalty_of, [1], [0]),
    "minibatches.samples": (lambda v: batches(v, 3), [3, 6], [0, 2, 4]),
    "minibatches.size": (lambda v: batches(6, v), [1, 6], [0, 4, 7]),
    "nystrom.rank": (low_rank, [1, 3], [0, 4]),
    "nystrom.ridge": (lambda v: low_rank(1, v), [0.01], [0.0, NAN]),
    "replayed.keep_every": (lambda v: replay(keep_every=v), [1], [0]),
    "replayed.steps": (lambda v: replay(steps=v), [0, 1], [-1]),
    "replayed.together": (lambda v: replay(together=v), [1], [0]),
}


@pytest.mark.parametrize("name", LIMITS)
def test_the_last_legal_value_is_taken_and_the_first_illegal_one_refused(name: str) -> None:
    make, legal, illegal = LIMITS[name]
    for value in legal:
        make(value)
    for value in illegal:
        with pytest.raises(SolveError):
            make(value)
