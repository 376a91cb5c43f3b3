"""The mathematics of two levels: fixed points, adjoints, hypergradients. Knows tensors, never sees an image.

Everything in `__all__` is public and is imported from here: `from twofold.solve import fixed_point, hypergradient`.
The modules hold more, for those who write a solver, a strategy or an operator of their own.
"""

from twofold.solve.adjoint import Adjoint, Implicit, OneStep, TruncatedAdjoint, UnrolledAdjoint
from twofold.solve.adjoint_equation import AdjointError, Iterated, NeumannSeries, NormalEquations
from twofold.solve.dynamics import Adam, Bilevel, Dynamics, FixedPointSteps, GradientDescent, Momentum, lower_solution
from twofold.solve.fixed_points import fixed_point
from twofold.solve.hypergradients import Cost, Hypergradient, Strategy, hypergradient
from twofold.solve.implicit import ConjugateGradient, Neumann, Settled
from twofold.solve.linear import (
    Blocks,
    Euclidean,
    Linearised,
    LinearMap,
    Metric,
    PrimalDual,
    Scaled,
    conjugate_gradient,
    convolution_map,
    matrix_map,
)
from twofold.solve.lipschitz import circular_conv_norm, conv_norm_bound, conv_norm_every_size
from twofold.solve.meta import Aggregated, Constant, Geometric, Harmonic, Round, StepSchedule, aggregated_step, rounds
from twofold.solve.modules import as_function
from twofold.solve.multipliers import PDHG, LinearisedADMM, LinearisedALM, ProximalALM
from twofold.solve.operators import (
    Blockwise,
    Compose,
    DataProx,
    DenoiserStep,
    Operator,
    ProximalGradient,
    Relax,
    SumProx,
    contraction_factor,
    metric_of,
    no_prox,
    positive,
    soft_threshold,
    stretch,
    unit_interval,
)
from twofold.solve.params import SolveError, State
from twofold.solve.second_order import CentralDifference, Cross, Exact
from twofold.solve.solvers import Anderson, KrasnoselskiiMann, NotConverged, Solution, Solver, iterate
from twofold.solve.strategies import FirstOrder, OneStepUnrolled, Truncated, Unrolled

__all__ = [
    "PDHG",
    "Adam",
    "Adjoint",
    "AdjointError",
    "Aggregated",
    "Anderson",
    "Bilevel",
    "Blocks",
    "Blockwise",
    "CentralDifference",
    "Compose",
    "ConjugateGradient",
    "Constant",
    "Cost",
    "Cross",
    "DataProx",
    "DenoiserStep",
    "Dynamics",
    "Euclidean",
    "Exact",
    "FirstOrder",
    "FixedPointSteps",
    "Geometric",
    "GradientDescent",
    "Harmonic",
    "Hypergradient",
    "Implicit",
    "Iterated",
    "KrasnoselskiiMann",
    "LinearMap",
    "Linearised",
    "LinearisedADMM",
    "LinearisedALM",
    "Metric",
    "Momentum",
    "Neumann",
    "NeumannSeries",
    "NormalEquations",
    "NotConverged",
    "OneStep",
    "OneStepUnrolled",
    "Operator",
    "PrimalDual",
    "ProximalALM",
    "ProximalGradient",
    "Relax",
    "Round",
    "Scaled",
    "Settled",
    "Solution",
    "SolveError",
    "Solver",
    "State",
    "StepSchedule",
    "Strategy",
    "SumProx",
    "Truncated",
    "TruncatedAdjoint",
    "Unrolled",
    "UnrolledAdjoint",
    "aggregated_step",
    "as_function",
    "circular_conv_norm",
    "conjugate_gradient",
    "contraction_factor",
    "conv_norm_bound",
    "conv_norm_every_size",
    "convolution_map",
    "fixed_point",
    "hypergradient",
    "iterate",
    "lower_solution",
    "matrix_map",
    "metric_of",
    "no_prox",
    "positive",
    "rounds",
    "soft_threshold",
    "stretch",
    "unit_interval",
]
