"""A recipe: everything a training run needs to know. `reading` makes it from YAML, `run` and `data` build from it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from twofold.data.folders import PairFolder
from twofold.data.sources import Crops
from twofold.data.specs import CaseSpec, SourceSpec
from twofold.settings import Amount, Count, Range, Rate, Settings, Share
from twofold.specs import ModelSpec
from twofold.train.found import FoundLoss


class Data(Settings):
    """crop: side in pixels. zoom: range; the part that is cut out has `zoom` times that side and is reduced to it.
    batch: samples of all ranks together. guidance: D_h where it is not the training data itself. validation: pairs;
    degraded: clean photographs that are degraded once, the same way at every validation.
    """

    crop: Count = 112
    zoom: Range = (1.0, 1.0)
    batch: Count = 8
    train: Annotated[list[SourceSpec], Field(min_length=1)]
    guidance: Annotated[list[SourceSpec], Field(min_length=1)] | None = None
    validation: dict[str, PairFolder] = {}
    degraded: dict[str, CaseSpec] = {}
    limit: int = Field(default=0, ge=0, description="validate on at most so many pictures a set; 0 takes all")

    def crops(self, channels: int) -> Crops:
        """What the sources shall give. channels: 3, or 1 for the luma of every picture."""
        return Crops(self.crop, self.zoom, channels)


class Optimizer(Settings):
    """clip: largest norm of the gradient; 0 for none. momentum: of sgd."""

    kind: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: Rate = 1e-3
    betas: Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)] = [0.9, 0.999]
    momentum: Share = 0.9
    weight_decay: Amount = 0.0
    clip: Amount = 0.0


class Schedule(Settings):
    """warmup: steps of linear rise. milestones: shares of the run after which the rate is multiplied by `factor`.
    floor: share of the rate that a cosine ends at.
    """

    kind: Literal["constant", "cosine", "multistep"] = "cosine"
    warmup: Annotated[int, Field(ge=0)] = 0
    milestones: list[Share] = []
    factor: Share = 0.2
    floor: Share = 0.0


class SupervisedSpec(Settings):
    kind: Literal["supervised"] = "supervised"


class GuidedTrainingSpec(Settings):
    """guide_updates, net_updates: of each half in one step. steering: share of samples with a random strength."""

    kind: Literal["guided"] = "guided"
    guide_updates: Count = 1
    net_updates: Count = 1
    steering: Share = 0.0


class NaiveSpec(Settings):
    kind: Literal["naive"] = "naive"


class FrozenSpec(Settings):
    """pretraining: share of the steps in which the guide alone is trained."""

    kind: Literal["frozen"] = "frozen"
    pretraining: Share = 0.5

    def first(self, steps: int) -> int:
        """How many of the steps train the guide."""
        return round(self.pretraining * steps)


class MetaSpec(Settings):
    """Bilevel Meta Optimization of a fixed point. iterations: K. mu: the leader's share, 0 to unroll. first: s_k is
    first / (k + 1), in units of the theory's bound.
    """

    kind: Literal["meta"] = "meta"
    iterations: Count = 8
    mu: Annotated[float, Field(ge=0, lt=1)] = 0.1
    first: Amount = 0.5


SchemeSpec = Annotated[
    SupervisedSpec | GuidedTrainingSpec | NaiveSpec | FrozenSpec | MetaSpec, Field(discriminator="kind")
]
LossName = Literal[
    "l1",
    "l2",
    "smooth_l1",
    "charbonnier",
    "negative_ssim",
    "colour_angle",
    "ssim_distance",
    "total_variation",
    "laplacian",
    "perceptual_squeeze",
    "perceptual_vgg16",
]


def _kind_of_loss(value: Any) -> str:
    return "found" if isinstance(value, FoundLoss) or (isinstance(value, dict) and "weights" in value) else "named"


NamedLosses = Annotated[dict[LossName, Amount], Field(min_length=1)]
LossSettings = Annotated[
    Annotated[NamedLosses, Tag("named")] | Annotated[FoundLoss, Tag("found")], Discriminator(_kind_of_loss)
]


class Recipe(Settings):
    """steps: calls of `Scheme.step` in all. validate_every: steps between validations."""

    name: str
    about: str = ""
    task: str
    terms: str = ""
    seed: int = 0
    model: ModelSpec
    scheme: SchemeSpec
    loss: LossSettings = {"l1": 1.0}
    data: Data
    optimizer: Optimizer = Optimizer()
    guide_optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    steps: Count
    validate_every: Count = 1000
    average: float = Field(default=0.999, ge=0, lt=1, description="decay of the moving average; 0 for none")
    precision: Literal["float32", "bf16"] = "bf16"
    protocol: str = "rgb"
