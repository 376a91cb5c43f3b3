"""How a network is run on this machine: memory layout, precision, fused convolutions, flushed denormals.

Two things must be set before torch computes, and so belong to whoever owns the process: `THP_MEM_ALLOC_ENABLE=1` in the
environment before torch is imported (huge pages: without them, large layers spend up to half of their time in page
faults), and `torch.set_flush_denormal(True)` in the main thread before the first computation (worker threads inherit it
when they start).
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import platform
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.proxy import TraceError
from torch.utils._python_dispatch import TorchDispatchMode

from twofold.contracts import TwofoldError
from twofold.fusion import fused

_WHOLE = 2**25
"""Values of a picture above which it is not arranged anew: it is no tile, and its network cuts it by itself."""
_SMALLEST_NORMAL = torch.finfo(torch.float32).tiny  # 1.18e-38


def device_of(name: torch.device | str) -> torch.device:
    """The device of that name; "auto" is a GPU where there is one.

    Raises: TwofoldError for one that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # the latter where torch was built without CUDA
        reason = str(error).splitlines()[0]
        raise TwofoldError(f"device {str(name)!r} cannot be used here ({reason}); try auto or cpu") from error


@contextlib.contextmanager
def evaluating(network: object) -> Iterator[None]:
    """A network that its user is training restores as any other, and is in training again afterwards."""
    training = [part for part in network.modules() if part.training] if isinstance(network, nn.Module) else []
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


@dataclass(frozen=True)
class ExecutionPlan:
    """How a network is run. The defaults are plain float32 as the network was written.

    channels_last: a pixel's channels lie side by side in memory. bfloat16: convolutions round to 8 bits of mantissa and
    sum in float32. fused: a convolution, the sum and the activation that follow it are one pass (CPU only).
    compiled: by torch.compile, which takes a C++ compiler and up to a minute once.
    """

    channels_last: bool = False
    bfloat16: bool = False
    fused: bool = False
    compiled: bool = False


def plain() -> ExecutionPlan:
    """Float32, as the network was written."""
    return ExecutionPlan()


def has_bf16(device: torch.device) -> bool:
    """Whether the device computes convolutions in bfloat16 faster than in float32, by its instruction set."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and bool(torch.cpu._is_avx512_bf16_supported())


def plan_for(device: torch.device, *, bfloat16: bool) -> ExecutionPlan:
    """The recipe for a device: a rule, not a measurement, so that the same machine always gives the same image.

    benchmarks/restore.py and benchmarks/runtimes.py hold what it is based on.
    """
    fused = device.type == "cpu" and bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
    return ExecutionPlan(channels_last=True, bfloat16=bfloat16, fused=fused)


def flush_denormals_(module: nn.Module) -> int:
    """Sets weights below 1.18e-38 to zero and returns how many there were.

    Weight decay leaves such numbers in filters that died. They change no output bit, and slow some processors 30-fold.

    >>> layer = nn.Linear(2, 1)
    >>> _ = nn.init.constant_(layer.weight, 1e-39)
    >>> flush_denormals_(layer), layer.weight.tolist()
    (2, [[0.0, 0.0]])
    """
    count = 0
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point():
                denormal = (tensor != 0) & (tensor.abs() < _SMALLEST_NORMAL)
                count += int(denormal.sum())
                tensor.masked_fill_(denormal, 0)
    return count


def runner(network: nn.Module, plan: ExecutionPlan, *, inputs: int = 1) -> Callable[..., Tensor]:
    """A function that computes what `network` does for `inputs` tensors, by `plan`, without gradients.

    The network is not changed: its weights are copied where another form of them is needed. The result is float32.
    """
    if plan == plain():
        return torch.inference_mode()(network)
    layout = torch.channels_last if plan.channels_last else torch.contiguous_format
    own: nn.Module = copy.deepcopy(network).eval().requires_grad_(False)
    if plan.fused:
        # A network that torch.fx cannot trace, because it decides by what its input is, runs as it is.
        with contextlib.suppress(TraceError, TypeError, ValueError, NotImplementedError):
            own = fused(own, dtype=torch.bfloat16 if plan.bfloat16 else torch.float32, inputs=inputs)
    own = own.to(memory_format=layout)  # type: ignore[call-overload]
    call = torch.compile(own) if plan.compiled else own

    def compute(*given: Tensor) -> Tensor:
        arranged = [x.contiguous(memory_format=layout) if x.ndim == 4 and x.numel() < _WHOLE else x for x in given]
        with torch.inference_mode(), torch.autocast(given[0].device.type, torch.bfloat16, enabled=plan.bfloat16):
            result: Tensor = call(*arranged)
        return result.float()

    return compute


def peak_bytes(runner: Callable[..., Tensor], given: Tensor | tuple[Tensor, ...]) -> int:
    """Bytes of tensors that `runner` holds at once beyond its inputs; divided by the pixels, what `tiling.Budget` asks.

    Counts tensors as operations return them; a compiled function hides its own.

    >>> peak_bytes(lambda x: (x + 1) * 2, torch.zeros(1, 1, 8, 8))
    512
    """
    held = _Held()
    with held, torch.inference_mode():
        runner(*given) if isinstance(given, tuple) else runner(given)
    return held.peak


class _Held(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows every tensor made while it is on, from the operation that returns it until it is freed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        self.peak = 0
        self.holders: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {x.untyped_storage().data_ptr() for x in args if isinstance(x, Tensor)} - self.holders.keys()
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor) and (place := tensor.untyped_storage().data_ptr()) not in given:
                size = tensor.untyped_storage().nbytes()
                if place not in self.holders:
                    self.now += size
                    self.peak = max(self.peak, self.now)
                self.holders[place] = self.holders.get(place, 0) + 1
                weakref.finalize(tensor, self._released, place, size)
        return result

    def _released(self, place: int, size: int) -> None:
        self.holders[place] -= 1
        if not self.holders[place]:
            del self.holders[place]
            self.now -= size


def processor() -> str:
    """The processor's name and a digest of what it can do, since one name covers several kinds of virtual machine."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = {line.partition(":")[0].strip(): line.partition(":")[2].strip() for line in lines}
    abilities = hashlib.sha256(facts.get("flags", "").encode()).hexdigest()[:8]
    return f"{facts.get('model name', platform.machine())} {abilities}"
