"""Updates of parameters: a learner with its optimizer and schedule, their settings, and its device."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, Literal, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn

from twofold.contracts import ConfigError, TwofoldError
from twofold.data.batches import Shard
from twofold.settings import Amount, Every, Rate, Settings, Share

AnyModule = TypeVar("AnyModule", bound=nn.Module)


class Diverged(TwofoldError, FloatingPointError):
    """The loss or its gradient is no longer a number."""


@dataclass(frozen=True)
class Machine:
    """Where a step is computed: the precision, the device, and which of several ranks this process is.

    average: the mean of a tensor over the ranks; None on a single one.
    """

    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    average: Callable[[Tensor], Tensor] | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    shard: Shard = field(default_factory=Shard)

    @property
    def main(self) -> bool:
        """Whether this is the first rank, the only one that writes."""
        return self.shard.rank == 0

    def place(self, module: AnyModule) -> AnyModule:
        """The module on the device, its weights laid out as convolutions like them."""
        placed: AnyModule = module.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return placed


def machine_of(precision: str, device: str) -> Machine:
    """precision: "float32" or "bf16". device: "auto", or one that torch knows. Ranks are those of `accelerate launch`.

    Raises: ConfigError where the package accelerate is not installed, or for a device that torch does not know.
    """
    try:
        from accelerate import PartialState
        from accelerate.utils import reduce
    except ImportError as error:
        raise ConfigError("training needs more packages: pip install 'twofold[train]'") from error
    ranks = PartialState(cpu=device == "cpu")
    try:
        place = ranks.device if device == "auto" else torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"unknown device {device!r}: auto, cpu, cuda, cuda:1 …") from error
    half = partial(torch.autocast, place.type, torch.bfloat16, enabled=precision == "bf16")
    average = partial(reduce, reduction="mean") if ranks.num_processes > 1 else None
    return Machine(half, average, place, Shard(ranks.process_index, ranks.num_processes))


class Learner:
    """An optimizer with its schedule over some parameters: `descend(loss)` or `step(gradients)` is one step.

    schedule: the factor on the learning rate at step n, counted from 0. clip: largest norm of the gradient, 0 for none.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
        *,
        schedule: Callable[[int], float] = lambda n: 1.0,
        clip: float = 0.0,
        machine: Machine | None = None,
    ) -> None:
        self.parameters = list(parameters)
        self.optimizer = optimizer(self.parameters)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, schedule)
        self.clip = clip
        self.machine = machine or Machine()

    def descend(self, loss: Tensor) -> None:
        """One step down the gradient of `loss`, a scalar.

        Raises: Diverged where loss or gradient is not finite; the parameters are then left as they were.
        """
        check_finite("loss", loss)
        self.step(torch.autograd.grad(loss, self.parameters, allow_unused=True))

    def step(self, gradients: Sequence[Tensor | None]) -> None:
        """One step down `gradients`, one for each of `parameters`, of the same shape; None leaves a parameter as it is.

        Raises: Diverged where they are not finite; the parameters are then left as they were.
        """
        used = [(p, g) for p, g in zip(self.parameters, gradients, strict=True) if g is not None]
        if self.machine.average is not None:  # one all-reduce for all: small networks are latency-bound
            flat = self.machine.average(torch.cat([g.flatten() for _, g in used]))
            parts = torch.split(flat, [g.numel() for _, g in used])
            used = [(p, part.view_as(p)) for (p, _), part in zip(used, parts, strict=True)]
        for p, g in used:
            p.grad = g
        norm = nn.utils.clip_grad_norm_(self.parameters, self.clip or torch.inf)
        check_finite("gradient", norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.schedule.step()

    def state_dict(self) -> dict[str, Any]:
        """The state of the optimizer, and the number of steps done."""
        return {"optimizer": self.optimizer.state_dict(), "schedule": {"last_epoch": self.schedule.last_epoch}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts back what `state_dict` returned. Raises: ValueError where it is of other parameters."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.last_epoch = state["schedule"]["last_epoch"]


def check_finite(name: str, value: Tensor) -> None:
    """Raises: Diverged where the scalar `value` is not finite; `name` says what it is."""
    if not torch.isfinite(value):
        raise Diverged(
            f"the training {name} became {value.item()}; train again with a lower learning_rate or with a clip, "
            "both under optimizer and guide_optimizer"
        )


class Optimizer(Settings):
    """learning_rate: at the end of the warm-up. betas: decay rates of Adam's moments. momentum: of sgd. weight_decay:
    factor of the weights' squared norm; decoupled in adamw. clip: largest norm of the gradient; 0 for none.
    """

    kind: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: Rate = 1e-3
    betas: Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)] = [0.9, 0.999]
    momentum: Share = 0.9
    weight_decay: Amount = 0.0
    clip: Amount = 0.0

    def build(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimizer of torch over `parameters`."""
        lr, decay = self.learning_rate, self.weight_decay
        if self.kind == "sgd":
            return torch.optim.SGD(parameters, lr, momentum=self.momentum, weight_decay=decay)
        first, second = self.betas
        family = torch.optim.Adam if self.kind == "adam" else torch.optim.AdamW
        return family(parameters, lr, betas=(first, second), weight_decay=decay)


class Schedule(Settings):
    """warmup: steps of linear rise. milestones: shares of the run after each of which the rate is multiplied by
    `factor`. factor: of multistep. floor: share of the rate that a cosine ends at.
    """

    kind: Literal["constant", "cosine", "multistep"] = "cosine"
    warmup: Every = 0
    milestones: list[Share] = []
    factor: Share = 0.2
    floor: Share = 0.0

    def build(self, steps: int) -> Callable[[int], float]:
        """The factor on the learning rate at step n of `steps`.

        >>> cosine = Schedule(kind="cosine", warmup=2).build(10)
        >>> [round(cosine(n), 2) for n in (0, 1, 2, 6, 10)]
        [0.5, 1.0, 1.0, 0.5, 0.0]
        """

        def factor(n: int) -> float:
            if n < self.warmup:
                return (n + 1) / self.warmup
            done = (n - self.warmup) / max(steps - self.warmup, 1)
            if self.kind == "cosine":
                return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
            if self.kind == "multistep":
                return float(self.factor ** sum(n >= share * steps for share in self.milestones))
            return 1.0

        return factor


def learner_of(
    parameters: Iterable[nn.Parameter], optimizer: Optimizer, schedule: Schedule, steps: int, machine: Machine
) -> Learner:
    """A learner by its settings; `steps` is how many it will make in all."""
    factor = schedule.build(steps)
    return Learner(parameters, optimizer.build, schedule=factor, clip=optimizer.clip, machine=machine)
