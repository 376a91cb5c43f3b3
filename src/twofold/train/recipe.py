"""A recipe: all settings of a training run. `reading` makes it from YAML, `run` and `data` build from it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from twofold.data.folders import PairFolder
from twofold.data.sources import Crops
from twofold.data.specs import CaseSpec, SourceSpec
from twofold.losses import LossSpec
from twofold.settings import Count, Range, Seed, Settings
from twofold.specs import ModelSpec
from twofold.train.learner import Optimizer, Schedule
from twofold.train.meta import MetaSpec
from twofold.train.schemes import FrozenSpec, GuidedTrainingSpec, NaiveSpec, SupervisedSpec


class Data(Settings):
    """crop: side in pixels. zoom: range; the part that is cut out has `zoom` times that side and is reduced to it.
    batch: samples of all ranks together. train: the sources of training samples, mixed by their weights. guidance: D_h
    where it is not the training data itself. validation: pairs. degraded: clean photographs that are degraded once,
    the same way at every validation.
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


SchemeSpec = Annotated[
    SupervisedSpec | GuidedTrainingSpec | NaiveSpec | FrozenSpec | MetaSpec, Field(discriminator="kind")
]
LossSettings = Annotated[LossSpec, BeforeValidator(LossSpec.of)]


class RecipeHead(Settings):
    """What recipes of every kind begin with."""

    name: str = Field(description="of the recipe and of the model")
    about: str = Field(default="", description="one sentence for `twofold train --list`")
    task: str = Field(description="what is removed: rain, haze, blur, …")
    terms: str = Field(default="", description="the licence of the training data, written into the model's card")
    seed: Seed = Field(default=0, description="of initial weights, crops and degradations")


class Recipe(RecipeHead):
    """model: what is trained. init: a shipped model by name, or a weights file of the same network, to start from;
    empty for random weights. scheme: how its parts are trained. loss: weights of the losses by name. data: crops,
    batches and sources. optimizer: of the network, ω. guide_optimizer: of the guide, θ. schedule: of both learning
    rates. steps: calls of `Scheme.step` in all. validate_every: steps between validations. precision: of the
    arithmetic; bf16 keeps weights in float32. protocol: of the validation scores, by its name.
    """

    model: ModelSpec
    init: str = ""
    scheme: SchemeSpec
    loss: LossSettings = LossSpec({"l1": 1.0})
    data: Data
    optimizer: Optimizer = Optimizer()
    guide_optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    steps: Count
    validate_every: Count = 1000
    average: float = Field(default=0.999, ge=0, lt=1, description="decay of the moving average; 0 for none")
    precision: Literal["float32", "bf16"] = "bf16"
    protocol: str = "rgb"
