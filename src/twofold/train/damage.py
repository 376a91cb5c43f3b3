"""The damage that a recipe can name, and how each becomes a degradation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from twofold.contracts import Degradation
from twofold.degrade import additive, blur, hadamard
from twofold.zoo import Settings

Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def _ordered(bounds: list[float]) -> list[float]:
    if bounds[0] > bounds[1]:
        raise ValueError("expected low <= high")
    return bounds


Range = Annotated[list[Amount], Field(min_length=2, max_length=2), AfterValidator(_ordered)]
Side = Annotated[int, Field(ge=3)]

NOISE_LAYOUTS = {
    "uniform": additive.uniform,
    "halves": additive.halves,
    "quadrants": additive.quadrants,
    "smooth": additive.smooth,
}


def pair(bounds: list[float]) -> tuple[float, float]:
    """A range of a recipe as degradations take it."""
    low, high = bounds
    return low, high


def _level(level: list[float]) -> list[float]:
    if level[1] > 1:
        raise ValueError("expected 0 <= low <= high <= 1; 25 grey levels are 0.098")
    return level


class Noise(Settings):
    """level: range of standard deviations on the [0, 1] scale. quantise: round to 8 bits, as a file would."""

    kind: Literal["noise"] = "noise"
    level: Annotated[Range, AfterValidator(_level)] = [0.01, 0.05]
    layout: Literal["uniform", "halves", "quadrants", "smooth"] = "uniform"
    quantise: bool = False

    def build(self, root: Path) -> Degradation:
        return additive.GaussianNoise(pair(self.level), NOISE_LAYOUTS[self.layout], self.quantise)


class SaltAndPepperSettings(Settings):
    """share: of the values that become 0 or 1."""

    kind: Literal["salt_and_pepper"] = "salt_and_pepper"
    share: Annotated[float, Field(ge=0, le=1)] = 0.1

    def build(self, root: Path) -> Degradation:
        return additive.SaltAndPepper(self.share)


class Streaks(Settings):
    """Procedural rain. Ranges as in `additive.RainStreaks`."""

    kind: Literal["streaks"] = "streaks"
    angle: list[float] = [-25.0, 25.0]
    spread: Amount = 1.5
    length: Range = [15.0, 45.0]
    width: Range = [0.9, 2.2]
    density: Range = [0.05, 0.8]
    strength: Range = [0.25, 0.7]
    layers: Annotated[int, Field(ge=1)] = 3
    mist: Range = [0.0, 0.0]

    def build(self, root: Path) -> Degradation:
        return additive.RainStreaks(
            angle=pair(self.angle),
            spread=self.spread,
            length=pair(self.length),
            width=pair(self.width),
            density=pair(self.density),
            strength=pair(self.strength),
            layers=self.layers,
            mist=pair(self.mist),
        )


class Shake(Settings):
    """A shaking hand. extent: range of the path's longest side, in pixels."""

    kind: Literal["shake"] = "shake"
    size: Side = 37
    extent: Range = [5.0, 27.0]

    def build(self, root: Path) -> blur.Kernels:
        return blur.CameraShake(size=self.size, extent=pair(self.extent))


class KernelFiles(Settings):
    """Kernels below the data root: a folder of kernel files, one such file, or a `.mat` file of several."""

    kind: Literal["files"] = "files"
    path: str

    def build(self, root: Path) -> blur.Kernels:
        return blur.Given(blur.read_kernels(root / self.path))


class GaussianBlur(Settings):
    """deviation: range, in pixels."""

    kind: Literal["gaussian"] = "gaussian"
    size: Side = 37
    deviation: Range = [0.6, 3.0]

    def build(self, root: Path) -> blur.Kernels:
        return blur.Gaussian(size=self.size, deviation=pair(self.deviation))


class Defocus(Settings):
    """radius: range, in pixels."""

    kind: Literal["disc"] = "disc"
    size: Side = 37
    radius: Range = [1.0, 8.0]

    def build(self, root: Path) -> blur.Kernels:
        return blur.Disc(size=self.size, radius=pair(self.radius))


class Motion(Settings):
    """Straight motion. length: range, in pixels."""

    kind: Literal["line"] = "line"
    size: Side = 37
    length: Range = [3.0, 21.0]

    def build(self, root: Path) -> blur.Kernels:
        return blur.Line(size=self.size, length=pair(self.length))


KernelSpec = Annotated[Shake | KernelFiles | GaussianBlur | Defocus | Motion, Field(discriminator="kind")]


class Blurred(Settings):
    """y = k * x + n, where it is fully known. Sources that are mixed need kernels of one size."""

    kind: Literal["blur"] = "blur"
    kernels: KernelSpec = Shake()
    noise: Noise = Noise()

    def build(self, root: Path) -> blur.Blur:
        return blur.Blur(self.kernels.build(root), self.noise.build(root))


class Hazy(Settings):
    """beta: range of the density, on a depth of about 1 at the far end. airlight: range of its grey level. near: range
    of the depth at the lower border, where depth is drawn.
    """

    kind: Literal["haze"] = "haze"
    beta: Range = [0.4, 2.0]
    airlight: Range = [0.7, 1.0]
    tint: Amount = 0.03
    near: Range = [0.03, 0.2]

    def build(self, root: Path) -> hadamard.Haze:
        source = hadamard.OutdoorDepth(near=pair(self.near))
        return hadamard.Haze(beta=pair(self.beta), airlight=pair(self.airlight), tint=self.tint, source=source)


class Dark(Settings):
    """exposure: range of the mean illumination, in linear light. shot, read: ranges of the camera's noise."""

    kind: Literal["lowlight"] = "lowlight"
    exposure: Range = [0.01, 0.15]
    unevenness: Amount = 0.6
    cast: Amount = 0.15
    shot: Range = [1e-5, 4e-4]
    read: Range = [2e-4, 2e-3]

    def build(self, root: Path) -> hadamard.LowLight:
        return hadamard.LowLight(
            exposure=pair(self.exposure),
            unevenness=self.unevenness,
            cast=self.cast,
            shot=pair(self.shot),
            read=pair(self.read),
        )


class Water(Settings):
    """distance, column: ranges in metres, to the farthest point and up to the surface. light: of the veiling light.
    kept: share of the distance that stays, as clear blue water.
    """

    kind: Literal["underwater"] = "underwater"
    distance: Range = [1.0, 10.0]
    column: Range = [0.5, 6.0]
    light: Range = [0.5, 0.9]
    kept: Amount = 0.0

    def build(self, root: Path) -> hadamard.Underwater:
        return hadamard.Underwater(
            distance=pair(self.distance), column=pair(self.column), light=pair(self.light), kept=self.kept
        )
