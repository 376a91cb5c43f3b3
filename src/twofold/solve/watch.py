"""What a loss must not do while a hypergradient is under way: draw random numbers, or change what it will read again.

Both make two evaluations belong to two different problems, and a derivative that combines them is wrong without a sign
of it. So random generators are compared before and after every evaluation, and modules, buffers and arguments during
the first one.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

from twofold.solve.modules import TRAINING_BATCH_NORM
from twofold.solve.params import SolveError, State, named, scalar, tensors

RANDOM = (
    "draws random numbers and is evaluated more than once, so its evaluations belong to different problems: is there "
    "dropout, a random augmentation or a shuffling data loader inside it? Call .eval() on the network, or draw batches "
    "and masks once, outside"
)


def generator_states(device: torch.device) -> list[Tensor]:
    """The states of torch's own generators on the CPU and on a device: equal lists, nothing was drawn in between.

    >>> before = generator_states(torch.device("cpu"))
    >>> drawn = torch.rand(1)
    >>> same_states(before, generator_states(torch.device("cpu")))
    False
    """
    states = [torch.get_rng_state()]
    if device.type != "cpu" and hasattr(module := torch.get_device_module(device), "get_rng_state"):
        states.append(module.get_rng_state(device))
    return states


def same_states(before: list[Tensor], after: list[Tensor]) -> bool:
    """Whether two lists of generator states are equal.

    >>> same_states([torch.zeros(1)], [torch.zeros(1)])
    True
    """
    return all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


class WatchedLoss:
    """A loss of (upper parameters, lower parameters) that counts its evaluations and refuses to be evaluated twice
    where it draws random numbers, and at all where it changes buffers or arguments in place.

    >>> loss = WatchedLoss(lambda w, u: (w * u).sum(), "the lower loss")
    >>> loss(torch.tensor(2.0), torch.tensor(3.0)).item(), loss.evaluations
    (6.0, 1)
    """

    def __init__(self, loss: Callable[[State, State], Tensor], name: str) -> None:
        self.loss, self.name = loss, name
        self.evaluations = 0
        self.random = False

    def __call__(self, w: State, u: State) -> Tensor:
        self.evaluations += 1
        if self.random:
            raise SolveError(f"{self.name} {RANDOM}")
        device = tensors(u)[0].device
        before = generator_states(device)
        if self.evaluations == 1:
            value = self._first(w, u)
        else:
            value = self.loss(w, u)
        if not same_states(before, generator_states(device)):
            self.random = True
            if self.evaluations > 1:
                raise SolveError(f"{self.name} {RANDOM}")
        return scalar(value, self.name)

    def _first(self, w: State, u: State) -> Tensor:
        """The first evaluation, watched closely: later ones would do the same again."""
        arguments = [*named(w, "the upper parameters"), *named(u, "the lower parameters")]
        versions = [_version(t) for _, t in arguments]
        others = _other_generators()
        with _Modules(self.name), _Calls(self.name) as calls:
            value = self.loss(w, u)
        for (path, tensor), version in zip(arguments, versions, strict=True):
            if _version(tensor) != version:
                raise SolveError(f"{self.name} changes {path} in place; compute new tensors instead")
        self.random = calls.drew() or others != _other_generators()
        return value


class _Modules:
    """Watches every module that runs: its buffers, and tensors it holds besides, must stay what and as they are."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.seen: dict[int, tuple[nn.Module, dict[str, tuple[Tensor, int]]]] = {}

    def __enter__(self) -> _Modules:
        self.hooks = [register_module_forward_pre_hook(self._before), register_module_forward_hook(self._after)]
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()
        if kind is None:
            for module, held in self.seen.values():
                for name, (tensor, version) in held.items():
                    if _version(tensor) != version:
                        self._refuse(module, name)

    def _before(self, module: nn.Module, _: Any) -> None:
        if isinstance(module, _NormBase) and module.training and module.track_running_stats:
            raise SolveError(f"{self.name} runs {_kind(module)} in training mode, which {TRAINING_BATCH_NORM}")
        if id(module) not in self.seen:
            self.seen[id(module)] = module, {k: (t, _version(t)) for k, t in _held(module).items()}

    def _after(self, module: nn.Module, *_: Any) -> None:
        if id(module) not in self.seen:
            return
        # A buffer that is replaced is a state; a plain attribute that is replaced is most often a note for later.
        for name, (tensor, version) in self.seen[id(module)][1].items():
            if module._buffers.get(name, tensor) is not tensor or _version(tensor) != version:
                self._refuse(module, name)

    def _refuse(self, module: nn.Module, name: str) -> None:
        raise SolveError(
            f"{self.name} changes '{name}' of {type(module).__name__} while it is evaluated, so no two evaluations "
            "belong to the same problem; call .eval() on the network if that stops it, or pass the value in as data"
        )


class _Calls(TorchFunctionMode):
    """Refuses functional normalisation that would write running statistics; notes generators that are handed over."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.generators: dict[int, tuple[torch.Generator, Tensor]] = {}

    def drew(self) -> bool:
        return any(not torch.equal(state, generator.get_state()) for generator, state in self.generators.values())

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        generator = kwargs.get("generator")
        if isinstance(generator, torch.Generator) and id(generator) not in self.generators:
            self.generators[id(generator)] = generator, generator.get_state()
        name = getattr(func, "__name__", "")
        if name in ("batch_norm", "instance_norm"):
            # torch.batch_norm(input, weight, bias, running_mean, running_var, training, ...) has them at 3 and 5,
            # torch.nn.functional.batch_norm(input, running_mean, running_var, weight, bias, training, ...) at 1
            # and 5; instance_norm calls the last one use_input_stats.
            inner = func in (torch.batch_norm, torch.instance_norm)
            mean = kwargs.get("running_mean", args[3] if inner else args[1] if len(args) > 1 else None)
            flag = "training" if name == "batch_norm" else "use_input_stats"
            if kwargs.get(flag, args[5] if len(args) > 5 else name == "instance_norm") and mean is not None:
                kind = "BatchNorm" if name == "batch_norm" else "InstanceNorm"
                raise SolveError(f"{self.name} runs {kind} in training mode, which {TRAINING_BATCH_NORM}")
        return func(*args, **kwargs)


def _held(module: nn.Module) -> dict[str, Tensor]:
    """Buffers and plain tensor attributes of one module; its parameters may be swapped and are no state."""
    plain = {name: value for name, value in vars(module).items() if isinstance(value, Tensor)}
    return {**plain, **{name: b for name, b in module._buffers.items() if b is not None}}


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _kind(module: nn.Module) -> str:
    return type(module).__name__.rstrip("123d")


def _other_generators() -> tuple[Any, Any]:
    """Python's own generator, and numpy's global one where numpy is in use."""
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return random.getstate(), None
    kind, keys, *rest = numpy.random.get_state()
    return random.getstate(), (kind, keys.tobytes(), *rest)
