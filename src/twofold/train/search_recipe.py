"""What a search and the training of its judge need to know, read from YAML as recipes of training are."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from twofold.data.specs import SourceSpec
from twofold.nets.hadamard import COMBINATIONS, Cell, HadamardNet
from twofold.search.loss_space import Clipped, FixedSum, Softplus
from twofold.settings import Amount, Count, Rate, Settings, Share
from twofold.specs import Combination, PlainSpec
from twofold.train.found import FoundLoss
from twofold.train.recipe import Optimizer, Schedule

UPPER = Optimizer(learning_rate=5e-4, betas=[0.5, 0.999], weight_decay=1e-4, clip=5.0)  # as published
OMEGA = Optimizer(kind="sgd", learning_rate=5e-4, momentum=0.9, clip=5.0)


class Material(Settings):
    """Both halves come from `train`: every other clean picture is for training, the rest for validation.

    crop: side in pixels. batch: samples of each half in a step. pictures: so many clean ones in all; 0 takes all.
    """

    crop: Count = 64
    batch: Count = 2
    pictures: int = Field(default=0, ge=0)
    train: Annotated[list[SourceSpec], Field(min_length=1)]


class SmallJudge(Settings):
    """The default: four convolutions. width: channels of the first."""

    kind: Literal["small"] = "small"
    width: Annotated[int, Field(ge=4, multiple_of=4)] = 16


class PaperJudge(Settings):
    """ResNet-50. weights: a file of ImageNet's below the data root; None trains from scratch."""

    kind: Literal["resnet50"] = "resnet50"
    weights: str | None = None


JudgeSpec = Annotated[SmallJudge | PaperJudge, Field(discriminator="kind")]


class JudgeRecipe(Settings):
    """held_out: crops of the validation half, each clean and degraded, that the accuracy is measured on.

    counterfeits: weight of a third kind of picture in the training, clean ones degraded as a network degrades them. The
    paper has none, and its judge calls noise clear.
    """

    kind: Literal["judge"]
    name: str
    about: str = ""
    task: str
    terms: str = ""
    seed: int = 0
    judge: JudgeSpec = SmallJudge()
    data: Material
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    steps: Count
    held_out: Count = 256
    counterfeits: Amount = 0.0


class HierarchicalSpec(Settings):
    """The paper's: first the loss with α at its start, then α with the loss that was found. Steps of each."""

    kind: Literal["hierarchical"] = "hierarchical"
    loss: Count
    architecture: Count


class SynchronousSpec(Settings):
    """Both at once against the judge, moved by one optimizer, architecture_optimizer: the paper's ablation."""

    kind: Literal["synchronous"] = "synchronous"
    steps: Count


class LossSpec(Settings):
    """The loss alone, for any network."""

    kind: Literal["loss"] = "loss"
    steps: Count


class ArchitectureSpec(Settings):
    """The architecture alone, with the loss of a file, or all weights 1."""

    kind: Literal["architecture"] = "architecture"
    steps: Count
    loss: FoundLoss | None = None


Stages = Annotated[HierarchicalSpec | SynchronousSpec | LossSpec | ArchitectureSpec, Field(discriminator="kind")]


class SupernetSpec(Settings):
    """All candidates at every place. checkpointed: a third of the memory, at a third more time."""

    kind: Literal["supernet"] = "supernet"
    width: Annotated[int, Field(ge=2, multiple_of=2)] = 32
    units: Count = 7
    ops_per_branch: Count = 4
    combine: Combination = "divide"
    checkpointed: bool = False

    def build(self, cell: Cell) -> HadamardNet:
        return HadamardNet(
            cell,
            width=self.width,
            units=self.units,
            ops_per_branch=self.ops_per_branch,
            combine=COMBINATIONS[self.combine],
            checkpointed=self.checkpointed,
        )


class LossSpaceSpec(Settings):
    """features: the network of the feature term, its weights in `features` below the data root; null goes without the
    perceptual terms. With vgg19 the other one is LPIPS on AlexNet, which takes its weights and heads too.
    constraint: how weights stay at least 0; `clipped` is the paper's.
    """

    features: Literal["squeezenet", "vgg19"] | None = "squeezenet"
    constraint: Literal["clipped", "softplus", "fixed-sum"] = "clipped"

    def bound(self) -> Clipped | Softplus | FixedSum:
        match self.constraint:
            case "clipped":
                return Clipped()
            case "softplus":
                return Softplus()
            case "fixed-sum":
                return FixedSum()


class SearchRecipe(Settings):
    """judge: the recipe that trains one where none is given. final: the recipe that trains what was found.

    warmup: steps of each stage in which ω alone is trained; the verdict on an untrained network says nothing.
    unrolled_step: learning rate of the step that the loss's weights are seen through. collapse: the share of unit
    places led by SC above which the search ends early. second_order: α's gradient through one step too, four times as
    dear.
    """

    kind: Literal["search"]
    name: str
    about: str = ""
    task: str
    terms: str = ""
    seed: int = 0
    search: Stages
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
