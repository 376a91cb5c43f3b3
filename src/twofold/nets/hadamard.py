"""The Hadamard network (Zhu et al. 2022, §2.1): y = u ⊗ v is undone by u = y ⊘ v, on features, seven times over.

One structure for two networks. A `Cell` says which module stands at each place: mixtures of candidates make the network
that is searched (`twofold.space.supernet`), single operations the network that was found
(`twofold.space.genotype`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from twofold.contracts import ImageError
from twofold.nets import Network
from twofold.tiling import Area, areas, mirrored, padded

GUARD = 1e-2  # the least divisor: one unit amplifies a hundredfold at most
PIECE = 192  # side of a piece of a large picture, in blocks of 4×4 pixels


class Place(NamedTuple):
    """Where in the skeleton a module sits.

    group: "encoder", "unit1", "unit2", …, or "decoder". row: position in the group along the data; in a unit, the
    numerator's operations come before the divisor's. inputs: channels coming in.
    """

    group: str
    row: int
    inputs: int

    @property
    def in_unit(self) -> bool:
        """Whether this is a place of a Hadamard unit; the others are of the feature convert modules."""
        return self.group.startswith("unit")


Cell = Callable[[Place, int], nn.Module]  # (where, outgoing channels) → a module that keeps height and width


def paper_divisor(v: Tensor) -> Tensor:
    """sigmoid(ReLU(v)), elementwise, in [1/2, 1): as published; a unit at most doubles, above the guard always.

    >>> paper_divisor(torch.tensor([-20.0, 0.0]))
    tensor([0.5000, 0.5000])
    """
    return torch.sigmoid(F.relu(v)).clamp(min=GUARD)


def sigmoid_divisor(v: Tensor) -> Tensor:
    """sigmoid(v), elementwise, at least `GUARD`: amplifies up to 100 times. Its gradient is 0 for v < −4.6.

    >>> sigmoid_divisor(torch.tensor([-20.0, 0.0]))
    tensor([0.0100, 0.5000])
    """
    return torch.sigmoid(v).clamp(min=GUARD)


def softplus_divisor(v: Tensor) -> Tensor:
    """softplus(v) + `GUARD`, elementwise: amplifies and attenuates; its gradient is nowhere 0.

    >>> softplus_divisor(torch.tensor([-20.0, 0.0]))
    tensor([0.0100, 0.7031])
    """
    return F.softplus(v) + GUARD


Combine = Callable[[Tensor, Tensor], Tensor]  # outputs of both branches, before their last ReLU → the unit's output


@dataclass(frozen=True)
class Divide:
    """ReLU(u) ⊘ divisor(v), elementwise (Zhu et al. 2022, eq. 1), in float32 or finer: 16 bits lose the dark parts."""

    divisor: Callable[[Tensor], Tensor] = paper_divisor

    def __call__(self, u: Tensor, v: Tensor) -> Tensor:
        with torch.autocast(device_type=u.device.type, enabled=False):
            wide = torch.promote_types(u.dtype, torch.float32)
            return (F.relu(u).to(wide) / self.divisor(v.to(wide))).to(u.dtype)


def subtract_branches(u: Tensor, v: Tensor) -> Tensor:
    """ReLU(u) − ReLU(v), elementwise: the ablation that has both branches but no division."""
    return F.relu(u) - F.relu(v)


COMBINATIONS: dict[str, Combine | None] = {  # their names in recipes and model cards
    "divide": Divide(),
    "divide-sigmoid": Divide(sigmoid_divisor),
    "divide-softplus": Divide(softplus_divisor),
    "subtract": subtract_branches,
    "none": None,
}


class FeatureNorm(nn.Module):
    """`(B, C, H, W)` → the same with mean 0 and variance 1 in every channel of every picture; nothing is learned.

    Each pixel of the result depends on the whole picture.
    """

    eps = 1e-5

    def forward(self, features: Tensor) -> Tensor:
        # A group norm is the fastest of torch's four ways in both memory layouts, and takes a single pixel. In bfloat16
        # its gradient takes nine times as long as in float32.
        with torch.autocast(device_type=features.device.type, enabled=False):
            wide = features.to(torch.promote_types(features.dtype, torch.float32))
            return torch.group_norm(wide, features.shape[1], eps=self.eps).to(features.dtype)

    def of_strips(self, strips: list[Moments]) -> Callable[[Tensor], Tensor]:
        """The same as a function of a part of the features, by the moments of all their strips."""
        pixels, mean, variance = (torch.stack(values) for values in zip(*strips, strict=True))
        share = pixels / pixels.sum(0)
        center = (share * mean).sum(0)
        variance = (share * (variance + (mean - center).square())).sum(0)
        scale = (variance + self.eps).rsqrt()

        def normalize(part: Tensor) -> Tensor:
            wide = torch.promote_types(part.dtype, torch.float32)
            return (part - center.to(wide)).mul_(scale.to(wide)).to(part.dtype)

        return normalize


class Moments(NamedTuple):
    """Pixels, mean and variance `(B, C, 1, 1)` of a strip, in float64."""

    pixels: Tensor
    mean: Tensor
    variance: Tensor

    @classmethod
    def of(cls, strip: Tensor) -> Moments:
        wide = strip.to(torch.promote_types(strip.dtype, torch.float32))
        mean = wide.mean((2, 3), keepdim=True)
        variance = (wide - mean).square_().mean((2, 3), keepdim=True)
        return cls(torch.full_like(mean, strip[0, 0].numel()).double(), mean.double(), variance.double())


def strips(features: Tensor, least: int = 1) -> Iterator[Area]:
    """Cuts features `(B, C, H, W)` into strips as wide as they are, at least `least` rows high except for the last."""
    height, width = features.shape[2:]
    return areas(height, width, max(4 * PIECE**2 // width, least), width)


class Branch(nn.Module):
    """F `(B, C, H, W)` → F + norm(op(ReLU(norm(op(… F))))): R_u or R_v of a unit, before its last ReLU."""

    def __init__(self, operations: list[nn.Module]) -> None:
        super().__init__()
        self.operations = nn.ModuleList(operations)
        self.norm = nn.ModuleList(FeatureNorm() for _ in operations)

    def forward(self, features: Tensor) -> Tensor:
        inner = features
        for n, (operation, norm) in enumerate(zip(self.operations, self.norm, strict=True)):
            inner = norm(operation(F.relu(inner) if n else inner))
        return features + inner

    def in_strips(self, features: Tensor) -> Tensor:
        """`forward` of `(B, C, H, W)` without gradients, in one map besides `features`: an operation writes over its
        input, strip by strip, each strip after the next one has been computed; norm and ReLU are computed where they
        are read.
        """
        inner = torch.empty_like(features)
        normalize: Callable[[Tensor], Tensor] | None = None
        for operation, norm in zip(self.operations, self.norm, strict=True):
            assert isinstance(norm, FeatureNorm)
            halo, moments = radius_of(operation), list[Moments]()
            waiting: tuple[Area, Tensor] | None = None
            for strip in strips(features, least=halo):
                seen = strip.grown(halo, *features.shape[2:])
                part = F.relu(normalize(seen.of(inner))) if normalize else seen.of(features)
                part = strip.within(seen).of(operation(part))
                moments.append(Moments.of(part))
                if waiting:
                    waiting[0].of(inner).copy_(waiting[1])
                waiting = strip, part
            assert waiting is not None
            waiting[0].of(inner).copy_(waiting[1])
            normalize = norm.of_strips(moments)
        for strip in strips(features):
            strip.of(inner).copy_(strip.of(features) + normalize(strip.of(inner)) if normalize else strip.of(features))
        return inner


class HadamardUnit(nn.Module):
    """F `(B, C, H, W)` → ReLU(R_u(F)) ⊘ divisor(R_v(F)); without a divisor branch, ReLU(R_u(F))."""

    def __init__(self, numerator: Branch, divisor: Branch | None, combine: Combine | None) -> None:
        super().__init__()
        self.numerator = numerator
        self.divisor = divisor
        self.combine = combine

    @property
    def radius(self) -> int:
        """Of the receptive field, in pixels at quarter size."""
        return max(radius_of(self.numerator), 0 if self.divisor is None else radius_of(self.divisor))

    def forward(self, features: Tensor) -> Tensor:
        u: Tensor = self.numerator(features)
        if self.divisor is None or self.combine is None:
            return F.relu(u)
        return self.combine(u, self.divisor(features))

    def in_strips(self, features: Tensor) -> Tensor:
        """`forward` of `(B, C, H, W)` without gradients, in two maps besides `features`."""
        u = self.numerator.in_strips(features)
        if self.divisor is None or self.combine is None:
            return F.relu_(u)
        v = self.divisor.in_strips(features)
        for strip in strips(features):
            strip.of(u).copy_(self.combine(strip.of(u), strip.of(v)))
        return u


class ResidualBlock(nn.Module):
    """F `(B, C, H, W)` → F + op(ReLU(op(F))): half of a feature convert module."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first = first
        self.second = second

    def forward(self, features: Tensor) -> Tensor:
        inner: Tensor = self.second(F.relu(self.first(features)))
        return features + inner


class HadamardNet(Network):
    """observed `(B, 3, H, W)` → restored `(B, 3, H, W)`, not clamped; sizes from 1×1 on.

    cell: the module of each place. width: channels at half and quarter size, where the units are; full size has half of
    it. units: Hadamard units in a row. ops_per_branch: 4 as in the authors' program (their Fig. 2 draws 3). combine:
    how a unit combines its branches; None leaves the divisor branch out (8 operations in the other one then keep the
    number of parameters). checkpointed: training keeps only the inputs of units and blocks and computes the rest twice;
    the same gradients from a third of the memory, at a third more time. border: pixels of its mirror image that an
    image is padded with on every side in evaluation mode, and that are cut off again. Zeros outside the image reach far
    in through so many layers; in small training crops they reach everywhere and are learned, but along the border of a
    large image they would show.

    Instance norm makes every output pixel depend on all of the picture, hence `halo = None`. But only the units have
    one, at a sixteenth of the pixels: without gradients, the units of a large picture hold three whole maps at a time,
    and what comes before and after them is computed in pieces, the encoder twice, with the same result.
    """

    halo: int | None = None
    multiple = 4

    def __init__(
        self,
        cell: Cell,
        *,
        width: int = 32,
        units: int = 7,
        ops_per_branch: int = 4,
        combine: Combine | None = COMBINATIONS["divide"],
        checkpointed: bool = False,
        border: int = 0,
    ) -> None:
        super().__init__()
        half = width // 2
        self.border = border
        self.ops_per_branch = ops_per_branch
        self.checkpointed = checkpointed

        def blocks(group: str, first_row: int, channels: int) -> nn.Sequential:
            ops = [cell(Place(group, first_row + n, channels), channels) for n in range(4)]
            return nn.Sequential(ResidualBlock(*ops[:2]), ResidualBlock(*ops[2:]))

        def branch(group: str, first_row: int) -> Branch:
            return Branch([cell(Place(group, first_row + n, width), width) for n in range(ops_per_branch)])

        def unit(n: int) -> HadamardUnit:
            group = f"unit{n + 1}"
            divisor = None if combine is None else branch(group, ops_per_branch)
            return HadamardUnit(branch(group, 0), divisor, combine)

        self.head = cell(Place("encoder", 0, 3), half)
        self.encode_full = blocks("encoder", 1, half)
        self.down_half = nn.Conv2d(half, width, 2, stride=2, bias=False)
        self.encode_half = blocks("encoder", 5, width)
        self.down_quarter = nn.Conv2d(width, width, 2, stride=2, bias=False)
        self.units = nn.ModuleList(unit(n) for n in range(units))
        self.up_half = nn.ConvTranspose2d(width, width, 2, stride=2, bias=False)
        self.decode_half = blocks("decoder", 0, width)
        self.up_full = nn.ConvTranspose2d(width, half, 2, stride=2, bias=False)
        self.decode_full = blocks("decoder", 4, half)
        self.tail = cell(Place("decoder", 8, half), 3)

    def forward(self, observed: Tensor, guidance: Tensor | None = None) -> Tensor:
        """Raises: ImageError for a guidance map; this network finds the hidden factor v by itself."""
        if guidance is not None:
            raise ImageError("the Hadamard network takes no guidance map, got one; call it with the picture alone")
        height, width = observed.shape[2:]
        border = 0 if self.training else self.border
        rows, columns = (-(-(length + 2 * border) // self.multiple) for length in (height, width))
        if not torch.is_grad_enabled() and rows * columns > PIECE**2:
            restored = self._in_pieces(observed, border, rows, columns)
        else:
            half, quarter = self.encode(padded(observed, self.multiple, border))
            restored = self.decode(half, self._chain(self.units, quarter) + quarter)
        return restored[:, :, border : border + height, border : border + width]

    def encode(self, observed: Tensor) -> tuple[Tensor, Tensor]:
        """`(B, 3, H, W)` → features at half and at quarter size, `(B, width, H / 2, W / 2)` and `(B, width, H / 4, W /
        4)`.
        """
        half = self.down_half(self._chain(self.encode_full, self.head(observed)))
        return half, self.down_quarter(self._chain(self.encode_half, half))

    def decode(self, half: Tensor, features: Tensor) -> Tensor:
        """The restored image `(B, 3, H, W)` from features at half size and, after the units, at quarter size."""
        features = self._chain(self.decode_half, self.up_half(features))
        features = self._chain(self.decode_full, self.up_full(features + half))
        # The last sum is of float32: bfloat16 would round the picture itself to 8 bits, unevenly.
        with torch.autocast(device_type=features.device.type, enabled=False):
            restored: Tensor = self.tail(features.to(torch.promote_types(features.dtype, torch.float32)))
        return restored

    def _in_pieces(self, observed: Tensor, border: int, height: int, width: int) -> Tensor:
        """The same of the picture with its border; height × width are those at quarter size."""

        def reach(*parts: nn.Module, half: nn.Module) -> int:
            return -(-(sum(map(radius_of, parts)) + 2 * radius_of(half) + 3) // 4)  # + 3: a pixel sees its whole block

        read = reach(self.head, self.encode_full, half=self.encode_half)
        drawn = reach(self.decode_full, self.tail, half=self.decode_half)

        def encoded(area: Area) -> tuple[Tensor, Tensor]:
            seen = area.grown(read, height, width)
            part = mirrored(observed, -1, 4 * seen.left - border, 4 * seen.right - border)
            half, quarter = self.encode(mirrored(part, -2, 4 * seen.top - border, 4 * seen.bottom - border))
            inside = area.within(seen)
            return inside.of(half, 2), inside.of(quarter)

        features: Tensor | None = None
        restored: Tensor | None = None
        for area in areas(height, width, PIECE, PIECE):
            quarter = encoded(area)[1]
            if features is None:
                features = _whole(quarter, height, width)
            area.of(features).copy_(quarter)
        assert features is not None
        for unit in self.units:
            assert isinstance(unit, HadamardUnit)
            features = unit.in_strips(features)
        for area in areas(height, width, PIECE, PIECE):
            seen = area.grown(drawn, height, width)
            half, quarter = encoded(seen)
            piece = self.decode(half, seen.of(features) + quarter)
            if restored is None:
                restored = piece.new_empty((*piece.shape[:2], 4 * height, 4 * width))
            area.of(restored, 4).copy_(area.within(seen).of(piece, 4))
        assert restored is not None
        return restored

    def _chain(self, parts: Iterable[nn.Module], features: Tensor) -> Tensor:
        for part in parts:
            features = _recomputed(part, features) if self.checkpointed and torch.is_grad_enabled() else part(features)
        return features


def _recomputed(part: nn.Module, features: Tensor) -> Tensor:
    """`part(features)`, whose inside is not kept but computed again in the backward pass.

    The parameters of this moment are part of what is kept: under `torch.func.functional_call` the module holds others
    by the time the backward pass runs, and the gradient would silently be that of another network.
    """
    parameters = dict(part.named_parameters())

    def compute(features: Tensor, *tensors: Tensor) -> Tensor:
        result: Tensor = torch.func.functional_call(part, dict(zip(parameters, tensors, strict=True)), (features,))
        return result

    result: Tensor = checkpoint(compute, features, *parameters.values(), use_reentrant=False, preserve_rng_state=False)
    return result


def radius_of(part: nn.Module) -> int:
    """Receptive-field radius of a chain of modules; the smallest parts say theirs as `radius`."""
    own = getattr(part, "radius", None)
    return own if isinstance(own, int) else sum(map(radius_of, part.children()))


def _whole(part: Tensor, height: int, width: int) -> Tensor:
    """An empty map of height × width with the channels, dtype and memory layout of a part of it."""
    last = part.stride(1) == 1
    layout = torch.channels_last if last else torch.contiguous_format
    return torch.empty((*part.shape[:2], height, width), dtype=part.dtype, device=part.device, memory_format=layout)
