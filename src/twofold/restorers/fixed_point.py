"""Restorers whose picture is a fixed point u = T(u; w): T is a closed-form step on the data, then learned denoisers.

With certified denoisers (`NonExpansiveDenoiser`) T is averaged whatever the weights are, so the iteration settles
however long it runs; with others nothing is promised. The schemes of Krasnoselskii-Mann type in Liu et al. 2022, whose
operators are here an inference from the abstract (docs/bmo.md).
"""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twofold.contracts import ImageError, Inputs, Restored, Restorer
from twofold.nets.denoiser import NonExpansiveDenoiser
from twofold.nets.fourier import Border, DataProx, EdgeTaper, crop, full_precision, margin
from twofold.nets.lipschitz import conv_norm_every_size
from twofold.solve import (
    Adjoint,
    Ball,
    Blocks,
    Blockwise,
    Compose,
    DenoiserStep,
    KrasnoselskiiMann,
    LinearisedADMM,
    LinearMap,
    Operator,
    Scaled,
    Solver,
    State,
    UnrolledAdjoint,
    fixed_point,
    soft_threshold,
    unit_interval,
)
from twofold.solve.linear import Number, metric_norm, require_within
from twofold.solve.params import over


class Problem(NamedTuple):
    """What one batch of observed pictures asks for: the operator, where to start, and how a state shows a picture.

    slope: an upper bound of how much `image` stretches distances, from the operator's metric to the Euclidean norm.
    project: onto U, a convex bounded set, in the operator's metric; None for no bounds.
    """

    operator: Operator
    start: State
    image: Callable[[State], Tensor]
    slope: float = 1.0
    project: Callable[[State], State] | None = None


class FixedPointRestorer(nn.Module, Restorer):
    """observed `(B, C, H, W)` → the picture at the fixed point, with the solve's `Solution` as the report.

    It has no halo: the iteration carries what one pixel knows across the whole picture.

    solver: how far and how the iteration runs; T is averaged here, so Picard's iteration (relaxation 1) is right.
    adjoint: how a gradient passes through it, where one is asked for. Neither holds weights: change them at any time.
    """

    forward = Restorer.__call__
    solver: Solver = KrasnoselskiiMann(relaxation=1.0, steps=100, tolerance=1e-4)
    adjoint: Adjoint = UnrolledAdjoint()

    @abstractmethod
    def problem(self, observed: Tensor, kernel: Tensor | None = None) -> Problem:
        """The operator holds the weights: what it computes can be differentiated in them."""

    def _restored(self, observed: Tensor, inputs: Inputs) -> Restored:
        problem = self.problem(observed, inputs.kernel)
        # How far the iteration came is part of the answer: an image short of the tolerance is still an image.
        solution = fixed_point(problem.operator, problem.start, solver=self.solver, adjoint=self.adjoint, throw=False)
        return Restored(problem.image(solution.value), report=solution)


def _each_colour(border: Border, observed: Tensor, kernel: Tensor | None) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """`observed` `(B, C, H, W)` extended beyond its border as grey images `(B C, 1, H', W')`, a kernel for each, and
    the frame that `crop` takes off again.
    """
    if kernel is None:
        raise ImageError("deconvolution needs the blur kernel (1, 1, h, w); pass it as kernel=")
    extended = border.extend(observed, kernel)
    kernels = kernel.expand(len(observed), -1, -1, -1).repeat_interleave(observed.shape[1], 0)
    return extended.flatten(0, 1)[:, None], kernels, margin(extended, observed)


class Deconvolution(FixedPointRestorer):
    """T = denoiser ∘ argmin_x ½‖k ∗ x − observed‖² + ρ/2 ‖x − u‖², each colour by itself. kernel: `(B or 1, 1, h, w)`.

    The data step is a division in the Fourier domain and never expands. denoiser: `(B, 1, H, W)` to the same.
    penalty: ρ at the start, learned. border: what lies beyond the picture.
    """

    channels = 1
    takes_kernel = True

    def __init__(self, denoiser: nn.Module, *, penalty: float = 0.02, border: Border = EdgeTaper()) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.border = border
        self.log_penalty = nn.Parameter(torch.tensor(penalty).log())

    @property
    def penalty(self) -> Tensor:
        return self.log_penalty.exp()

    def problem(self, observed: Tensor, kernel: Tensor | None = None) -> Problem:
        batch, colours = observed.shape[:2]
        grey, kernels, frame = _each_colour(self.border, observed, kernel)
        parts = (DataProx(grey, kernels, self.penalty), DenoiserStep(steady(self.denoiser), weight=1.0))

        def image(u: State) -> Tensor:
            return crop(u.reshape(batch, colours, *u.shape[-2:]), *frame)

        return Problem(Compose(parts), grey, image, project=bounded)


class SplitDeconvolution(FixedPointRestorer):
    """T = linearised ADMM ∘ denoiser, both non-expansive in one metric G that is not the identity.

    The ADMM is that of min over x of ½‖k ∗ x − observed‖² + threshold ‖E‖₁ subject to D x + E = 0, D the differences of
    neighbours (total variation): u = (x, E, λ), G = diag(I/τ − βDᵀD, βI, I/β). Its first block is diagonal in Fourier
    space, so its root is a formula, and the denoiser N acts on x as G^(−1/2) N G^(1/2): non-expansive in G wherever N
    is in the Euclidean norm. N by itself may expand in G, since it can move energy to frequencies of more weight.

    denoiser, border: as in `Deconvolution`. penalty: β, threshold: of E, fraction: of the longest step τ; all three at
    the start, learned. Each colour by itself. kernel: `(B or 1, 1, h, w)`.
    """

    channels = 1
    takes_kernel = True

    def __init__(
        self,
        denoiser: nn.Module,
        *,
        penalty: float = 0.004,
        threshold: float = 0.001,
        fraction: float = 0.9,
        border: Border = EdgeTaper(),
    ) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.border = border
        self.log_penalty = nn.Parameter(torch.tensor(penalty).log())
        self.log_threshold = nn.Parameter(torch.tensor(threshold).log())
        self.raw_fraction = nn.Parameter(torch.tensor(fraction / 0.99).logit())

    def problem(self, observed: Tensor, kernel: Tensor | None = None) -> Problem:
        batch, colours = observed.shape[:2]
        grey, kernels, frame = _each_colour(self.border, observed, kernel)
        penalty, threshold = self.log_penalty.exp(), self.log_threshold.exp()
        differences = LinearMap(neighbours, neighbours_adjoint, math.sqrt(8))
        step = unit_interval(self.raw_fraction) / (penalty * differences.norm**2)
        data = DataProx(grey, kernels, 1 / step)
        numeric = LinearisedADMM(
            lambda v, _: data(v),
            lambda v, length: soft_threshold(v, threshold * length),
            differences,
            grey.new_zeros(()),
            penalty,
            unit_interval(self.raw_fraction),
        )
        first = Circulant(1 / step - penalty * neighbours_power(grey))
        net = steady(self.denoiser)

        def denoise(u: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
            return first.root(net(first.root(u[0], 0.5)), -0.5), u[1], u[2]

        metric = Blocks((first, Scaled(penalty), Scaled(1 / penalty)))
        start = grey, -neighbours(grey), torch.zeros_like(neighbours(grey))
        with torch.no_grad():
            # λ never exceeds the threshold: after a step it is a projection onto [−threshold, threshold].
            longest = 3 * metric_norm(metric, (*start[:2], start[2] + threshold), per_sample=True)

        def image(u: State) -> Tensor:
            return crop(u[0].reshape(batch, colours, *grey.shape[-2:]), *frame)

        slope = float(first.floor.detach()) ** -0.5
        return Problem(Compose((denoise, numeric), metric), start, image, slope, Ball(metric, longest))


@dataclass(frozen=True, eq=False)
class Circulant:
    """G = F⁻¹ diag(gains) F on pictures `(B, 1, H, W)`: with circular borders, so inverse and roots are formulas.

    gains: > 0 `(H, W // 2 + 1)`, one for each frequency of `torch.fft.rfft2`.

    >>> G = Circulant(torch.full((4, 3), 4.0))
    >>> G.solve(torch.full((1, 1, 4, 4), 8.0))[0, 0, 0], G.root(torch.ones(1, 1, 4, 4), 0.5)[0, 0, 0]
    (tensor([2., 2., 2., 2.]), tensor([2., 2., 2., 2.]))
    """

    gains: Tensor

    @property
    def floor(self) -> Tensor:
        return self.gains.min()

    def apply(self, v: Tensor) -> Tensor:
        return self.root(v, 1.0)

    def solve(self, v: Tensor) -> Tensor:
        return self.root(v, -1.0)

    def root(self, v: Tensor, power: float) -> Tensor:
        """G^power v, for images `(B, C, H, W)`."""
        found: Tensor = torch.fft.irfft2(torch.fft.rfft2(full_precision(v)) * self.gains**power, s=v.shape[-2:])
        return found.to(v.dtype)


def neighbours(x: Tensor) -> Tensor:
    """`(B, 1, H, W)` → differences to the pixel above and to the left, `(B, 2, H, W)`, circular.

    >>> neighbours(torch.tensor([[[[1.0, 3.0]]]]))
    tensor([[[[ 0.,  0.]],
    <BLANKLINE>
             [[-2.,  2.]]]])
    """
    return torch.cat([x - x.roll(1, -2), x - x.roll(1, -1)], 1)


def neighbours_adjoint(y: Tensor) -> Tensor:
    """The adjoint of `neighbours`, `(B, 2, H, W)` → `(B, 1, H, W)`."""
    down, across = y[:, :1], y[:, 1:]
    return down - down.roll(-1, -2) + across - across.roll(-1, -1)


def neighbours_power(like: Tensor) -> Tensor:
    """|D̂|² of `neighbours` at each frequency, `(H, W // 2 + 1)`: at most 8."""
    height, width = like.shape[-2:]
    down = (math.pi * torch.fft.fftfreq(height, dtype=like.dtype, device=like.device)).sin().square()
    across = (math.pi * torch.fft.rfftfreq(width, dtype=like.dtype, device=like.device)).sin().square()
    power: Tensor = 4 * (down[:, None] + across)
    return power


def bounded(u: State) -> State:
    """Every entry into [−1, 2], pictures and what overshoots them: a projection, exact where the metric is diagonal.

    >>> bounded((torch.tensor([-4.0, 0.5]), torch.tensor([2.5])))
    (tensor([-1.0000,  0.5000]), tensor([2.]))
    """
    return over(lambda x: x.clamp(-1, 2), u)


@dataclass(frozen=True, eq=False)
class SumProx:
    """The proximal step of ½‖observed − Σ layers‖²: every layer takes an equal share of what is missing.

    Non-expansive, with a Lipschitz constant of exactly 1: what moves between layers does not change their sum.

    observed: `(B, C, H, W)`, the state a tuple of m such layers. penalty: ρ > 0; the share is 1 / (ρ + m).

    >>> SumProx(torch.full((1, 1), 4.0), penalty=2.0)((torch.zeros(1, 1), torch.zeros(1, 1)))
    (tensor([[1.]]), tensor([[1.]]))
    """

    observed: Tensor
    penalty: Number

    def __post_init__(self) -> None:
        require_within(self.penalty, low=0, name="penalty")

    def __call__(self, layers: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        missing = self.observed - sum(layers[1:], start=layers[0])
        share = missing / (self.penalty + len(layers))
        return tuple(layer + share for layer in layers)


class RainLayers(FixedPointRestorer):
    """Two layers, u = (picture, rain): T = denoisers of each layer ∘ prox of ½‖observed − picture − rain‖².

    The prox hands both layers an equal share of what is missing. Its Lipschitz constant is exactly 1: what moves
    between the layers is invisible to their sum, and the denoisers alone decide whose it is. The rain layer is kept
    ≥ 0, a projection, which never expands. picture, rain: `(B, C, H, W)` to the same. penalty: at the start, learned.
    """

    def __init__(self, picture: nn.Module, rain: nn.Module, *, penalty: float = 0.5) -> None:
        super().__init__()
        self.picture, self.rain = picture, rain
        self.log_penalty = nn.Parameter(torch.tensor(penalty).log())

    @property
    def penalty(self) -> Tensor:
        return self.log_penalty.exp()

    def problem(self, observed: Tensor, kernel: Tensor | None = None) -> Problem:
        picture, rain = steady(self.picture), steady(self.rain)
        layers = Blockwise((DenoiserStep(picture, weight=1.0), DenoiserStep(lambda n: F.relu(rain(n)), weight=1.0)))
        parts = (SumProx(observed, self.penalty), layers)
        start = observed, torch.zeros_like(observed)
        return Problem(Compose(parts), start, lambda u: u[0], project=bounded)


class RidgeDenoiser(nn.Module):
    """x `(B, C, H, W)` ↦ x − Wᵀ clip(W x, ±t), `layers` times: certified non-expansive, and quick to learn.

    Each layer is a gradient step of length 1 on the convex prior Σ h_t((W x)_i), h_t Huber's function of slope at most
    t, with ‖W‖ ≤ 1: firmly non-expansive. Shallow, so weaker than a deep network without a certificate; and stronger
    here than a certified stack of ReLU layers (`NonExpansiveDenoiser`), which shrinks detail at each layer.

    filters, size: of W. keep_mean: filters ignore a constant, so that brightness stays; without it they can also
    shrink the whole layer towards 0, as is right for rain. Pictures must not be smaller than a filter.
    """

    multiple = 1

    def __init__(
        self, *, channels: int = 1, filters: int = 24, size: int = 5, layers: int = 1, keep_mean: bool = True
    ) -> None:
        super().__init__()
        self.halo = layers * (size - 1)
        self.keep_mean = keep_mean
        self.filters = nn.ParameterList(torch.randn(filters, channels, size, size) for _ in range(layers))
        self.log_bends = nn.ParameterList(torch.full((filters, 1, 1), 0.01).log() for _ in range(layers))

    def certified_weights(self) -> list[Tensor]:
        """W of each layer, of norm at most 1 at every picture size."""
        filters = [full_precision(w) for w in self.filters]
        if self.keep_mean:
            filters = [w - w.mean((2, 3), keepdim=True) for w in filters]
        return [w / conv_norm_every_size(w) for w in filters]

    def forward(self, x: Tensor, weights: list[Tensor] | None = None) -> Tensor:
        for W, bend in zip(self.certified_weights() if weights is None else weights, self.log_bends, strict=True):
            W, t = W.to(x.dtype), bend.exp().to(x.dtype)
            # Without padding: no edge is seen where the picture ends, and a part of a map stretches no more than it.
            x = x - F.conv_transpose2d(F.conv2d(x, W).clamp(-t, t), W)
        return x


def steady(denoiser: nn.Module) -> Callable[[Tensor], Tensor]:
    """The denoiser for one solve: its certificate is computed once here instead of at every step.

    The certificate costs more than a small network's convolutions.
    """
    if isinstance(denoiser, RidgeDenoiser):
        return partial(denoiser, weights=denoiser.certified_weights())
    if not isinstance(denoiser, NonExpansiveDenoiser):
        return denoiser
    weights = denoiser.certified_weights()
    held = copy.copy(denoiser)  # shares every parameter
    held.certified_weights = lambda: weights  # type: ignore[method-assign]
    return held


def starting_as_identity(denoiser: NonExpansiveDenoiser, *, noise: float = 0.05) -> NonExpansiveDenoiser:
    """The same denoiser, its first channel now passing the picture through and the rest small: it learns in a tenth of
    the time. For pictures ≥ 0, which ReLU lets pass. Draws from torch's global generator.

    >>> net = starting_as_identity(NonExpansiveDenoiser(guidance=0, width=4, layers=2), noise=0.0)
    >>> bool((net(torch.full((1, 1, 8, 8), 0.5)) - 0.5).abs().max() < 0.05)
    True
    """
    with torch.no_grad():
        for layer in denoiser.layers:
            weight: Any = layer.weight
            weight.normal_(0, noise)
            middle = weight.shape[-1] // 2
            for colour in range(denoiser.layers[-1].weight.shape[0]):  # type: ignore[index]
                weight[colour, colour, middle, middle] += 1
    return denoiser
