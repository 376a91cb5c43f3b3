"""Searching a loss, an architecture or both, as a way of training (Zhu et al. 2022, eq. 2 to 4).

Three levels: the judge's loss is minimised over the loss weights β, the loss over the architecture α and the weights
ω. A step uses one batch of each half of the data, split by image: first the searched variables take a hypergradient
step on the validation half, then ω takes one step on the training half. So every search is an ordinary run of
`twofold.train.loop.fit`: logged, resumed, reproducible.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from twofold.contracts import ConfigError, Sample, TwofoldError
from twofold.losses import Loss, LossSpec
from twofold.nets.hadamard import HadamardNet
from twofold.search.recipe import SearchRecipe, Stage, What
from twofold.solve import Bilevel, Cost, FirstOrder, OneStepUnrolled, Strategy, hypergradient
from twofold.space.genotype import Genotype, derive, entropy
from twofold.space.loss_space import LossSpace
from twofold.space.supernet import architecture, mixtures_of, network_weights
from twofold.train.learner import Learner, Machine
from twofold.train.schemes import Draw

Parameters = dict[str, Any]  # {"loss": β by name, "architecture": α by name}, empty where not searched


@dataclass(frozen=True)
class Found:
    """What the stages of a search found so far. alpha, beta: by parameter name; empty before they were searched.

    loss: what the last β means; None before there is one.
    """

    alpha: Mapping[str, Tensor] = field(default_factory=dict)
    beta: Mapping[str, Tensor] = field(default_factory=dict)
    loss: LossSpec | None = None
    genotype: Genotype | None = None

    @torch.no_grad()
    def restore(self, net: nn.Module, space: LossSpace | None) -> None:
        """Puts α into a supernet and β into a loss space, in place; what was not searched yet stays as it is.

        space: None where its loss is given.
        """
        for name, value in self.alpha.items():
            net.get_parameter(name).copy_(value)
        if space is not None:
            for name, value in self.beta.items():
                space.get_parameter(name).copy_(value)


@dataclass
class Search:
    """Moves what is searched by its hypergradient, then ω by one step; `step` sees the batches of both halves.

    restorer: observed → restored, the supernet or, where the loss alone is searched, any network. space: the lower
    loss. what: "loss" moves β only (α stays at its start), "architecture" α only, "both" the two at once (the paper's
    ablation). upper: `judged(judge)` for the loss; None takes the lower loss on the validation half, which is for the
    architecture alone (the loss that is searched must not judge itself: it would shrink to zero). strategy:
    `OneStepUnrolled` wherever β is searched, since its first-order gradient is zero; `FirstOrder` will do for α.
    warmup: steps in which ω alone moves.

    Raises: ConfigError where a loss is searched without an upper one.
    """

    restorer: nn.Module
    space: LossSpace
    what: What
    upper: Loss | None
    strategy: Strategy
    searcher: Learner
    learner: Learner
    machine: Machine = field(default_factory=Machine)
    warmup: int = 0
    cost: Cost | None = None

    @classmethod
    def of_stage(
        cls,
        recipe: SearchRecipe,
        stage: Stage,
        root: Path,
        *,
        found: Found = Found(),
        upper: Loss | None = None,
        machine: Machine | None = None,
    ) -> Search:
        """One stage of a search: ω drawn from the seed, α and β from what was found, or from their start.

        Raises: WeightsError where weights of perceptual terms are not in `features` below the data root; ConfigError as
        `LossSpace.assume`.
        """
        machine = machine or Machine()
        net = machine.place(recipe.build_net())
        given = stage.loss or found.loss if stage.what == "architecture" else None
        space = recipe.loss.build(root, machine.device, seed=recipe.seed, given=given)
        found.restore(net, space if given is None else None)
        return cls.with_optimizers(recipe, stage.what, net, space, upper, machine)

    @classmethod
    def with_optimizers(
        cls, recipe: SearchRecipe, what: What, net: nn.Module, space: LossSpace, upper: Loss | None, machine: Machine
    ) -> Search:
        """A search of this network by the optimizers and strategies of a recipe."""
        settings = recipe.loss_optimizer if what == "loss" else recipe.architecture_optimizer
        beta = [] if what == "architecture" else list(space.parameters())
        alpha = [] if what == "loss" else list(architecture(net).values())
        omega = network_weights(net).values()
        first_order = what == "architecture" and not recipe.second_order
        return cls(
            restorer=net,
            space=space,
            what=what,
            upper=None if what == "architecture" else upper,
            strategy=FirstOrder() if first_order else OneStepUnrolled(recipe.unrolled_step),
            searcher=Learner(beta + alpha, settings.build, clip=settings.clip, machine=machine),
            learner=Learner(omega, recipe.optimizer.build, clip=recipe.optimizer.clip, machine=machine),
            machine=machine,
            warmup=recipe.warmup,
        )

    def found(self, before: Found = Found()) -> Found:
        """What was found before, and what this stage searched in its place."""
        alpha, beta, loss, genotype = before.alpha, before.beta, before.loss, before.genotype
        if self.what != "loss":
            alpha = {name: value.detach().clone() for name, value in architecture(self.restorer).items()}
            assert isinstance(self.restorer, HadamardNet), "only a supernet has an architecture"
            genotype = derive(self.restorer)
        if self.what != "architecture":
            beta = {name: value.detach().clone() for name, value in self.space.named_parameters()}
            loss = self.space.derive()
        return Found(alpha, beta, loss or self.space.derive(), genotype)

    def __post_init__(self) -> None:
        if self.upper is None and self.what != "architecture":
            raise ConfigError("a loss that judges itself shrinks to zero; give `upper`, such as judged(judge)")

    def step(self, *draws: Draw) -> dict[str, float]:
        (train,), (validation,) = draws
        shown: dict[str, float] = {}
        if self.learner.schedule.last_epoch >= self.warmup:
            shown["upper"] = self._search(train, validation)
        loss = self.space(self._restored(self.restorer, train), train.clean)
        self.learner.descend(loss)
        return {"restoration": loss.item(), **shown, **self.facts()}

    @torch.no_grad()
    def facts(self) -> dict[str, float]:
        """What a search shows while it runs: λ by name; of a supernet the mean entropy of its choices (1: undecided),
        and the share of unit places where SC leads.
        """
        weights = self.space.weights().tolist()
        shown = {f"weight/{name}": value for name, value in zip(self.space.terms, weights, strict=True)}
        if isinstance(self.restorer, HadamardNet) and mixtures_of(self.restorer):
            shown |= {"entropy": entropy(self.restorer), "skip_ratio": derive(self.restorer).skip_ratio}
        return shown

    def _search(self, train: Sample, validation: Sample) -> float:
        """One step of what is searched; the upper loss before it."""
        found = hypergradient(self.problem(train, validation), self.searched(), self.omega(), strategy=self.strategy)
        self.cost = found.cost
        slopes = {**found.gradient["loss"], **found.gradient["architecture"]}
        searched = {**self.searched()["loss"], **self.searched()["architecture"]}
        self.searcher.step([slopes[name] for name in searched])  # in the order of `searched_parameters`
        self.space.project()
        return found.value.item()

    def problem(self, train: Sample, validation: Sample) -> Bilevel:
        """upper(searched, ω) and lower(searched, ω), for `hypergradient`."""
        alpha = {name: value.detach() for name, value in architecture(self.restorer).items()}
        beta = {name: value.detach() for name, value in self.space.named_parameters()}

        def restored(searched: Parameters, omega: Parameters, sample: Sample) -> Tensor:
            given = {**alpha, **searched["architecture"], **omega}
            return self._restored(lambda observed: _call(self.restorer, given, observed), sample)

        def trained(searched: Parameters, omega: Parameters, sample: Sample) -> Tensor:
            image = restored(searched, omega, sample)
            return _call(self.space, {**beta, **searched["loss"]}, image, sample.clean)

        def upper(searched: Parameters, omega: Parameters) -> Tensor:
            if self.upper is None:
                return trained(searched, omega, validation)
            return self.upper(restored(searched, omega, validation), validation.clean)

        return Bilevel(upper=upper, lower=lambda searched, omega: trained(searched, omega, train))

    def searched(self) -> Parameters:
        """The parameters that are searched, by kind and name."""
        beta, alpha = dict(self.space.named_parameters()), architecture(self.restorer)
        return {
            "loss": {} if self.what == "architecture" else beta,
            "architecture": {} if self.what == "loss" else alpha,
        }

    def omega(self) -> dict[str, nn.Parameter]:
        """The weights that are trained."""
        return network_weights(self.restorer)

    def _restored(self, network: Callable[[Tensor], Tensor], sample: Sample) -> Tensor:
        with self.machine.autocast():
            image = network(sample.observed)
        return image.to(torch.promote_types(image.dtype, torch.float32))


def _call(module: nn.Module, parameters: Parameters, *inputs: Tensor) -> Tensor:
    result: Tensor = torch.func.functional_call(module, parameters, inputs)
    return result


class Collapsed(TwofoldError):
    """Most places of the units chose SC, the identity. step: when the search was stopped."""

    def __init__(self, step: int, ratio: float) -> None:
        super().__init__(
            f"after {step} steps SC leads at {ratio:.0%} of the places: the search collapses to identities, a known "
            "failure of gradient-based searches; stop earlier, lower the rate of architecture_optimizer, or take "
            "another seed"
        )
        self.step, self.ratio = step, ratio


@dataclass(frozen=True)
class CollapseGuard:
    """A report of `fit` that ends a search by raising `Collapsed` where the share of SC exceeds `limit`."""

    limit: float

    def step(self, done: int, until: int, losses: dict[str, float], images_per_second: float) -> None:
        ratio = losses.get("skip_ratio", 0.0)
        if ratio > self.limit:
            raise Collapsed(done, ratio)

    def validated(self, done: int, scores: dict[str, float]) -> None:
        pass
