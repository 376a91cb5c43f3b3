"""How a network is run on this machine: memory layout, precision, fused convolutions, flushed denormals; measured once.

What pays differs by machine and by network (bfloat16 in the plain layout makes several of them slower), so `choose`
measures the candidates on a small example and keeps the answer; plain float32 is always among them.

Two things must be set before torch computes, and so belong to whoever owns the process: `THP_MEM_ALLOC_ENABLE=1` in the
environment before torch is imported (huge pages: without them, large layers spend up to half of their time in page
faults), and `torch.set_flush_denormal(True)` in the main thread before the first computation (worker threads inherit it
when they start).
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import platform
import time
import weakref
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from twofold.contracts import TwofoldError
from twofold.files import write_text
from twofold.fusion import fused

_SMALLEST_NORMAL = torch.finfo(torch.float32).tiny  # 1.18e-38
_TOLERANCE = 2e-3
"""Root mean square deviation from plain float32, half a grey level, that a plan may show on the example."""
_MARGIN = 0.95
"""Share of a simpler plan's time that a less simple one has to reach, so that noise does not choose."""


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


CANDIDATES = (
    ExecutionPlan(channels_last=True),
    ExecutionPlan(channels_last=True, fused=True),
    ExecutionPlan(channels_last=True, bfloat16=True),
    ExecutionPlan(channels_last=True, bfloat16=True, fused=True),
)
"""What `choose` tries beside plain float32. Compiling is not among them: its minute is rarely earned back."""


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
        own = fused(own, dtype=torch.bfloat16 if plan.bfloat16 else torch.float32, inputs=inputs)
    own = own.to(memory_format=layout)  # type: ignore[call-overload]
    call = torch.compile(own) if plan.compiled else own

    def compute(*given: Tensor) -> Tensor:
        arranged = [x.contiguous(memory_format=layout) for x in given]
        with torch.inference_mode(), torch.autocast(given[0].device.type, torch.bfloat16, enabled=plan.bfloat16):
            result: Tensor = call(*arranged)
        return result.float()

    return compute


def choose(
    network: nn.Module,
    example: Tensor | tuple[Tensor, ...],
    *,
    cache: Path | None = None,
    candidates: Iterable[ExecutionPlan] = CANDIDATES,
    compared: int | None = None,
    rounds: int = 3,
) -> ExecutionPlan:
    """The fastest of `candidates` and plain float32 for `network` on this machine.

    example: the input, or inputs, `(B, C, H, W)`, of a usual size; 128 × 128 pixels are enough, and take seconds.
    cache: a folder where answers are kept, one for each version of torch, processor, number of threads, network and
    size. A plan is passed over if it fails, deviates from plain float32 by half a grey level (root mean square), or
    gains less than a twentieth. compared: how many channels of the result are held to that, those of the picture when
    a map follows them; None for all.
    """
    given = example if isinstance(example, tuple) else (example,)
    key = _key(network, given)
    known = _load(cache)
    if key in known:
        with contextlib.suppress(TypeError):  # written by another version, with other fields
            return ExecutionPlan(**known[key])
    plan = _fastest(network, given, candidates, compared, rounds)
    _save(cache, {**known, key: asdict(plan)})
    return plan


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
    """Follows every tensor made while it is on, from the operation that returns it until nobody holds it."""

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


def _fastest(
    network: nn.Module,
    given: tuple[Tensor, ...],
    candidates: Iterable[ExecutionPlan],
    compared: int | None,
    rounds: int,
) -> ExecutionPlan:
    runners = {plain(): runner(network, plain())}
    expected = runners[plain()](*given)[:, :compared].float()
    for plan in candidates:
        # A candidate may fail in any way a kernel or a tracer can fail; then it is not one.
        with contextlib.suppress(Exception):
            runner = runner(network, plan, inputs=len(given))
            deviation = (runner(*given)[:, :compared] - expected).square().mean().sqrt()
            if deviation <= _TOLERANCE:  # false for NaN
                runners[plan] = runner
    seconds = dict.fromkeys(runners, float("inf"))
    for _ in range(rounds):  # in turns, so that what else the machine does meets all of them
        for plan, runner in runners.items():
            seconds[plan] = min(seconds[plan], _seconds(runner, given))
    best = plain()
    for plan in runners:
        if seconds[plan] < _MARGIN * seconds[best]:
            best = plan
    return best


def _seconds(runner: Callable[..., Tensor], given: tuple[Tensor, ...]) -> float:
    start = time.perf_counter()
    result = runner(*given)
    result.flatten()[0].item()  # waits for a device that computes in the background
    return time.perf_counter() - start


def _key(network: nn.Module, given: tuple[Tensor, ...]) -> str:
    """One line that changes when the answer might: version, processor, threads, the network's shapes, size class."""
    shapes = [(name, tuple(weight.shape)) for name, weight in network.state_dict().items()]
    fingerprint = hashlib.sha256(f"{network}{shapes}".encode()).hexdigest()[:16]
    sizes = "+".join(f"{x.shape[1]}c2^{(x.shape[0] * x.shape[2] * x.shape[3]).bit_length()}" for x in given)
    device = torch.cuda.get_device_name(given[0].device) if given[0].is_cuda else processor()
    return f"torch {torch.__version__} | {device} | {torch.get_num_threads()} threads | {fingerprint} | {sizes}"


def processor() -> str:
    """The processor's name and a digest of what it can do, since one name covers several kinds of virtual machine."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = {line.partition(":")[0].strip(): line.partition(":")[2].strip() for line in lines}
    abilities = hashlib.sha256(facts.get("flags", "").encode()).hexdigest()[:8]
    return f"{facts.get('model name', platform.machine())} {abilities}"


def _load(cache: Path | None) -> dict[str, Any]:
    if cache is not None:
        with contextlib.suppress(OSError, ValueError):
            known = json.loads((cache / "plans.json").read_text())
            return known if isinstance(known, dict) else {}
    return {}


def _save(cache: Path | None, known: dict[str, Any]) -> None:
    if cache is None:
        return
    with contextlib.suppress(TwofoldError):  # a cache that cannot be kept costs a second next time, no more
        write_text(cache / "plans.json", json.dumps(known, indent=1))
