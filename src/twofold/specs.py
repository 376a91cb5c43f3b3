"""Specifications of models and networks, as in recipes and headers of weight files; each has `build`.

To add a network, give it a class here and add that to `NetSpec`.
"""

from __future__ import annotations

from abc import abstractmethod
from functools import partial
from typing import Annotated, Literal

from pydantic import Field
from torch import nn

from twofold.contracts import DEPTH, EXPOSURE, NOISE_LEVEL, RAIN_REGION, GuidanceKind, Restorer
from twofold.nets import Network
from twofold.nets.denoiser import NonExpansiveDenoiser
from twofold.nets.griddehaze import GridDehazeNet
from twofold.nets.guide import Guide, UNetGuide
from twofold.nets.hadamard import COMBINATIONS
from twofold.nets.prenet import PReNet
from twofold.nets.unet import UNet
from twofold.nets.unfolded import UnfoldedDeconvolution
from twofold.restorers.classical import (
    Clahe,
    DarkChannel,
    Gamma,
    GreyWorld,
    MultiScaleRetinex,
    UnderwaterStretch,
)
from twofold.restorers.deconvolution import HyperLaplacian, RichardsonLucy, Wiener
from twofold.restorers.fixed_point import (
    Deconvolution,
    RainLayers,
    RidgeDenoiser,
    SplitDeconvolution,
    starting_as_identity,
)
from twofold.restorers.guided import Guided, Plain
from twofold.restorers.sparse_coding import LearnedALM, PatchCoding, SparseModel, cosines
from twofold.settings import Settings
from twofold.solve import KrasnoselskiiMann
from twofold.space.genotype import Genotype

GUIDANCE_KINDS = {kind.name: kind for kind in (NOISE_LEVEL, RAIN_REGION, DEPTH, EXPOSURE)}


class NetSettings(Settings):
    """The settings of a network, which they build."""

    @abstractmethod
    def build(self, channels: int, guidance: int) -> Network:
        """channels: of an image. guidance: of the map, 0 for a network that takes none.

        Raises: ValueError where the settings do not fit together.
        """


class UNetSpec(NetSettings):
    """widths: channels at each scale, finest first. blocks: residual blocks at each scale. unshuffle: factor by which
    the image is folded into channels first. context: features of a thumbnail that steer the network by the whole image;
    0 for none. output: what the last layer gives: a residual that is added, a Hadamard quotient, an exposure, or a map.
    gated: blocks multiply halves of their channels in place of ReLU.
    """

    kind: Literal["unet"] = "unet"
    widths: list[int] = [32, 64, 128]
    blocks: list[int] = [1, 1, 3]
    unshuffle: int = 1
    context: int = 0
    output: Literal["sum", "hadamard", "exposure", "map"] = "sum"
    gated: bool = False

    def build(self, channels: int, guidance: int) -> UNet:
        return UNet(
            channels=channels,
            guidance=guidance,
            widths=self.widths,
            blocks=self.blocks,
            unshuffle=self.unshuffle,
            context=self.context,
            output=self.output,
            gated=self.gated,
        )


class PReNetSpec(NetSettings):
    """recurrences: how often the recurrent block is applied. width: channels."""

    kind: Literal["prenet"] = "prenet"
    recurrences: int = 6
    width: int = 32

    def build(self, channels: int, guidance: int) -> Network:
        return PReNet(channels=channels, guidance=guidance, recurrences=self.recurrences, width=self.width)


class DeconvolutionSpec(NetSettings):
    """Grey: colour is restored channel by channel. It takes the blur kernel.

    stages: of a data step and a denoiser each. layers, width: of the paper's denoiser. shared: whether all stages share
    one denoiser. unet: another denoiser in its place.
    """

    kind: Literal["deconvolution"] = "deconvolution"
    stages: int = 3
    layers: int = 9
    width: int = 64
    shared: bool = True
    unet: UNetSpec | None = None

    def build(self, channels: int, guidance: int) -> Network:
        return UnfoldedDeconvolution(
            stages=self.stages,
            layers=self.layers,
            width=self.width,
            shared=self.shared,
            denoiser=None if self.unet is None else partial(self.unet.build, 1, guidance),
            guided=bool(guidance),
        )


class GridDehazeSpec(NetSettings):
    """width: channels of the finest row. rows, columns: of the grid; a row is a scale. growth: channels that each dense
    convolution adds. dense: convolutions of a residual dense block.
    """

    kind: Literal["griddehaze"] = "griddehaze"
    width: int = 16
    rows: int = 3
    columns: int = 6
    growth: int = 16
    dense: int = 4

    def build(self, channels: int, guidance: int) -> Network:
        return GridDehazeNet(
            channels=channels,
            guidance=guidance,
            width=self.width,
            rows=self.rows,
            columns=self.columns,
            growth=self.growth,
            dense=self.dense,
        )


Combination = Literal["divide", "divide-sigmoid", "divide-softplus", "subtract", "none"]


class GenotypeSpec(Settings):
    """The operations that a search chose, as its genotype.json has them.

    groups: operations by group of units. ops_per_branch: operations in each branch of a unit.
    """

    groups: dict[str, list[str]]
    ops_per_branch: int = 4


class HadamardSpec(NetSettings):
    """A searched network. genotype: the operations, or the file of them. width: channels. combine: how a unit combines
    its two branches. border: pixels of its mirror image around a
    picture in use; the published program has none.
    """

    kind: Literal["hadamard"] = "hadamard"
    genotype: GenotypeSpec
    width: int = 32
    combine: Combination = "divide"
    border: Annotated[int, Field(ge=0)] = 16

    def build(self, channels: int, guidance: int) -> Network:
        groups = {group: tuple(names) for group, names in self.genotype.groups.items()}
        genotype = Genotype(groups, self.genotype.ops_per_branch)
        return genotype.network(width=self.width, combine=COMBINATIONS[self.combine], border=self.border)


NetSpec = Annotated[
    UNetSpec | PReNetSpec | DeconvolutionSpec | GridDehazeSpec | HadamardSpec, Field(discriminator="kind")
]


class GuideSpec(Settings):
    """width: channels of the paper's four layers. stage: whether they also see the current estimate, at every stage.
    unet: another network in their place, with output "map".
    """

    width: int = 32
    stage: bool = False
    unet: UNetSpec | None = None

    def build(self, kind: GuidanceKind, channels: int) -> Guide | UNetGuide:
        """kind: what the map means. channels: of an image."""
        if self.unet is None:
            return Guide(kind, channels=channels, width=self.width, stage=self.stage)
        return UNetGuide(kind, self.unet.build(channels, 0), channels=channels)


class ModelSettings(Settings):
    """The settings of a model with weights, which they build."""

    @abstractmethod
    def build(self) -> Restorer:
        """A restorer with random weights. Raises: ValueError where the settings do not fit together."""


class GuidedSpec(ModelSettings):
    """A network steered by an estimated map. guidance: which quantity the map estimates. channels: of an image, 3 for
    colour or 1 for grey. guide: the network that estimates the map. net: the one that restores.
    """

    kind: Literal["guided"] = "guided"
    guidance: Literal["noise_level", "rain_region", "depth", "exposure"]
    channels: Literal[1, 3] = 3
    guide: GuideSpec = GuideSpec()
    net: NetSpec

    def build(self) -> Guided:
        guide = self.guide.build(GUIDANCE_KINDS[self.guidance], self.channels)
        return Guided(guide, self.net.build(self.channels, 1))


class PlainSpec(ModelSettings):
    """A network alone. channels: of an image, 3 for colour or 1 for grey. net: the network."""

    kind: Literal["plain"] = "plain"
    channels: Literal[1, 3] = 3
    net: NetSpec

    def build(self) -> Plain:
        return Plain(self.net.build(self.channels, 0), channels=self.channels)


class DenoiserSettings(Settings):
    """The settings of a certified denoiser, which they build."""

    @abstractmethod
    def build(self, channels: int) -> nn.Module:
        """channels: of an image."""


class RidgeSpec(DenoiserSettings):
    """A certified denoiser: a convex prior on the responses of its filters. filters, layers: how many. size: side of
    the filters, in pixels. keep_mean: whether the mean is left alone; right for an image, wrong for a layer of rain.
    """

    kind: Literal["ridge"] = "ridge"
    filters: int = 16
    size: int = 5
    layers: int = 1
    keep_mean: bool = True

    def build(self, channels: int) -> nn.Module:
        return RidgeDenoiser(
            channels=channels, filters=self.filters, size=self.size, layers=self.layers, keep_mean=self.keep_mean
        )


class NonExpansiveSpec(DenoiserSettings):
    """A certified stack of convolutions; deeper, and harder to train. width: channels. layers: convolutions."""

    kind: Literal["non_expansive"] = "non_expansive"
    width: int = 32
    layers: int = 6

    def build(self, channels: int) -> nn.Module:
        denoiser = NonExpansiveDenoiser(channels=channels, guidance=0, width=self.width, layers=self.layers)
        return starting_as_identity(denoiser)


CertifiedSpec = Annotated[RidgeSpec | NonExpansiveSpec, Field(discriminator="kind")]


def _picard(iterations: int) -> KrasnoselskiiMann:
    return KrasnoselskiiMann(relaxation=1.0, steps=iterations, tolerance=1e-4)


class FixedDeconvolutionSpec(ModelSettings):
    """The fixed point of a Fourier step and a denoiser; it takes the blur kernel. channels: 1, each colour by itself.
    denoiser: the learned part of the operator. penalty: at the start of training. iterations: at most, when restoring.
    """

    kind: Literal["fixed_deconvolution"] = "fixed_deconvolution"
    channels: Literal[1] = 1
    denoiser: CertifiedSpec = RidgeSpec(layers=2)
    penalty: float = 0.03
    iterations: int = 100

    def build(self) -> Deconvolution:
        restorer = Deconvolution(self.denoiser.build(self.channels), penalty=self.penalty)
        restorer.solver = _picard(self.iterations)
        return restorer


class SplitDeconvolutionSpec(ModelSettings):
    """The fixed point of a denoiser and linearised ADMM for total variation, in a metric that both share; it needs the
    blur kernel. channels: 1, each colour by itself. denoiser: of the image. penalty: of the splitting, at the start of
    training. threshold: of the differences of neighbours, at the start. fraction: of the longest step, at the start.
    iterations: at most, when restoring.
    """

    kind: Literal["split_deconvolution"] = "split_deconvolution"
    channels: Literal[1] = 1
    denoiser: CertifiedSpec = RidgeSpec(layers=2)
    penalty: float = 0.004
    threshold: float = 0.001
    fraction: float = 0.9
    iterations: int = 100

    def build(self) -> SplitDeconvolution:
        restorer = SplitDeconvolution(
            self.denoiser.build(self.channels),
            penalty=self.penalty,
            threshold=self.threshold,
            fraction=self.fraction,
        )
        restorer.solver = _picard(self.iterations)
        return restorer


class RainLayersSpec(ModelSettings):
    """The fixed point that separates an image from its rain. channels: 3. picture, rain: the denoiser of each layer.
    penalty: at the start of training. iterations: at most, when restoring.
    """

    kind: Literal["rain_layers"] = "rain_layers"
    channels: Literal[3] = 3
    picture: CertifiedSpec = RidgeSpec()
    rain: CertifiedSpec = RidgeSpec(size=7, keep_mean=False)
    penalty: float = 0.3
    iterations: int = 24

    def build(self) -> RainLayers:
        layers = self.picture.build(self.channels), self.rain.build(self.channels)
        restorer = RainLayers(*layers, penalty=self.penalty)
        restorer.solver = _picard(self.iterations)
        return restorer


class PatchCodingSpec(ModelSettings):
    """Sparse codes of patches, in a metric that is learned; the residual is discarded. channels: 1, each colour by
    itself. side: of a patch. frequencies: of the cosines that patches are made of, more than `side`. weight: of each
    code at the start of training. iterations: at most, when restoring.
    """

    kind: Literal["patch_coding"] = "patch_coding"
    channels: Literal[1] = 1
    side: int = 16
    frequencies: int = 22
    weight: float = 0.8
    iterations: int = 100

    def build(self) -> PatchCoding:
        model = SparseModel(cosines(self.side, self.frequencies), self.weight)
        restorer = PatchCoding(LearnedALM(model, tune_weights=True))
        restorer.solver = _picard(self.iterations)
        return restorer


CLASSICAL: dict[str, Restorer] = {
    "wiener": Wiener(),
    "richardson-lucy": RichardsonLucy(),
    "hyper-laplacian": HyperLaplacian(),
    "dark-channel": DarkChannel(),
    "gamma": Gamma(),
    "clahe": Clahe(),
    "grey-world": GreyWorld(),
    "retinex": MultiScaleRetinex(),
    "underwater-stretch": UnderwaterStretch(),
}
"""Restorers without weights, by the names that cards use."""


class ClassicalSpec(Settings):
    """A restorer without weights, so without training. method: its name in `CLASSICAL`."""

    kind: Literal["classical"] = "classical"
    method: Literal[
        "wiener",
        "richardson-lucy",
        "hyper-laplacian",
        "dark-channel",
        "gamma",
        "clahe",
        "grey-world",
        "retinex",
        "underwater-stretch",
    ]

    def build(self) -> Restorer:
        """The restorer of that name, with its default settings."""
        return CLASSICAL[self.method]


AnyModel = GuidedSpec | PlainSpec | FixedDeconvolutionSpec | SplitDeconvolutionSpec | RainLayersSpec | PatchCodingSpec
ModelSpec = Annotated[AnyModel, Field(discriminator="kind")]
