"""jaxopt as a peer of benchmarks/bilevel.py: the three problems once more in jax, on the same data.

One compiled function a problem, a hypergradient and the next start, is shared by all seeds (their data are arguments),
so that no measured run compiles. One thread, float64.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

from torch import Tensor

from bilevel_problems import DECAY, STEPS, Case

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")

Losses = tuple[Callable[..., Any], Callable[..., Any]]


def quadratics() -> Losses:
    def upper(w: Any, u: Any, data: Any) -> Any:
        _, _, c = data
        return ((u - c) ** 2).sum() / 2 + 0.25 * (w**2).sum()

    def lower(u: Any, w: Any, data: Any) -> Any:
        a, b, _ = data
        return u @ a @ u / 2 - u @ (b @ w)

    return upper, lower


def regularisation() -> Losses:
    import jax
    import jax.numpy as jnp

    def upper(w: Any, u: Any, data: Any) -> Any:
        _, _, x, y = data
        return jax.nn.softplus(-y * (x @ u)).mean()

    def lower(u: Any, w: Any, data: Any) -> Any:
        x, y, _, _ = data
        return jax.nn.softplus(-y * (x @ u)).mean() + (jnp.exp(w) * u**2).sum() / 2

    return upper, lower


def cleaning() -> Losses:
    import jax
    import jax.numpy as jnp

    def entropy(x: Any, u: Any, label: Any) -> Any:
        scores = jax.nn.log_softmax(x @ u.reshape(x.shape[1], 10))
        return -jnp.take_along_axis(scores, label[:, None], 1)[:, 0]

    def upper(w: Any, u: Any, data: Any) -> Any:
        _, _, x, digit = data
        return entropy(x, u, digit).mean()

    def lower(u: Any, w: Any, data: Any) -> Any:
        x, label, _, _ = data
        return (entropy(x, u, label) * jax.nn.sigmoid(w)).mean() + DECAY * (u**2).sum() / 2

    return upper, lower


@cache
def hypergradient(name: str, implicit: bool) -> Callable[..., Any]:
    """(w, u, data, smoothness) → gradient in w and the lower parameters after `STEPS` steps, compiled."""
    import jax
    import jaxopt

    jax.config.update("jax_enable_x64", True)
    upper, lower = {"quadratics": quadratics, "regularisation": regularisation, "cleaning": cleaning}[name]()

    def reached(w: Any, u: Any, data: Any, smoothness: Any) -> tuple[Any, Any]:
        solver = jaxopt.GradientDescent(
            lambda u, w, data: lower(u, w, data) / smoothness,
            stepsize=1.0,  # a number, or it would be compiled anew for every seed
            maxiter=STEPS,
            tol=-1.0,  # 0 would stop at the start of the quadratics, which is a minimum, with no step to differentiate
            acceleration=False,
            implicit_diff=implicit,
            implicit_diff_solve=partial(jaxopt.linear_solve.solve_cg, maxiter=STEPS, tol=1e-6),
            unroll=not implicit,
        )
        u = solver.run(u, w, data).params
        return upper(w, u, data), u

    made: Callable[..., Any] = jax.jit(jax.grad(reached, has_aux=True))
    return made


def follow(case: Case, step: float, *, implicit: bool) -> Iterator[tuple[int, int, Tensor]]:
    """Gradients, products and w after each upper step: plain gradient descent on w, warm starts."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import torch

    jax.config.update("jax_enable_x64", True)
    differentiate = hypergradient(case.name, implicit)
    data = tuple(jnp.asarray(part.numpy()) for part in case.data)
    w, u = jnp.asarray(case.upper.numpy()), jnp.asarray(case.lower.numpy())
    for k in range(1, 1_000_000):
        g, u = differentiate(w, u, data, case.smoothness)
        w = w - step * g
        # Conjugate gradients take a product an iteration, and one more pulls the answer back to w.
        yield k * (STEPS + 1), k * (STEPS + implicit), torch.from_numpy(np.array(w))
