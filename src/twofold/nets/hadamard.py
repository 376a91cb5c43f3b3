"""The Hadamard network (Zhu et al. 2022, §2.1): y = u ⊗ v is undone by u = y ⊘ v, on features, seven times over.

One structure for two networks. A `Cell` says which module stands at each place: mixtures of candidates make the network
that is searched (`twofold.space.supernet`), single operations the network that was found
(`twofold.space.genotype`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from twofold.contracts import ImageError
from twofold.nets import Network
from twofold.tiling import padded, tiled

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
    one, at a sixteenth of the pixels: without gradients, what comes before and after them is computed in pieces of a
    large picture, so that memory suffices, with the same result.
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
        whole = padded(observed, self.multiple, border)
        if not torch.is_grad_enabled() and whole.shape[2] * whole.shape[3] > (4 * PIECE) ** 2:
            restored = self._in_pieces(whole)
        else:
            half, quarter = self.encode(whole)
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

    def _in_pieces(self, observed: Tensor) -> Tensor:
        """The same on the grid of the quarter size, where a pixel holds a 4×4 block of the picture."""

        def encode(blocks: Tensor) -> Tensor:
            half, quarter = self.encode(F.pixel_shuffle(blocks, 4))
            return torch.cat([quarter, F.pixel_unshuffle(half, 2)], 1)

        def decode(features: Tensor) -> Tensor:
            quarter, half = features[:, :width], F.pixel_shuffle(features[:, width:], 2)
            return F.pixel_unshuffle(self.decode(half, quarter), 4)

        def reach(*parts: nn.Module, half: nn.Module) -> int:
            return -(-(sum(map(radius_of, parts)) + 2 * radius_of(half) + 3) // 4)  # + 3: a pixel sees its whole block

        width = self.down_quarter.out_channels
        seen = reach(self.head, self.encode_full, half=self.encode_half)
        drawn = reach(self.decode_full, self.tail, half=self.decode_half)
        features = tiled(encode, F.pixel_unshuffle(observed, 4), halo=seen, tile=PIECE)
        features[:, :width] += self._chain(self.units, features[:, :width])
        return F.pixel_shuffle(tiled(decode, features, halo=drawn, tile=PIECE), 4)

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
