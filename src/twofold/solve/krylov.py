"""Linear solvers for matrices that conjugate gradients refuse: indefinite, unsymmetric, or close to low rank.

==============  ==============================  ==============================  ================================
solver          A                               memory                          what it minimises
==============  ==============================  ==============================  ================================
`minres`        symmetric, may be indefinite    a few vectors                   ‖b − A x‖
`gmres`         any                             one vector a step, to restart   ‖b − A x‖
`nystrom`       semi-definite, plus a ridge     rank vectors                    nothing: one direct formula
`refined`       the same                        rank vectors                    the error in the norm of A
==============  ==============================  ==============================  ================================

All take A as a function on trees of tensors and treat the tree as one vector.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from twofold.solve.linear import CGResult, flattened, unflattened
from twofold.solve.params import SolveError, State, axpy, dot, minus, norm, scale, tensors, zeros_like


def minres(apply: Callable[[State], State], b: State, *, steps: int, tolerance: float) -> CGResult:
    """Solves A x = b for a symmetric A, definite or not, until ‖b − A x‖ ≤ tolerance ‖b‖ or the steps are spent: the
    minimum residual method (Paige and Saunders 1975), by Lanczos vectors and plane rotations.

    For a singular A whose range holds b it finds a solution. Otherwise the residual stalls, and with further steps
    rounding makes it grow. The residual returned is computed from x once more, not carried along, so that both show.

    >>> A = torch.tensor([[2.0, 0.0], [0.0, -4.0]])
    >>> minres(lambda x: A @ x, torch.tensor([2.0, 8.0]), steps=2, tolerance=1e-6).value.round(decimals=4)
    tensor([ 1., -2.])
    """
    size = float(norm(b))
    x = zeros_like(b)
    if size == 0:
        return CGResult(x, norm(b), 0)
    tiny = torch.finfo(tensors(b)[0].dtype).eps
    v_old, v, beta = x, scale(1 / size, b), 0.0
    w_old, w = x, x
    c_old, s_old, c, s = 1.0, 0.0, 1.0, 0.0
    left, largest, done = size, 0.0, 0
    for _ in range(steps):
        done += 1
        image = apply(v)
        alpha = float(dot(v, image))
        fresh = axpy(-beta, v_old, axpy(-alpha, v, image))
        beta_next = float(norm(fresh))
        # The column (beta, alpha, beta_next) of the tridiagonal matrix after the last two rotations, and a new one.
        epsilon, across = s_old * beta, c_old * beta
        delta, gamma_bar = c * across + s * alpha, c * alpha - s * across
        gamma = (gamma_bar**2 + beta_next**2) ** 0.5
        largest = max(largest, abs(alpha) + beta + beta_next)
        if gamma <= tiny * largest:  # A is singular on what has been seen: this direction changes no residual
            break
        c_old, s_old, c, s = c, s, gamma_bar / gamma, beta_next / gamma
        w_old, w = w, scale(1 / gamma, axpy(-delta, w, axpy(-epsilon, w_old, v)))
        x = axpy(c * left, w, x)
        left = -s * left
        if abs(left) <= 0.5 * tolerance * size or beta_next <= tiny * largest:
            break
        v_old, v, beta = v, scale(1 / beta_next, fresh), beta_next
    return CGResult(x, norm(minus(b, apply(x))) / size, done)


def gmres(apply: Callable[[State], State], b: State, *, steps: int, tolerance: float, restart: int = 30) -> CGResult:
    """Solves A x = b for any A until ‖b − A x‖ ≤ tolerance ‖b‖ or the steps are spent: generalised minimum residuals
    (Saad and Schultz 1986), with Arnoldi's vectors made orthogonal twice.

    restart: vectors kept, each as large as b; then it restarts from the current iterate, which for an indefinite A may
    stall. Prefer `minres` where A is symmetric.

    >>> A = torch.tensor([[2.0, 1.0], [0.0, 4.0]])
    >>> gmres(lambda x: A @ x, torch.tensor([4.0, 8.0]), steps=2, tolerance=1e-6).value.round(decimals=4)
    tensor([1., 2.])
    """
    if restart < 1:
        raise SolveError(f"expected to keep at least one vector, got restart={restart}")
    size = float(norm(b))
    x, r, left, done = zeros_like(b), b, size, 0
    dtype = torch.float64
    while done < steps and left > tolerance * size:
        basis = [scale(1 / left, r)]
        rows = min(restart, steps - done)
        hessenberg = torch.zeros(rows + 1, rows, dtype=dtype)
        target = torch.zeros(rows + 1, dtype=dtype)
        target[0] = left
        for j in range(rows):
            done += 1
            fresh = apply(basis[j])
            before = float(norm(fresh))
            for _ in range(2):
                for i, q in enumerate(basis):
                    along = float(dot(q, fresh))
                    hessenberg[i, j] += along
                    fresh = axpy(-along, q, fresh)
            length = float(norm(fresh))
            hessenberg[j + 1, j] = length
            part = hessenberg[: j + 2, : j + 1]
            weights = torch.linalg.lstsq(part, target[: j + 2, None], driver="gelsd").solution[:, 0]
            rest = float((target[: j + 2] - part @ weights).norm())
            if rest <= 0.5 * tolerance * size or length <= torch.finfo(tensors(b)[0].dtype).eps * before:
                break
            basis.append(scale(1 / length, fresh))
        for weight, q in zip(weights.tolist(), basis, strict=False):
            x = axpy(weight, q, x)
        r = minus(b, apply(x))
        fallen, left = left, float(norm(r))
        if not left < fallen:  # a cycle that gains nothing will gain nothing the next time either
            break
    return CGResult(x, norm(r) / max(size, torch.finfo(torch.float64).tiny), done)


class Nystrom(NamedTuple):
    """A ≈ U diag(values) Uᵀ from `rank` products, and (A + ridge)⁻¹ by a formula: no iteration, no step size.

    basis: U, `(rank, n)` rows, orthonormal. values: `(rank,)`, not negative. ridge: > 0.

    >>> A = torch.diag(torch.tensor([4.0, 1.0, 0.0]))
    >>> found = nystrom(lambda x: A @ x, torch.zeros(3), rank=3, ridge=1.0, generator=torch.Generator().manual_seed(0))
    >>> found.solve(torch.tensor([5.0, 2.0, 3.0])).round(decimals=3)
    tensor([1., 1., 3.])
    """

    basis: Tensor
    values: Tensor
    ridge: float

    def solve(self, b: State) -> State:
        """(U diag(values) Uᵀ + ridge)⁻¹ b."""
        flat = _vector(b)
        along = self.basis @ flat
        # 1 / (value + ridge) on the range of U, 1 / ridge on the rest.
        change = (1 / (self.values + self.ridge) - 1 / self.ridge) * along
        return unflattened(b, (flat / self.ridge + self.basis.mT @ change)[None])


def nystrom(
    apply: Callable[[State], State], like: State, *, rank: int, ridge: float, generator: torch.Generator
) -> Nystrom:
    """The Nyström approximation of a symmetric positive semi-definite A from products with `rank` random vectors
    (Frangella, Tropp and Udell 2023; for hypergradients Hataya and Yamada 2023, with columns).

    like: a tree with the structure of A's argument. ridge: of the inverse. generator: of the vectors. The error is
    about the sum of the eigenvalues that `rank` leaves out: use it where few are large, with a ridge above the rest.

    Raises: SolveError where A has a negative eigenvalue on the vectors that exceeds rounding: then the approximation
    means nothing.

    >>> A = torch.diag(torch.tensor([4.0, -1.0]))
    >>> nystrom(lambda x: A @ x, torch.zeros(2), rank=2, ridge=1.0, generator=torch.Generator().manual_seed(0))
    Traceback (most recent call last):
    twofold.solve.params.SolveError: the matrix has a curvature of -1.0e+00 on the random vectors: Nyström's
    approximation needs a positive semi-definite one; take the Gauss-Newton product, a larger damping, or MinRes
    """
    flat = _vector(like)
    if not 1 <= rank <= len(flat) or not ridge > 0:
        raise SolveError(f"expected 1 ≤ rank ≤ {len(flat)} and ridge > 0, got rank={rank} and ridge={ridge}")
    drawn = torch.randn(len(flat), rank, dtype=flat.dtype, generator=generator).to(flat.device)
    test = torch.linalg.qr(drawn).Q
    image = torch.stack([_vector(apply(unflattened(like, column[None]))) for column in test.unbind(1)], dim=1)
    core = test.mT @ image
    curvatures = torch.linalg.eigvalsh((core + core.mT) / 2)
    precision = torch.finfo(flat.dtype).eps
    if float(curvatures[0]) < -100 * precision * float(curvatures.abs().max()) - precision:
        raise SolveError(
            f"the matrix has a curvature of {curvatures[0].item():.1e} on the random vectors: Nyström's approximation "
            "needs a positive semi-definite one; take the Gauss-Newton product, a larger damping, or MinRes"
        )
    # A shift of the size of rounding keeps Cholesky's factorisation defined; it is taken off the values again.
    shift = 10 * precision * float(torch.linalg.matrix_norm(image)) + torch.finfo(flat.dtype).tiny
    image = image + shift * test
    core = test.mT @ image
    factor = torch.linalg.cholesky((core + core.mT) / 2)
    half = torch.linalg.solve_triangular(factor, image.mT, upper=False)  # A ≈ halfᵀ half
    _, singular, basis = torch.linalg.svd(half, full_matrices=False)
    return Nystrom(basis, (singular**2 - shift).clamp_min(0), ridge)


def refined(apply: Callable[[State], State], b: State, rough: Nystrom, *, steps: int, tolerance: float) -> CGResult:
    """Solves A x = b for a positive definite A by conjugate gradients preconditioned with a Nyström approximation
    (Frangella, Tropp and Udell 2023), until ‖b − A x‖ ≤ tolerance ‖b‖ or the steps are spent. With 0
    steps x is `rough.solve(b)`.

    apply: A with its ridge, which is `rough.ridge`.

    Raises: SolveError where A has a direction of curvature ≤ 0.

    >>> A = torch.diag(torch.tensor([400.0, 1.0, 2.0]))
    >>> rough = nystrom(lambda x: A @ x, torch.zeros(3), rank=1, ridge=1.0, generator=torch.Generator().manual_seed(0))
    >>> b = torch.tensor([401.0, 2.0, 3.0])
    >>> refined(lambda x: A @ x + x, b, rough, steps=9, tolerance=1e-6).value.round(decimals=3)
    tensor([1., 1., 1.])
    """
    size = float(norm(b))
    x = rough.solve(b)
    r = minus(b, apply(x))
    z = rough.solve(r)
    p, rz, done = z, float(dot(r, z)), 0
    while done < steps and float(norm(r)) > 0.5 * tolerance * size:
        done += 1
        image = apply(p)
        curvature = float(dot(p, image))
        if not curvature > 0:
            raise SolveError(
                f"preconditioned conjugate gradients met a curvature of {curvature:.2e} ≤ 0 after {done} steps: the "
                "matrix is not positive definite; take the Gauss-Newton product, a larger damping, or MinRes"
            )
        x, r = axpy(rz / curvature, p, x), axpy(-rz / curvature, image, r)
        z = rough.solve(r)
        rz, before = float(dot(r, z)), rz
        p = axpy(rz / before, p, z)
    return CGResult(x, norm(minus(b, apply(x))) / size, done)


def _vector(tree: State) -> Tensor:
    return flattened(tree)[0]
