"""Models by name: what a model is made of, the card that describes it, and the file that holds its weights.

A model is one safetensors file whose header carries how to build it, so the file alone can be loaded; beside a
shipped one lies its card. Weights are never unpickled.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import stat
from collections.abc import Mapping
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from twofold.contracts import DEPTH, NOISE_LEVEL, RAIN_REGION, TwofoldError, WeightsError
from twofold.files import WHAT_TO_DO, replacing
from twofold.nets.denoiser import NonExpansiveDenoiser
from twofold.nets.griddehaze import GridDehazeNet
from twofold.nets.guide import Guide
from twofold.nets.hadamard import COMBINATIONS
from twofold.nets.prenet import PReNet
from twofold.nets.unet import UNet
from twofold.nets.unfolded import UnfoldedDeconvolution
from twofold.restorers.fixed_point import Deconvolution, RainLayers, RidgeDenoiser, starting_as_identity
from twofold.restorers.guided import Guided, Plain
from twofold.restorers.sparse_coding import LearnedALM, Model, PatchCoding, cosines
from twofold.runtime import flush_denormals_
from twofold.search.genotype import Genotype
from twofold.solve import KrasnoselskiiMann

KINDS = {kind.name: kind for kind in (NOISE_LEVEL, RAIN_REGION, DEPTH)}


class Settings(BaseModel):
    """Plain facts from a file: unknown keys are errors, nothing changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class UNetSpec(Settings):
    kind: Literal["unet"] = "unet"
    widths: list[int] = [32, 64, 128]
    blocks: list[int] = [1, 1, 3]

    def build(self, channels: int, guidance: int) -> nn.Module:
        return UNet(channels=channels, guidance=guidance, widths=self.widths, blocks=self.blocks)


class PReNetSpec(Settings):
    kind: Literal["prenet"] = "prenet"
    recurrences: int = 6
    width: int = 32

    def build(self, channels: int, guidance: int) -> nn.Module:
        return PReNet(channels=channels, guidance=guidance, recurrences=self.recurrences, width=self.width)


class DeconvolutionSpec(Settings):
    """Grey: colour is restored channel by channel. It is told the blur kernel along with the picture.

    layers, width: of the paper's denoiser; unet: another one in its place.
    """

    kind: Literal["deconvolution"] = "deconvolution"
    stages: int = 3
    layers: int = 9
    width: int = 64
    shared: bool = True
    unet: UNetSpec | None = None

    def build(self, channels: int, guidance: int) -> nn.Module:
        return UnfoldedDeconvolution(
            stages=self.stages,
            layers=self.layers,
            width=self.width,
            shared=self.shared,
            denoiser=None if self.unet is None else partial(self.unet.build, 1, guidance),
            guided=bool(guidance),
        )


class GridDehazeSpec(Settings):
    kind: Literal["griddehaze"] = "griddehaze"
    width: int = 16
    rows: int = 3
    columns: int = 6
    growth: int = 16
    dense: int = 4

    def build(self, channels: int, guidance: int) -> nn.Module:
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
    """The operations that a search chose, as its genotype.json has them."""

    groups: dict[str, list[str]]
    ops_per_branch: int = 4


class HadamardSpec(Settings):
    """A searched network. A recipe may name the file of its genotype. border: pixels of its mirror image around a
    picture in use; the published program has none.
    """

    kind: Literal["hadamard"] = "hadamard"
    genotype: GenotypeSpec
    width: int = 32
    combine: Combination = "divide"
    border: Annotated[int, Field(ge=0)] = 16

    def build(self, channels: int, guidance: int) -> nn.Module:
        groups = {group: tuple(names) for group, names in self.genotype.groups.items()}
        genotype = Genotype(groups, self.genotype.ops_per_branch)
        return genotype.network(width=self.width, combine=COMBINATIONS[self.combine], border=self.border)


NetSpec = Annotated[
    UNetSpec | PReNetSpec | DeconvolutionSpec | GridDehazeSpec | HadamardSpec, Field(discriminator="kind")
]


class GuideSpec(Settings):
    width: int = 32
    stage: bool = False


class GuidedSpec(Settings):
    """A network steered by an estimated map. channels: of a picture, 3 for colour or 1 for grey."""

    kind: Literal["guided"] = "guided"
    guidance: Literal["noise_level", "rain_region", "depth"]
    channels: Literal[1, 3] = 3
    guide: GuideSpec = GuideSpec()
    net: NetSpec

    def build(self) -> Guided:
        guide = Guide(KINDS[self.guidance], channels=self.channels, width=self.guide.width, stage=self.guide.stage)
        return Guided(guide, self.net.build(self.channels, 1))


class PlainSpec(Settings):
    """A network alone."""

    kind: Literal["plain"] = "plain"
    channels: Literal[1, 3] = 3
    net: NetSpec

    def build(self) -> Plain:
        return Plain(self.net.build(self.channels, 0), channels=self.channels)


class RidgeSpec(Settings):
    """A certified denoiser: a convex prior on what its filters see. keep_mean: of a picture, not of rain."""

    kind: Literal["ridge"] = "ridge"
    filters: int = 16
    size: int = 5
    layers: int = 1
    keep_mean: bool = True

    def build(self, channels: int) -> nn.Module:
        return RidgeDenoiser(
            channels=channels, filters=self.filters, size=self.size, layers=self.layers, keep_mean=self.keep_mean
        )


class NonExpansiveSpec(Settings):
    """A certified stack of convolutions; deeper, and harder to train."""

    kind: Literal["non_expansive"] = "non_expansive"
    width: int = 32
    layers: int = 6

    def build(self, channels: int) -> nn.Module:
        denoiser = NonExpansiveDenoiser(channels=channels, guidance=0, width=self.width, layers=self.layers)
        return starting_as_identity(denoiser)


CertifiedSpec = Annotated[RidgeSpec | NonExpansiveSpec, Field(discriminator="kind")]


def _picard(steps: int) -> KrasnoselskiiMann:
    return KrasnoselskiiMann(relaxation=1.0, steps=steps, tolerance=1e-4)


class FixedDeconvolutionSpec(Settings):
    """The fixed point of a Fourier step and a denoiser; it is told the blur kernel. penalty: at the start. steps: at
    most, when restoring.
    """

    kind: Literal["fixed_deconvolution"] = "fixed_deconvolution"
    channels: Literal[1] = 1
    denoiser: CertifiedSpec = RidgeSpec(layers=2)
    penalty: float = 0.03
    steps: int = 100

    def build(self) -> Deconvolution:
        restorer = Deconvolution(self.denoiser.build(self.channels), penalty=self.penalty)
        restorer.solver = _picard(self.steps)
        return restorer


class RainLayersSpec(Settings):
    """The fixed point that parts a picture from its rain, a denoiser for each. penalty, steps: as above."""

    kind: Literal["rain_layers"] = "rain_layers"
    channels: Literal[3] = 3
    picture: CertifiedSpec = RidgeSpec()
    rain: CertifiedSpec = RidgeSpec(size=7, keep_mean=False)
    penalty: float = 0.3
    steps: int = 24

    def build(self) -> RainLayers:
        layers = self.picture.build(self.channels), self.rain.build(self.channels)
        restorer = RainLayers(*layers, penalty=self.penalty)
        restorer.solver = _picard(self.steps)
        return restorer


class PatchCodingSpec(Settings):
    """Sparse codes of patches, in a metric that is learned; what they cannot say is thrown away. side: of a patch.
    frequencies: of the cosines that patches are made of, more than `side`. weight: of each code at the start.
    """

    kind: Literal["patch_coding"] = "patch_coding"
    channels: Literal[1] = 1
    side: int = 16
    frequencies: int = 22
    weight: float = 0.8
    steps: int = 100

    def build(self) -> PatchCoding:
        model = Model(cosines(self.side, self.frequencies), self.weight)
        restorer = PatchCoding(LearnedALM(model, tune_weights=True))
        restorer.solver = _picard(self.steps)
        return restorer


AnyModel = GuidedSpec | PlainSpec | FixedDeconvolutionSpec | RainLayersSpec | PatchCodingSpec
ModelSpec = Annotated[AnyModel, Field(discriminator="kind")]
_MODEL: TypeAdapter[AnyModel] = TypeAdapter(ModelSpec)


class Card(BaseModel):
    """What a user should know of a shipped model before trusting it. Numbers carry their protocol and come from a
    run.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    task: str
    about: str
    model: ModelSpec
    parameters: int
    bytes: int
    sha256: str
    data: list[str]
    terms: str
    command: str
    seed: int
    hours: float
    protocol: str
    numbers: dict[str, dict[str, float]]
    notes: str = ""


def cards() -> dict[str, Card]:
    """Every shipped model by name."""
    folder = resources.files("twofold") / "weights"
    found = [Card.model_validate_json(f.read_text()) for f in folder.iterdir() if f.name.endswith(".json")]
    return {card.name: card for card in sorted(found, key=lambda card: card.name)}


def nearest(name: str, known: list[str]) -> str:
    """«did you mean …» or the whole list, for an error message.

    >>> nearest("derian", ["derain", "dehaze"])
    "did you mean 'derain'? known: derain, dehaze"
    """
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}known: {', '.join(known)}"


def save(path: Path, restorer: nn.Module, spec: AnyModel, *, half: bool = False) -> str:
    """Writes the weights with their specification in the header, atomically; returns the SHA-256 of the file.

    half: store 16-bit floats (half the size; a value moves by less than 0.05 %).
    """
    tensors = {name: value.detach().contiguous() for name, value in restorer.state_dict().items()}
    if half:
        tensors = {n: t.half() if t.is_floating_point() else t for n, t in tensors.items()}
    with replacing(path) as temporary:
        try:
            save_file(tensors, temporary, metadata={"twofold_model": spec.model_dump_json()})
        except SafetensorError as error:
            raise TwofoldError(f"cannot write {path}: {error}; {WHAT_TO_DO}") from error
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read(path: Path) -> tuple[AnyModel, dict[str, Tensor]]:
    """(specification, float32 state). Raises: WeightsError saying what the file is instead of a model."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise WeightsError(
                f"{path} is a folder; name the .safetensors file in it, e.g. {path / 'model.safetensors'}"
            )
        if not stat.S_ISREG(mode):
            raise FileNotFoundError
        with path.open("rb") as file:
            head = file.read(2)
    except (FileNotFoundError, NotADirectoryError):
        raise WeightsError(f"no weights at {path}; `twofold models` lists the shipped ones") from None
    except OSError as error:
        reason = error.strerror or error
        raise WeightsError(f"{path} cannot be read ({reason}); check the path and who may read it") from error
    if head in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        raise WeightsError(f"{path} is a pickle: such files can run code and are never loaded; convert to safetensors")
    try:
        with safe_open(path, framework="pt") as tensors:
            metadata: Mapping[str, str] = tensors.metadata() or {}
            state = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path} is not a whole safetensors file ({error}); fetch or train it again") from error
    if "twofold_model" not in metadata:
        raise WeightsError(f"{path} does not say which model it is; save it with twofold.zoo.save")
    try:
        spec = _MODEL.validate_json(metadata["twofold_model"])
    except ValidationError as error:
        raise WeightsError(
            f"{path} was written for a model this version does not know: {error.errors()[0]['msg']}"
        ) from error
    return spec, {n: t.float() if t.is_floating_point() else t for n, t in state.items()}


def load(name_or_path: str | Path, *, device: torch.device | str | None = None) -> nn.Module:
    """A restorer in evaluation mode, by the name of a shipped model or the path of a weights file.

    Raises: WeightsError for an unknown name, a damaged or foreign file.
    """
    path, shipped = Path(name_or_path), cards()
    if not str(name_or_path).strip():
        raise WeightsError(f"the name of the model is empty; give a weights file, or a name; {nearest('', [*shipped])}")
    card = shipped.get(str(name_or_path))
    if card is not None:
        with resources.as_file(resources.files("twofold") / "weights" / f"{card.name}.safetensors") as file:
            if hashlib.sha256(file.read_bytes()).hexdigest() != card.sha256:
                raise WeightsError(f"the weights of {card.name!r} are not those of its card; install twofold again")
            spec, state = read(file)
    elif path.suffix or _may_be_there(path):
        spec, state = read(path)
    else:
        raise WeightsError(f"unknown model {str(name_or_path)!r}; {nearest(str(name_or_path), list(shipped))}")
    try:
        restorer = spec.build()
        restorer.load_state_dict(state)
    except (RuntimeError, ValueError, LookupError, TypeError, ArithmeticError) as error:
        last = (str(error).splitlines() or [type(error).__name__])[-1].strip()
        raise WeightsError(f"{name_or_path}: the weights do not fit the model its header names ({last})") from error
    flush_denormals_(restorer)  # no output bit changes, and some processors would be 30 times slower
    return restorer.eval().to(device)


def _may_be_there(path: Path) -> bool:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):  # the last: a zero byte in the name
        return False
    except OSError:  # in a folder that may not be entered: reading says so
        return True
    return True


def describe(card: Card) -> dict[str, Any]:
    """A card as plain data, for `--json`."""
    facts: dict[str, Any] = json.loads(card.model_dump_json())
    return facts
