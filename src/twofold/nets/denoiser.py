"""Denoisers to put inside an iteration: a plain stack of convolutions, and one that is certified not to expand.

Neither has BatchNorm: its statistics depend on the batch, and a scale it learns can make a step expansive without a
weight showing it.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twofold.nets import Network
from twofold.nets.fourier import full_precision
from twofold.nets.lipschitz import conv_norm_every_size


class Denoiser(Network):
    """image `(B, C, H, W)` and noise level `(B, G, H, W)` → image minus the noise the network sees in it, `(B, C, H,
    W)`.

    layers: 3×3 convolutions with ReLU between them; 9 and 6 are the general and the tiny denoiser of Gao et al. 2022,
    §5.1.2. Grey, width 64 and with a noise map they have 260,289 and 149,505 parameters (576 fewer without the map).
    guidance: channels of the noise map; 0 for a blind denoiser, which is then called with the image alone.
    """

    multiple = 1

    def __init__(self, *, channels: int = 1, guidance: int = 1, width: int = 64, layers: int = 9) -> None:
        super().__init__()
        if layers < 2:
            raise ValueError(f"layers: a denoiser needs at least 2, got {layers}")
        sizes = [channels + guidance, *[width] * (layers - 1), channels]
        self.guidance = guidance
        self.halo = layers
        self.layers = nn.ModuleList(nn.Conv2d(n_in, n_out, 3, padding=1) for n_in, n_out in pairwise(sizes))
        for layer in self.layers:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        nn.init.zeros_(self.layers[-1].weight)  # type: ignore[arg-type]  # starts as the identity

    def forward(self, image: Tensor, noise_level: Tensor | None = None) -> Tensor:
        x = image if noise_level is None else torch.cat([image, noise_level], 1)
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        denoised: Tensor = image - self.layers[-1](x)
        return denoised


class NonExpansiveDenoiser(nn.Module):
    """A denoiser with ‖D(x, s) − D(y, s)‖ ≤ ‖x − y‖ for all images x, y of one size and any s, whatever its weights
    are.

    D = (1 − a) x + a N(x, s). N is a stack of convolutions, each divided by an upper bound of its operator norm, with
    ReLU (non-expansive) between them. A convex combination of non-expansive maps is non-expansive, and for a < 1
    averaged, which is what makes Krasnoselskii-Mann iterations with it converge.

    The bound is that of the convolution, for every size and for zero or circular padding (`conv_norm_every_size`).
    The spectral norm of the weight reshaped to a matrix, which `torch.nn.utils.parametrizations.spectral_norm`
    divides by, can be three times too small for a 3×3 kernel and certifies nothing.

    averaging: a in (0, 1]. padding: what lies beyond the border. The certificate costs quality: prefer `Denoiser` where
    convergence is not the point.
    """

    multiple = 1

    def __init__(
        self,
        *,
        channels: int = 1,
        guidance: int = 1,
        width: int = 32,
        layers: int = 6,
        averaging: float = 0.9,
        padding: Literal["zeros", "circular"] = "zeros",
    ) -> None:
        super().__init__()
        if layers < 2 or not 0 < averaging <= 1:
            raise ValueError(f"expected at least 2 layers and averaging in (0, 1], got {layers} and {averaging}")
        sizes = [channels + guidance, *[width] * (layers - 1), channels]
        self.guidance = guidance
        self.halo = layers
        self.averaging = averaging
        self.padding = "constant" if padding == "zeros" else padding
        self.layers = nn.ModuleList(nn.Conv2d(n_in, n_out, 3) for n_in, n_out in pairwise(sizes))
        for layer in self.layers:
            nn.init.orthogonal_(layer.weight)  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def certified_weights(self) -> list[Tensor]:
        """One weight a layer, of operator norm at most 1: what `forward` convolves with."""
        # 16 frequencies a side: the bound is at most 4 % above the truth and costs a few milliseconds a layer.
        # It divides even small weights, since a shrinking stack of convolutions forgets the picture.
        weights: list[Tensor] = [full_precision(layer.weight) for layer in self.layers]  # type: ignore[arg-type]
        return [weight / conv_norm_every_size(weight, grid=16).clamp_min(1e-6) for weight in weights]

    def forward(self, image: Tensor, noise_level: Tensor | None = None) -> Tensor:
        x = image if noise_level is None else torch.cat([image, noise_level], 1)
        for place, (layer, weight) in enumerate(zip(self.layers, self.certified_weights(), strict=True)):
            padded = F.pad(x, (1, 1, 1, 1), mode=self.padding)
            x = F.conv2d(padded, weight.to(x.dtype), layer.bias)  # type: ignore[arg-type]
            if place < len(self.layers) - 1:
                x = F.relu(x)
        return image + self.averaging * (x - image)
