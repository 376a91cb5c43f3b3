"""The mathematics of two levels: fixed points, adjoints, hypergradients. Knows tensors, never sees an image.

Everything in `__all__` is public and is imported from here: `from twofold.solve import fixed_point, hypergradient`.
The modules hold more, for those who write a solver, a strategy or an operator of their own.
"""

from twofold.solve.adaptive import Adaptive, Certified, Descent, Regularity, adaptive_descent, certified
from twofold.solve.adjoint import Adjoint, Implicit, OneStep, TruncatedAdjoint, UnrolledAdjoint
from twofold.solve.adjoint_equation import AdjointError, Iterated, NeumannSeries, NormalEquations
from twofold.solve.damped import CG, GMRES, Damped, FullHessian, GaussNewton, MinRes, NystromInverse
from twofold.solve.dynamics import (
    Adam,
    AdamW,
    Bilevel,
    Dynamics,
    FixedPointSteps,
    GradientDescent,
    Momentum,
    RMSprop,
    lower_solution,
)
from twofold.solve.equilibrium import Broyden, PhantomGradient, jacobian_penalty
from twofold.solve.first_order import BOME, F2SA, F3SA, PBGD
from twofold.solve.fixed_points import fixed_point
from twofold.solve.hypergradients import Cost, Hypergradient, Strategy, hypergradient
from twofold.solve.implicit import ConjugateGradient, Neumann, Settled
from twofold.solve.krylov import gmres, minres, nystrom
from twofold.solve.levels import AdaptedOneStep, settled_loss, shared
from twofold.solve.linear import (
    Blocks,
    Euclidean,
    Linearised,
    LinearMap,
    Metric,
    PrimalDual,
    Scaled,
    conjugate_gradient,
    matrix_map,
)
from twofold.solve.meta import Aggregated, Constant, Geometric, Harmonic, Round, StepSchedule, aggregated_step, rounds
from twofold.solve.modules import as_function
from twofold.solve.multipliers import PDHG, LinearisedADMM, LinearisedALM, ProximalALM
from twofold.solve.operators import (
    Blockwise,
    Compose,
    DenoiserStep,
    Operator,
    ProximalGradient,
    Relax,
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
from twofold.solve.stochastic import SABA, SOBA, AmIGO, StocBiO
from twofold.solve.strategies import FirstOrder, OneStepUnrolled, ThroughFixedPoint, Truncated, Unrolled
from twofold.solve.streams import Calls, FiniteSum, Method, Polynomial, Stream, Turn, descend, minibatches, whole
from twofold.solve.value_function import ValueFunction

__all__ = [
    "BOME",
    "CG",
    "F2SA",
    "F3SA",
    "GMRES",
    "PBGD",
    "PDHG",
    "SABA",
    "SOBA",
    "Adam",
    "AdamW",
    "AdaptedOneStep",
    "Adaptive",
    "Adjoint",
    "AdjointError",
    "Aggregated",
    "AmIGO",
    "Anderson",
    "Bilevel",
    "Blocks",
    "Blockwise",
    "Broyden",
    "Calls",
    "CentralDifference",
    "Certified",
    "Compose",
    "ConjugateGradient",
    "Constant",
    "Cost",
    "Cross",
    "Damped",
    "DenoiserStep",
    "Descent",
    "Dynamics",
    "Euclidean",
    "Exact",
    "FiniteSum",
    "FirstOrder",
    "FixedPointSteps",
    "FullHessian",
    "GaussNewton",
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
    "Method",
    "Metric",
    "MinRes",
    "Momentum",
    "Neumann",
    "NeumannSeries",
    "NormalEquations",
    "NotConverged",
    "NystromInverse",
    "OneStep",
    "OneStepUnrolled",
    "Operator",
    "PhantomGradient",
    "Polynomial",
    "PrimalDual",
    "ProximalALM",
    "ProximalGradient",
    "RMSprop",
    "Regularity",
    "Relax",
    "Round",
    "Scaled",
    "Settled",
    "Solution",
    "SolveError",
    "Solver",
    "State",
    "StepSchedule",
    "StocBiO",
    "Strategy",
    "Stream",
    "ThroughFixedPoint",
    "Truncated",
    "TruncatedAdjoint",
    "Turn",
    "Unrolled",
    "UnrolledAdjoint",
    "ValueFunction",
    "adaptive_descent",
    "aggregated_step",
    "as_function",
    "certified",
    "conjugate_gradient",
    "contraction_factor",
    "descend",
    "fixed_point",
    "gmres",
    "hypergradient",
    "iterate",
    "jacobian_penalty",
    "lower_solution",
    "matrix_map",
    "metric_of",
    "minibatches",
    "minres",
    "no_prox",
    "nystrom",
    "positive",
    "rounds",
    "settled_loss",
    "shared",
    "soft_threshold",
    "stretch",
    "unit_interval",
    "whole",
]
