"""Settings of a search and of the training of its judge, read from YAML as training recipes are.

Each group of settings builds what it describes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import AfterValidator, Field, ValidationInfo, field_validator
from torch import nn

from twofold.contracts import ConfigError, WeightsError
from twofold.data.sources import Crops, Source
from twofold.data.specs import SourceSpec, build_mixture
from twofold.losses import LossSpec, loss_of
from twofold.nets.hadamard import COMBINATIONS, Cell, HadamardNet
from twofold.nets.judge import Judge, ResNetJudge
from twofold.nets.perceptual import read_tensors
from twofold.search.halves import split_source
from twofold.settings import Amount, Count, Rate, Settings, Share, checked
from twofold.space.genotype import Genotype
from twofold.space.loss_space import Clipped, FixedSum, LossSpace, Softplus, searchable
from twofold.space.supernet import mixtures
from twofold.specs import Combination, PlainSpec
from twofold.train import reading
from twofold.train.learner import Optimizer, Schedule
from twofold.train.recipe import LossSettings, RecipeHead

CONSTRAINTS: dict[str, Clipped | Softplus | FixedSum] = {
    "clipped": Clipped(),
    "softplus": Softplus(),
    "fixed-sum": FixedSum(),
}
What = Literal["loss", "architecture", "both"]

UPPER = Optimizer(learning_rate=5e-4, betas=[0.5, 0.999], weight_decay=1e-4, clip=5.0)  # of the authors' program
OMEGA = Optimizer(kind="sgd", learning_rate=5e-4, momentum=0.9, weight_decay=3e-4, clip=5.0)  # Zhu et al. 2022, §3.1


class Material(Settings):
    """Both halves come from `train`: every other clean picture is for training, the rest for validation.

    crop: side in pixels. batch: samples of each half in a step. pictures: so many clean ones in all; 0 takes all.
    train: the sources, mixed by their weights.
    """

    crop: Count = 64
    batch: Count = 2
    pictures: int = Field(default=0, ge=0)
    train: Annotated[list[SourceSpec], Field(min_length=1)]

    def source(self, root: Path) -> Source:
        """All of it, below the data root. Raises: DataError where it cannot be used."""
        return build_mixture(self.train, root, Crops(self.crop))

    def halves(self, root: Path) -> tuple[Source, Source]:
        """(training, validation). Raises: DataError where the data cannot be used, or not be split."""
        return split_source(self.source(root), pictures=self.pictures)


class SmallJudge(Settings):
    """The default: four convolutions. width: channels of the first."""

    kind: Literal["small"] = "small"
    width: Annotated[int, Field(ge=4, multiple_of=4)] = 16

    def build(self, root: Path | None = None) -> Judge:
        return Judge(width=self.width)


class PaperJudge(Settings):
    """ResNet-50. weights: a file of ImageNet's below the data root; None trains from scratch."""

    kind: Literal["resnet50"] = "resnet50"
    weights: str | None = None

    def build(self, root: Path | None = None) -> ResNetJudge:
        """root: of the data, where the starting weights lie; None takes none.

        Raises: WeightsError where they do not fit.
        """
        judge = ResNetJudge()
        if self.weights is None or root is None:
            return judge
        path = root / self.weights
        given = {name: value for name, value in read_tensors(path).items() if not name.startswith("fc.")}
        try:
            keys = judge.load_state_dict(given, strict=False)
        except RuntimeError as error:
            raise WeightsError(f"{path}: not the weights of a ResNet-50") from error
        if keys.unexpected_keys or any(not name.startswith("fc.") for name in keys.missing_keys):
            raise WeightsError(f"{path}: not the weights of a ResNet-50")
        return judge


JudgeSpec = Annotated[SmallJudge | PaperJudge, Field(discriminator="kind")]


class JudgeRecipe(RecipeHead):
    """judge: the network that classifies clean and degraded images. data: crops, batches and sources. optimizer,
    schedule: of the judge. steps: of training. held_out: crops of the validation half, each clean and degraded, that
    the accuracy is measured on. counterfeits: weight of a third kind of picture in the training, clean ones degraded as
    a network degrades them. The paper has none, and its judge calls noise clear.
    """

    kind: Literal["judge"]
    judge: JudgeSpec = SmallJudge()
    data: Material
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    steps: Count
    held_out: Count = 256
    counterfeits: Amount = 0.0


@dataclass(frozen=True)
class Stage:
    """One bilevel problem of a search. name: of its folder.

    loss: what the network trains with where the architecture alone is searched; None takes what an earlier stage found.
    """

    name: str
    what: What
    steps: int
    loss: LossSpec | None = None


class HierarchicalSpec(Settings):
    """The paper's (Zhu et al. 2022, eq. 4): the loss with α fixed, then α with the loss that was found.

    loss, architecture: steps of each stage in all. rounds: how often both are done in turn, t in eq. (4). Each stage
    goes on from the last β or α, and trains ω again. The paper's experiments take one round, whose α is the untrained
    supernet's.
    """

    kind: Literal["hierarchical"] = "hierarchical"
    loss: Count
    architecture: Count
    rounds: Count = 1

    def stages(self) -> list[Stage]:
        each = range(1, self.rounds + 1)
        names = [("loss", "architecture") if t == 1 else (f"loss{t}", f"architecture{t}") for t in each]
        return [
            stage
            for first, second in names
            for stage in (Stage(first, "loss", self.loss), Stage(second, "architecture", self.architecture))
        ]


class SynchronousSpec(Settings):
    """Both at once against the judge, moved by one optimizer, architecture_optimizer: the paper's ablation. steps: in
    all.
    """

    kind: Literal["synchronous"] = "synchronous"
    steps: Count

    def stages(self) -> list[Stage]:
        return [Stage("synchronous", "both", self.steps)]


class LossAloneSpec(Settings):
    """The loss alone, for any network. steps: in all."""

    kind: Literal["loss"] = "loss"
    steps: Count

    def stages(self) -> list[Stage]:
        return [Stage("loss", "loss", self.steps)]


class ArchitectureSpec(Settings):
    """The architecture alone. steps: in all. loss: weights by name, or the file of a loss; None for all weights 1."""

    kind: Literal["architecture"] = "architecture"
    steps: Count
    loss: LossSettings | None = None

    def stages(self) -> list[Stage]:
        return [Stage("architecture", "architecture", self.steps, self.loss)]


StagesSpec = Annotated[
    HierarchicalSpec | SynchronousSpec | LossAloneSpec | ArchitectureSpec, Field(discriminator="kind")
]


class SupernetSpec(Settings):
    """All candidates at every place. width: channels. units: Hadamard units. ops_per_branch: operations in each branch
    of a unit. combine: how a unit combines its two branches. checkpointed: a third of the memory, at a third more time.
    """

    kind: Literal["supernet"] = "supernet"
    width: Annotated[int, Field(ge=2, multiple_of=2)] = 32
    units: Count = 7
    ops_per_branch: Count = 4
    combine: Combination = "divide"
    checkpointed: bool = False

    def build(self, cell: Cell) -> HadamardNet:
        """The network with the modules that `cell` puts at its places."""
        return HadamardNet(
            cell,
            width=self.width,
            units=self.units,
            ops_per_branch=self.ops_per_branch,
            combine=COMBINATIONS[self.combine],
            checkpointed=self.checkpointed,
        )

    def found(self, genotype: Genotype) -> HadamardNet:
        """The network of the chosen operations, untrained."""
        return genotype.network(width=self.width, combine=COMBINATIONS[self.combine])


def _known(name: str) -> str:
    """Raises: ConfigError for an unknown loss."""
    loss_of(name)
    return name


class LossSpaceSpec(Settings):
    """terms: names of `twofold.losses.LOSSES`; weights of networks are read from `features` below the data root.

    The paper's eight have lpips_alexnet and features_vgg19 in place of the two of SqueezeNet. constraint: how weights
    stay at least 0; `clipped` is the paper's.
    """

    terms: list[Annotated[str, AfterValidator(_known)]] = Field(
        default=["l1", "l2", "colour", "ssim", "perceptual_squeeze", "features_squeeze", "tv", "laplacian"],
        min_length=1,
    )
    constraint: Literal["clipped", "softplus", "fixed-sum"] = "clipped"

    def build(
        self, root: Path, device: torch.device | str = "cpu", *, seed: int = 0, given: LossSpec | None = None
    ) -> LossSpace:
        """Every weight 1; or the given loss, which a clipped space takes over, whatever the recipe says.

        Raises: WeightsError where weights of perceptual terms are not in `features` below the data root.
        """
        generator = torch.Generator().manual_seed(seed)
        terms = searchable(self.terms, folder=root / "features", device=device, generator=generator)
        space = LossSpace(terms, constraint=CONSTRAINTS[self.constraint] if given is None else Clipped())
        if given is not None:
            space.assume(given)
        return space.to(device)


class SearchRecipe(RecipeHead):
    """search: which stages, and their steps. net: the network that is searched. data: crops, batches and sources. loss:
    the terms whose weights are searched. judge: the recipe that trains one where none is given. final: the recipe that
    trains what was found. optimizer: of the network's weights ω. loss_optimizer: of the losses' weights β.
    architecture_optimizer: of the operations' weights α. precision: of the arithmetic; bf16 keeps weights in float32.

    warmup: steps of each stage in which ω alone is trained, since the judge's gradient on an untrained network is
    useless.
    unrolled_step: learning rate of the step that the loss's weights are seen through. collapse: the share of unit
    places led by SC above which the search ends early. second_order: α's gradient through one step too, at four times
    the cost.
    """

    kind: Literal["search"]
    search: StagesSpec
    net: Annotated[SupernetSpec | PlainSpec, Field(discriminator="kind")] = SupernetSpec()
    data: Material
    loss: LossSpaceSpec = LossSpaceSpec()
    judge: str
    final: str
    optimizer: Optimizer = OMEGA
    loss_optimizer: Optimizer = UPPER
    architecture_optimizer: Optimizer = UPPER
    warmup: Annotated[int, Field(ge=0)] = 0
    unrolled_step: Rate = 5e-4
    second_order: bool = False
    collapse: Share = 0.5
    precision: Literal["float32", "bf16"] = "float32"

    @field_validator("net")
    @classmethod
    def _has_choices(cls, net: SupernetSpec | PlainSpec, read: ValidationInfo) -> SupernetSpec | PlainSpec:
        search = read.data.get("search")
        if isinstance(net, PlainSpec) and search is not None and not isinstance(search, LossAloneSpec):
            raise ConfigError(f"{search.kind!r} searches an architecture, and a plain network has none; take supernet")
        return net

    @property
    def needs_judge(self) -> bool:
        """Whether a loss is searched: an architecture alone is judged by its loss."""
        return any(stage.what != "architecture" for stage in self.search.stages())

    def build_net(self) -> nn.Module:
        """The supernet, or the network whose loss is searched; drawn from the seed."""
        torch.manual_seed(self.seed)
        if isinstance(self.net, SupernetSpec):
            return self.net.build(mixtures(torch.Generator().manual_seed(self.seed)))
        net: nn.Module = self.net.build().net
        return net

    def judge_recipe(self) -> JudgeRecipe:
        """Raises: ConfigError where there is none of that name."""
        return checked(JudgeRecipe, reading.tree_of(self.judge), self.judge)
