"""Deconvolution unfolded: a closed-form Fourier step and a learned denoiser in turn (Gao et al. 2022, §4.1).

Half-quadratic splitting of ‖k * x − y‖² + λ Φ(x). The kernel and the average noise level rule the linear step, which
must be the same everywhere to be a division in the Fourier domain; the noise *map* rules the denoiser, so noise may
vary over the picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twofold.contracts import Guidance, ImageError
from twofold.nets import Network
from twofold.nets.denoiser import Denoiser
from twofold.nets.fourier import Border, BoundaryAdjustment, crop, full_precision, inverse_step, margin, psf2otf
from twofold.nets.guide import is_function
from twofold.tiling import padded, tiled

# The weight of the prior at its start, in units of the noise variance: the denoised picture deserves more trust each
# time.
FIRST_TRUST = 30.0
TRUST_GROWTH = 3.0
RHO_FLOOR = 1e-6
# Without a map every picture is taken to have this noise (a middle of the range the paper trains on) until training
# says better.
TYPICAL_NOISE = 0.03


class PriorWeight(nn.Module):
    """Mean noise variance `(B, 1)` → rho `(B, stages)`, how much each stage trusts the denoised picture.

    rho = softplus(log variance + MLP(log variance)) + 1e-6: proportional to the variance at the start, as
    half-quadratic splitting has it, and free to leave that in training.
    """

    def __init__(self, stages: int, *, width: int = 16) -> None:
        super().__init__()
        self.hidden = nn.Linear(1, width)
        self.out = nn.Linear(width, stages)
        nn.init.zeros_(self.out.weight)
        with torch.no_grad():
            self.out.bias.copy_(torch.tensor([math.log(FIRST_TRUST * TRUST_GROWTH**s) for s in range(stages)]))

    def forward(self, variance: Tensor) -> Tensor:
        log = torch.log(variance.clamp_min(1e-8))
        return F.softplus(log + self.out(F.elu(self.hidden(log / 10)))) + RHO_FLOOR


class UnfoldedDeconvolution(Network):
    """observed `(B, C, H, W)`, noise map `(B, 1, H, W)` and kernels `(B, 1, h, w)` (or one for all) → restored `(B,
    C, H, W)`.

    Colour is restored channel by channel. The picture must be larger than the kernel; the kernel should have passed
    `degrade.blur.check_kernel`. Instead of a map, `guidance` may be a function `(observed, current) -> map`, called
    at each stage.

    stages: pairs of linear step and denoiser. shared: one denoiser for all stages. layers, width: of the paper's
    denoiser (9 general, 6 tiny). denoiser: makes another one, `(image, noise map) -> image`, with `halo` and
    `multiple`. guided: whether there is a noise map; without one it must not be passed. border: what lies beyond the
    picture. tile: at inference the denoiser runs on tiles of that side, exactly: its memory stays bounded.
    """

    halo: int | None = None  # the division sees the whole picture
    multiple = 1
    takes_kernel = True

    def __init__(
        self,
        *,
        stages: int = 3,
        layers: int = 9,
        width: int = 64,
        shared: bool = True,
        denoiser: Callable[[], nn.Module] | None = None,
        guided: bool = True,
        border: Border = BoundaryAdjustment(),
        tile: int = 768,
    ) -> None:
        super().__init__()
        if stages < 1:
            raise ValueError(f"stages: expected at least 1, got {stages}")
        self.stages = stages
        self.guided = guided
        self.border = border
        self.tile = tile
        self.prior_weight = PriorWeight(stages)
        make = denoiser or partial(Denoiser, guidance=int(guided), width=width, layers=layers)
        self.denoisers = nn.ModuleList(make() for _ in range(1 if shared else stages))

    def forward(
        self,
        observed: Tensor,
        guidance: Guidance | None = None,
        kernel: Tensor | None = None,
    ) -> Tensor:
        if kernel is None:
            raise ImageError(
                "kernel: deconvolution needs a blur kernel (B, 1, h, w), got none; pass one or estimate it"
            )
        if (guidance is None) == self.guided:
            raise ImageError(
                "guidance: this network needs a noise map (B, 1, H, W), got none"
                if self.guided
                else "guidance: this network was built without a noise map (guided=False), got one"
            )
        observed, kernel = full_precision(observed), full_precision(kernel)
        extended = image = self.border.extend(observed, kernel)
        rows, columns = margin(extended, observed)
        otf = psf2otf(kernel, (extended.shape[-2], extended.shape[-1]))
        estimate = observed
        for stage in range(self.stages):
            noise = guidance(observed, estimate) if is_function(guidance) else guidance
            with torch.autocast(observed.device.type, enabled=False):
                rho = self.rho(noise, observed)[:, stage, None, None, None]
                if stage > 0:
                    extended = self.border.renew(extended, observed, otf, image)
                image = inverse_step(extended, otf, rho, image)
            if noise is not None:
                noise = F.pad(noise, (columns, columns, rows, rows), mode="replicate")
            image = self._denoise(image, noise, self.denoisers[min(stage, len(self.denoisers) - 1)])
            estimate = crop(image, rows, columns)
        return estimate

    def rho(self, noise: Tensor | None, observed: Tensor) -> Tensor:
        """How much each stage trusts the denoised picture: `(B, stages)`, at least 1e-6."""
        if noise is None:
            variance = observed.new_full((len(observed), 1), TYPICAL_NOISE**2)
        else:
            variance = full_precision(noise).square().mean((1, 2, 3))[:, None]
        out: Tensor = self.prior_weight(variance)
        return out

    def _denoise(self, image: Tensor, noise: Tensor | None, denoiser: nn.Module) -> Tensor:
        """Channel by channel; a large picture, where nothing is to be differentiated, in tiles, which is exact."""
        batch, channels, height, width = image.shape
        x = image.reshape(batch * channels, 1, height, width)
        if noise is not None:
            x = torch.cat([x, noise.repeat_interleave(channels, 0)], 1)
        multiple: int = denoiser.multiple  # type: ignore[assignment]

        def denoised(part: Tensor) -> Tensor:
            return full_precision(denoiser(part[:, :1], None if noise is None else part[:, 1:]))

        if torch.is_grad_enabled() or max(height, width) <= self.tile:
            return denoised(padded(x, multiple))[..., :height, :width].reshape(image.shape)
        halo: int = denoiser.halo  # type: ignore[assignment]
        done = [tiled(denoised, one, halo=halo, multiple=multiple, tile=self.tile) for one in torch.split(x, 1)]
        return torch.cat(done).reshape(image.shape)
