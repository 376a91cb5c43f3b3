"""Damage that multiplies: y = u ∘ x + b. Haze, low light and water, with what caused it as guidance."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from twofold.contracts import ImageError, Sample, check_images
from twofold.degrade.additive import uniform_between
from twofold.settings import Amount, Chosen, Every, Interval, Range, Rate

# Attenuation of daylight in water, 1/m, at 600, 525 and 475 nm (for red, green, blue): Jerlov 1976, table XXVII.
# I to III are oceans, 1 to 9 coasts of growing turbidity.
WATER_TYPES: dict[str, tuple[float, float, float]] = {
    "I": (0.235, 0.043, 0.018),
    "IA": (0.240, 0.048, 0.025),
    "IB": (0.245, 0.054, 0.033),
    "II": (0.260, 0.076, 0.062),
    "III": (0.295, 0.116, 0.116),
    "1": (0.300, 0.130, 0.170),
    "3": (0.330, 0.200, 0.290),
    "5": (0.400, 0.310, 0.430),
    "7": (0.480, 0.490, 0.710),
    "9": (0.600, 0.780, 1.230),
}

OCEAN_COLUMN = 20.0  # metres of clear water that make daylight as blue as the background of a good photograph


class DepthSource(Protocol):
    """Draws a depth map `(1, 1, H, W)` without measured depth."""

    def __call__(self, height: int, width: int, generator: torch.Generator) -> Tensor: ...


@dataclass(frozen=True)
class OutdoorDepth:
    """A made-up view out of doors: ground to a horizon, things standing on it, sky behind, everything a little uneven.

    The ground of a camera at unit height is 1 / (angle below the horizon) away; things are upright, so they have the
    depth of the ground at their foot. Depth is in units of `far`, the distance of the sky: values lie in (0, 1]. It
    has no relation to the picture it is put on; use true depth where there is any.

    horizon: range of its height in the picture, 0 the top; a crop may well show ground or sky alone. things: most of
    them. near: range of the depth at the lower border.
    """

    horizon: Interval = (-0.2, 0.6)
    things: Every = 6
    near: Range = (0.03, 0.2)

    def __call__(self, height: int, width: int, generator: torch.Generator) -> Tensor:
        down = torch.linspace(0, 1, height)[:, None].expand(height, width)
        across = torch.linspace(0, 1, width)
        horizon, near = uniform_between(generator, *self.horizon), uniform_between(generator, *self.near)
        scale = near * (1 - horizon)  # the lower border has depth `near`

        def ground(rows: Tensor | float) -> Tensor:
            return (scale / (torch.as_tensor(rows) - horizon).clamp_min(1e-3)).clamp(max=1.0)

        depth = ground(down)
        for _ in range(int(torch.randint(self.things + 1, (), generator=generator))):
            foot = uniform_between(generator, max(horizon, 0.0), 1.2)
            middle, half = uniform_between(generator, 0.0, 1.0), uniform_between(generator, 0.03, 0.3)
            top = foot - uniform_between(generator, 0.1, 0.9)
            outline = top + 0.1 * smooth_noise(1, width, generator)[0, 0, 0]  # tree or roof: not a straight edge
            inside = ((across - middle).abs() < half) & (down > outline) & (down < foot)
            depth = torch.where(inside, torch.minimum(depth, ground(foot)), depth)
        uneven = torch.exp(0.15 * smooth_noise(height, width, generator)[0, 0])
        return (depth * uneven).clamp(1e-3, 1.0)[None, None]


@dataclass(frozen=True)
class Haze:
    """y = x t + A (1 - t) with transmission t = exp(-beta d): clean `(B, 3, H, W)` → sample with the depth d as
    guidance.

    depth: `(B, 1, H, W)`, positive, at the call; else drawn from `source` for each picture. It is divided by `far` to
    give d, so d is about 1 at the far end of a typical picture, the same unit at training and in use: pass 10 for
    metres indoors, 1 for depth that is already normalised. `guidance` is d, without beta, which the network has to
    tell from the haze itself.

    beta: range; of ITS (0.6 to 1.8) by default, on d. airlight: range of its grey level. tint: how far a channel of
    the airlight may lie from that level. far: the depth that counts as 1. source: how depth is synthesized.
    """

    beta: Range = (0.6, 1.8)
    airlight: Range = (0.7, 1.0)
    tint: Amount = 0.03
    far: Rate = 1.0
    source: Annotated[DepthSource, Chosen(OutdoorDepth)] = OutdoorDepth()
    kind: Literal["haze"] = field(default="haze", kw_only=True, repr=False)

    def __call__(self, clean: Tensor, generator: torch.Generator, *, depth: Tensor | None = None) -> Sample:
        clean = check_images(clean, name="clean")
        depth = depth_for(clean, depth, self.far, self.source, generator)
        beta = uniform_per_sample(self.beta, clean, generator)
        shift = torch.rand(len(clean), clean.shape[1], 1, 1, generator=generator).to(clean)
        airlight = (uniform_per_sample(self.airlight, clean, generator) + self.tint * (2 * shift - 1)).clamp(0, 1)
        return Sample(clean, through(clean, torch.exp(-beta * depth), airlight), depth)


# The densities of RESIDE's outdoor part: airlight 0.8 to 1 and beta 0.04 to 0.2 for depths up to about 10, so 0.4 to
# 2 on d.
OUTDOOR_HAZE = Haze(beta=(0.4, 2.0), airlight=(0.8, 1.0))


@dataclass(frozen=True)
class Underwater:
    """Water between the camera and the scene, and above it: clean `(B, 3, H, W)` → sample with the distance as
    guidance.

    y_c = x_c L_c t_c + B_c (1 - t_c), t_c = exp(-beta_c distance), L_c = exp(-beta_c column) the daylight that
    reached the scene, and B_c the veiling light: bluish or greenish since it went through the column too. beta is one
    of `WATER_TYPES`, drawn for each picture. The same coefficients are used along and down, and no light is blurred:
    a simplification.

    types: names of water types. distance: range of the farthest point, in metres; column: range of the depth under the
    surface. light: range of the veiling light's brightness. source: how depth is synthesized. `guidance` is the
    distance divided by 10 m. depth at the call is in metres; else it is drawn from `source` and scaled to `distance`.
    kept: share of the distance that the sample's `clean` is seen through, in the clearest ocean, without the cast of
    daylight and as bright as before: photographers take the colour off their subject and leave the blue behind it, and
    so do the references of real pairs. At 0 `clean` is the picture itself.
    """

    types: tuple[str, ...] = ("I", "IA", "IB", "II", "III", "1", "3", "5", "7")
    distance: Range = (1.0, 10.0)
    column: Range = (0.5, 6.0)
    light: Range = (0.5, 0.9)
    source: Annotated[DepthSource, Chosen(OutdoorDepth)] = OutdoorDepth()
    kept: Amount = 0.0
    kind: Literal["underwater"] = field(default="underwater", kw_only=True, repr=False)

    def __post_init__(self) -> None:
        for name in self.types:
            if name not in WATER_TYPES:
                raise ImageError(f"water type: {name!r} is unknown; choose from {', '.join(WATER_TYPES)}")

    def __call__(self, clean: Tensor, generator: torch.Generator, *, depth: Tensor | None = None) -> Sample:
        clean = check_images(clean, channels=3, name="clean")
        drawn = depth is None
        metres = depth_for(clean, depth, 1.0, self.source, generator)
        if drawn:
            metres = metres * uniform_per_sample(self.distance, clean, generator)
        table = torch.tensor([WATER_TYPES[name] for name in self.types]).to(clean)
        chosen = torch.randint(len(table), (len(clean),), generator=generator)
        beta = table[chosen.to(clean.device)][:, :, None, None]
        daylight = torch.exp(-beta * uniform_per_sample(self.column, clean, generator))
        # A camera's exposure and white balance make up for part of the darkness: the brightest channel keeps its level.
        daylight = daylight / daylight.amax(1, keepdim=True)
        light = uniform_per_sample(self.light, clean, generator)
        observed = through(clean * daylight, torch.exp(-beta * metres), light * daylight)
        if self.kept:
            ocean = torch.tensor(WATER_TYPES["I"]).to(clean)[:, None, None]
            blue = torch.exp(-ocean * OCEAN_COLUMN)
            kept = through(clean, torch.exp(-ocean * self.kept * metres), light * blue)
            # Exposed as brightly as the picture was: red is lost, but photographs are exposed for it.
            gain = clean.mean((1, 2, 3), keepdim=True) / kept.mean((1, 2, 3), keepdim=True).clamp_min(1e-6)
            clean = (kept * gain).clamp(0, 1)
        return Sample(clean, observed, metres / 10)


@dataclass(frozen=True)
class LowLight:
    """A photograph taken with too little light: clean `(B, C, H, W)` → sample with the illumination `(B, 1, H, W)` as
    guidance.

    The picture is made linear (gamma 2.2), multiplied by an uneven illumination and a colour cast, given the noise of
    few photons (variance `shot` times the signal) and of the sensor (`read`), and encoded again. `guidance` is the
    exposure that was lost, in stops of the encoded picture: observed = clean / 2^guidance but for cast, noise and
    clipping.

    exposure: range of the mean illumination in linear light. unevenness: largest relative swing over the picture.
    cast: how far a channel may lie from grey. shot, read: ranges, on the scale where white is 1.
    """

    exposure: Range = (0.01, 0.15)
    unevenness: Amount = 0.6
    cast: Amount = 0.15
    shot: Range = (1e-5, 4e-4)
    read: Range = (2e-4, 2e-3)
    kind: Literal["lowlight"] = field(default="lowlight", kw_only=True, repr=False)

    def __call__(self, clean: Tensor, generator: torch.Generator) -> Sample:
        clean = check_images(clean, name="clean")
        height, width = clean.shape[-2:]
        swing = torch.cat([smooth_noise(height, width, generator) for _ in range(len(clean))]).to(clean)
        illumination = uniform_per_sample(self.exposure, clean, generator) * torch.exp(self.unevenness * swing)
        illumination = illumination.clamp(max=1.0)
        gain = torch.rand(len(clean), clean.shape[1], 1, 1, generator=generator).to(clean)
        light = clean.clamp(0, 1) ** 2.2 * illumination * (1 + self.cast * (2 * gain - 1))
        noise = torch.randn(clean.shape, generator=generator).to(clean)
        variance = (
            uniform_per_sample(self.shot, clean, generator) * light
            + uniform_per_sample(self.read, clean, generator) ** 2
        )
        observed = (light + noise * variance.sqrt()).clamp(0, 1) ** (1 / 2.2)
        return Sample(clean, observed, -illumination.log2() / 2.2)


def exposure(observed: Tensor, clean: Tensor, *, deviation: float = 12.0, least: float = 1 / 255) -> Tensor:
    """By how many stops `observed (B, C, H, W)` is darker than `clean`, `(B, 1, H, W)`, at least 0.

    log2 of the ratio of both brightnesses, each blurred by a Gaussian (deviation in pixels), so that noise and small
    shifts between the two do not count; `least` is added to both.
    """
    bright, dark = (blurred(image.mean(1, keepdim=True), deviation) + least for image in (clean, observed))
    return (bright / dark).log2().clamp(min=0)


def blurred(images: Tensor, deviation: float) -> Tensor:
    """Gaussian blur of `(B, 1, H, W)`; the border's pixels go on outside."""
    side = 2 * round(3 * deviation) + 1
    taps = torch.exp(-((torch.arange(side, device=images.device) - side // 2) ** 2) / (2 * deviation**2))
    taps = (taps / taps.sum()).to(images)[None, None, None]
    padded = F.pad(images, (side // 2,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, taps), taps.mT)


def through(scene: Tensor, transmission: Tensor, light: Tensor) -> Tensor:
    """What is seen of a scene through a medium that lets `transmission` pass and adds its own light: x t + A (1 - t),
    elementwise.

    >>> through(torch.tensor(0.2), torch.tensor(0.5), torch.tensor(0.9))
    tensor(0.5500)
    """
    return scene * transmission + light * (1 - transmission)


def uniform_per_sample(bounds: tuple[float, float], like: Tensor, generator: torch.Generator) -> Tensor:
    """A number between the bounds for every picture of the batch: `(B, 1, 1, 1)`."""
    low, high = bounds
    draw = torch.rand(len(like), 1, 1, 1, generator=generator)
    return (low + (high - low) * draw).to(like)


def depth_for(
    clean: Tensor, depth: Tensor | None, far: float, source: DepthSource, generator: torch.Generator
) -> Tensor:
    """The given depth, checked and in units of `far`, or one drawn for every picture: `(B, 1, H, W)`."""
    batch, _, height, width = clean.shape
    if depth is None:
        return torch.cat([source(height, width, generator) for _ in range(batch)]).to(clean)
    if depth.shape != (batch, 1, height, width):
        raise ImageError(f"depth: expected {(batch, 1, height, width)} to match the picture, got {tuple(depth.shape)}")
    if not torch.isfinite(depth).all() or float(depth.min()) <= 0:
        raise ImageError(
            f"depth: must be positive and finite, least is {float(depth.min()):g}; fill what is unknown (often 0) first"
        )
    return (depth / far).to(clean)


def smooth_noise(height: int, width: int, generator: torch.Generator, *, coarsest: int = 3, octaves: int = 3) -> Tensor:
    """`(1, 1, height, width)`: smooth random structure with mean near 0 and values mostly in [-1, 1]."""
    out = torch.zeros(1, 1, height, width)
    for octave in range(octaves):
        cells = coarsest * 2**octave
        draw = torch.randn(1, 1, cells, cells, generator=generator)
        out = out + 0.5 ** (octave + 1) * F.interpolate(draw, size=(height, width), mode="bicubic", align_corners=True)
    return out
