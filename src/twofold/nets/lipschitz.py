"""How much a convolution can stretch a picture: its operator norm, exactly or from above.

The spectral norm of the weight reshaped to a matrix is *not* this number: it ignores that neighbouring windows
overlap. Three answers, from sharp and particular to loose and general:

=========================  =======================================  ===============================
function                   holds for                                cost
=========================  =======================================  ===============================
`circular_conv_norm`       circular padding at one size, exactly    one small eigenproblem a frequency
`conv_norm_every_size`     zero or circular padding, every size     the same on one coarse grid
`conv_norm_bound`          zero or circular padding, every size     two sums
=========================  =======================================  ===============================

Reflecting or replicating padding copies pixels, so it stretches by itself: none of these numbers covers it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def circular_conv_norm(weight: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Operator norm of the convolution with circular padding on pictures of one size, exactly; differentiable.

    A circular convolution is block diagonal in the Fourier basis, one (out, in) matrix a frequency; its norm is the
    largest singular value among them (Sedghi, Gupta and Long 2019). With zero padding the same convolution is a
    piece of the circular one on a grid that is larger by the kernel minus one, whose norm therefore bounds it.

    weight: `(out, in, h, w)`, as in `torch.nn.Conv2d` with one group and stride 1. size: H and W, at least
    the kernel's. Returns a scalar.

    Raises: ValueError for a weight that is no convolution or a size smaller than the kernel.

    >>> box = torch.full((1, 1, 3, 3), 1 / 9)              # a mean filter keeps a constant picture as it is
    >>> round(circular_conv_norm(box, 8).item(), 6)
    1.0
    >>> difference = torch.tensor([[[[1.0, -1.0]]]])       # and a difference doubles a checkerboard
    >>> circular_conv_norm(difference, (4, 4)).item()
    2.0
    """
    height, width = (size, size) if isinstance(size, int) else size
    if weight.ndim != 4:
        raise ValueError(f"expected a convolution weight (out, in, h, w), got {tuple(weight.shape)}")
    if height < weight.shape[2] or width < weight.shape[3]:
        raise ValueError(f"a {weight.shape[2]}×{weight.shape[3]} kernel does not fit the size {height}×{width}")
    # Real weights have a conjugate-symmetric spectrum: half of the frequencies hold all singular values.
    spectrum = torch.fft.rfft2(weight, s=(height, width)).permute(2, 3, 0, 1)
    wide = weight.shape[0] <= weight.shape[1]
    gram = spectrum @ spectrum.mH if wide else spectrum.mH @ spectrum
    # The smaller Gram matrix: squaring affects only the small singular values, which are not needed.
    largest: Tensor = torch.linalg.eigvalsh(gram)[..., -1].max()
    return largest.clamp_min(0).sqrt()


def conv_norm_every_size(weight: Tensor, *, grid: int = 32) -> Tensor:
    """Upper bound of the operator norm on pictures of every size, zero or circular padding; differentiable.

    The symbol of a convolution is a trigonometric polynomial of degree (h-1)/2 by (w-1)/2. By the Bernstein-Szegő
    inequality it can exceed its largest value on a grid of N points a side by at most 1 / cos(π (h-1) / (2 N)) per
    direction: 0.5 % each for a 3×3 kernel on the default grid.

    weight: `(out, in, h, w)`. grid: frequencies a side, more than h - 1 and w - 1; finer is sharper and costs more.
    Returns a scalar. Raises: ValueError for a weight that is no convolution or a grid that is too coarse.

    >>> difference = torch.tensor([[[[1.0, -1.0]]]])
    >>> round(conv_norm_every_size(difference).item(), 3)  # the truth is 2
    2.002
    """
    norm = circular_conv_norm(weight, grid)
    if grid <= max(weight.shape[2:]) - 1:
        raise ValueError(f"a grid of {grid} frequencies is too coarse for a kernel of {tuple(weight.shape[2:])}")
    slack = math.prod(math.cos(math.pi * (side - 1) / (2 * grid)) for side in weight.shape[2:])
    return norm / slack


def conv_norm_bound(weight: Tensor) -> Tensor:
    """Upper bound sqrt(‖W‖₁ ‖W‖_∞) of the operator norm, for every size, zero or circular padding; differentiable.

    ‖W‖_∞ is the largest sum of absolute weights that enter one output channel, ‖W‖₁ of those that leave one input
    channel; by Hölder the Euclidean norm is at most their geometric mean. No Fourier transform and no iteration, but
    loose for kernels whose weights alternate in sign: prefer `conv_norm_every_size` where its cost does not matter.

    weight: `(out, in, h, w)`, stride 1 or more, one group; or `(out, in)`, a linear layer. Returns a scalar.

    >>> conv_norm_bound(torch.tensor([[[[1.0, -1.0]]]])).item()
    2.0
    >>> round(conv_norm_bound(torch.tensor([[3.0, 4.0]])).item() ** 2, 3)     # the truth is 5² = 25
    28.0
    """
    if weight.ndim < 2:
        raise ValueError(f"expected a weight (out, in, ...), got {tuple(weight.shape)}")
    size = weight.abs().flatten(2).sum(-1) if weight.ndim > 2 else weight.abs()
    return (size.sum(1).max() * size.sum(0).max()).sqrt()
