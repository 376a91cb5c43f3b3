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
import inspect
import json
import operator
import os
import platform
import time
import weakref
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

_SMALLEST_NORMAL = torch.finfo(torch.float32).tiny  # 1.18e-38
_TOLERANCE = 2e-3
"""Root mean square deviation from plain float32, half a grey level, that a recipe may show on the example."""
_MARGIN = 0.95
"""Share of a simpler recipe's time that a less simple one has to reach, so that noise does not choose."""

_ACTIVATIONS: dict[Any, str] = {
    **dict.fromkeys((F.relu, torch.relu, nn.ReLU, "relu"), "relu"),
    **dict.fromkeys((F.sigmoid, torch.sigmoid, nn.Sigmoid, "sigmoid"), "sigmoid"),
    **dict.fromkeys((F.tanh, torch.tanh, nn.Tanh, "tanh"), "tanh"),
}
_SUMS = (operator.add, torch.add)
_PRODUCTS = (operator.mul, torch.mul)
_IN_PLACE = {"relu": torch.relu_, "sigmoid": torch.sigmoid_, "tanh": torch.tanh_}


@dataclass(frozen=True)
class Recipe:
    """How a network is run. The defaults are plain float32 as the network was written.

    channels_last: a pixel's channels lie side by side in memory. bfloat16: convolutions round to 8 bits of mantissa and
    sum in float32. fused: a convolution, the sum and the activation that follow it are one pass (CPU only).
    compiled: by torch.compile, which takes a C++ compiler and up to a minute once.
    """

    channels_last: bool = False
    bfloat16: bool = False
    fused: bool = False
    compiled: bool = False


def plain() -> Recipe:
    """Float32, as the network was written."""
    return Recipe()


CANDIDATES = (
    Recipe(channels_last=True),
    Recipe(channels_last=True, fused=True),
    Recipe(channels_last=True, bfloat16=True),
    Recipe(channels_last=True, bfloat16=True, fused=True),
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


def run(network: nn.Module, recipe: Recipe, *, inputs: int = 1) -> Callable[..., Tensor]:
    """A function that computes what `network` does for `inputs` tensors, by `recipe`, without gradients.

    The network is not changed: its weights are copied where another form of them is needed. The result is float32.
    """
    if recipe == plain():
        return torch.inference_mode()(network)
    layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
    own: nn.Module = copy.deepcopy(network).eval().requires_grad_(False)
    if recipe.fused:
        own = fused(own, dtype=torch.bfloat16 if recipe.bfloat16 else torch.float32, inputs=inputs)
    own = own.to(memory_format=layout)  # type: ignore[call-overload]
    call = torch.compile(own) if recipe.compiled else own

    def compute(*given: Tensor) -> Tensor:
        arranged = [x.contiguous(memory_format=layout) for x in given]
        with torch.inference_mode(), torch.autocast(given[0].device.type, torch.bfloat16, enabled=recipe.bfloat16):
            result: Tensor = call(*arranged)
        return result.float()

    return compute


def choose(
    network: nn.Module,
    example: Tensor | tuple[Tensor, ...],
    *,
    cache: Path | None = None,
    candidates: Iterable[Recipe] = CANDIDATES,
    rounds: int = 3,
) -> Recipe:
    """The fastest of `candidates` and plain float32 for `network` on this machine.

    example: the input, or inputs, `(B, C, H, W)`, of a usual size; 128 × 128 pixels are enough, and take seconds.
    cache: a folder where answers are kept, one for each version of torch, processor, number of threads, network and
    size. A recipe is passed over if it fails, deviates from plain float32 by half a grey level (root mean square), or
    gains less than a twentieth.
    """
    given = example if isinstance(example, tuple) else (example,)
    key = _key(network, given)
    known = _load(cache)
    if key in known:
        with contextlib.suppress(TypeError):  # written by another version, with other fields
            return Recipe(**known[key])
    recipe = _fastest(network, given, candidates, rounds)
    _save(cache, {**known, key: asdict(recipe)})
    return recipe


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


def _fastest(network: nn.Module, given: tuple[Tensor, ...], candidates: Iterable[Recipe], rounds: int) -> Recipe:
    runners = {plain(): run(network, plain())}
    expected = runners[plain()](*given).float()
    for recipe in candidates:
        # A candidate may fail in any way a kernel or a tracer can fail; then it is not one.
        with contextlib.suppress(Exception):
            runner = run(network, recipe, inputs=len(given))
            deviation = (runner(*given) - expected).square().mean().sqrt()
            if deviation <= _TOLERANCE:  # false for NaN
                runners[recipe] = runner
    seconds = dict.fromkeys(runners, float("inf"))
    for _ in range(rounds):  # in turns, so that what else the machine does meets all of them
        for recipe, runner in runners.items():
            seconds[recipe] = min(seconds[recipe], _seconds(runner, given))
    best = plain()
    for recipe in runners:
        if seconds[recipe] < _MARGIN * seconds[best]:
            best = recipe
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
            known = json.loads((cache / "recipes.json").read_text())
            return known if isinstance(known, dict) else {}
    return {}


def _save(cache: Path | None, known: dict[str, Any]) -> None:
    if cache is None:
        return
    with contextlib.suppress(OSError):  # a cache that cannot be kept costs a second next time, no more
        cache.mkdir(parents=True, exist_ok=True)
        temporary = cache / f".recipes.{os.getpid()}.part"
        temporary.write_text(json.dumps(known, indent=1))
        os.replace(temporary, cache / "recipes.json")


def fused(network: nn.Module, *, dtype: torch.dtype = torch.float32, inputs: int = 1) -> fx.GraphModule:
    """`network` with every convolution, and the sum and activation that follow it, as one operation of oneDNN.

    A convolution whose output is split into parts with different activations (the gates of an LSTM) becomes one for
    each part, activations of what is never negative are left out, and sums and products overwrite what nobody else
    needs. inputs: how many arguments of `forward` are given; the others keep their defaults.

    Needs a network that `torch.fx` can trace: no decisions that depend on pixels.
    """
    parameters = list(inspect.signature(network.forward).parameters.items())
    traced = fx.symbolic_trace(
        network, concrete_args={name: parameter.default for name, parameter in parameters[inputs:]}
    )
    layers = dict(traced.named_modules())
    for node in list(traced.graph.nodes):
        layer = layers.get(node.target) if node.op == "call_module" else None
        if isinstance(layer, nn.Conv2d) and layer.padding_mode == "zeros" and isinstance(layer.padding, tuple):
            for part, channels in _parts(node, layer):
                _fuse(traced, layers, part, node.args[0], layer, channels, dtype)
    traced.graph.eliminate_dead_code()
    layers = dict(traced.named_modules())
    for node in list(traced.graph.nodes):
        if _activation(node, layers) == "relu" and _never_negative(node.args[0], layers):
            node.replace_all_uses_with(node.args[0])
            traced.graph.erase_node(node)
    for node in traced.graph.nodes:
        _overwrite(node, layers)
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced


class FusedConvolution(nn.Module):
    """activation(convolution(x) + other), in one pass; computes and returns `dtype`."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Conv2d, channels: slice, activation: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("weight", layer.weight.detach()[channels].to(dtype))
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach()[channels].to(dtype))
        self.settings = (list(layer.padding), list(layer.stride), list(layer.dilation), layer.groups)
        self.activation = activation

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        convolution = torch.ops.mkldnn._convolution_pointwise
        layer = (self.weight, self.bias, *self.settings)
        x = x.to(self.weight.dtype)
        result: Tensor
        if other is None:
            result = convolution(x, *layer, self.activation or "none", [], "")
        else:
            result = convolution.binary(x, other.to(x.dtype), *layer, "add", 1.0, self.activation, [], "")
        return result


def _parts(node: fx.Node, layer: nn.Conv2d) -> list[tuple[fx.Node, slice]]:
    """The convolution `node` itself, or the parts that it is split into, each with its output channels."""
    users = list(node.users)
    if len(users) == 1 and users[0].op == "call_method" and users[0].target == "chunk" and users[0].args[2:] == (1,):
        count: Any = users[0].args[1]
        step, rest = divmod(layer.out_channels, count)
        parts = list(users[0].users)
        if layer.groups == 1 and rest == 0 and all(part.target is operator.getitem for part in parts):
            starts: list[Any] = [part.args[1] for part in parts]
            return [(part, slice(i * step, (i + 1) * step)) for part, i in zip(parts, starts, strict=True)]
    return [(node, slice(None))]


def _fuse(
    traced: fx.GraphModule,
    layers: dict[str, nn.Module],
    part: fx.Node,
    x: Any,
    layer: nn.Conv2d,
    channels: slice,
    dtype: torch.dtype,
) -> None:
    """Replaces `part`, and what may follow it, by one convolution that stands where the last of them stood."""
    last, other = part, None
    follower = _only_user(part)
    activation = _activation(follower, layers)
    if activation and follower is not None:
        last = follower
    elif follower is not None and follower.target in _SUMS and len(follower.args) == 2 and not follower.kwargs:
        # Only where an activation comes next: a bare sum may be the network's output, to be kept in float32.
        end = _only_user(follower)
        addends = [addend for addend in follower.args if addend is not part]
        if end is not None and (activation := _activation(end, layers)) and len(addends) == 1:
            last, other = end, addends[0]
    if not isinstance(other, fx.Node):  # a number is no picture
        other, last, activation = None, last if last is follower else part, activation if last is follower else ""
    name = f"fused_{part.name}"
    traced.add_submodule(name, FusedConvolution(layer, channels, activation, dtype))
    with traced.graph.inserting_before(last):
        last.replace_all_uses_with(traced.graph.call_module(name, (x,) if other is None else (x, other)))


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _activation(node: fx.Node | None, layers: dict[str, nn.Module]) -> str:
    """The name of the activation that `node` computes, empty if it does anything else."""
    if node is None or node.op not in ("call_function", "call_method", "call_module"):
        return ""
    return _ACTIVATIONS.get(type(layers[str(node.target)]) if node.op == "call_module" else node.target, "")


def _never_negative(node: Any, layers: dict[str, nn.Module]) -> bool:
    if not isinstance(node, fx.Node):
        return False
    layer = layers.get(str(node.target)) if node.op == "call_module" else None
    if isinstance(layer, FusedConvolution):
        return layer.activation in ("relu", "sigmoid")
    if node.target in _SUMS + _PRODUCTS:
        return len(node.args) == 2 and not node.kwargs and all(_never_negative(part, layers) for part in node.args)
    return _activation(node, layers) in ("relu", "sigmoid")


def _overwrite(node: fx.Node, layers: dict[str, nn.Module]) -> None:
    """Lets `node` write over its first operand if that is a fresh tensor which nobody else reads."""

    def fresh(operand: Any) -> bool:
        if not isinstance(operand, fx.Node) or _only_user(operand) is not node:
            return False
        if operand.op == "call_module":
            return isinstance(layers[str(operand.target)], FusedConvolution)
        return operand.target in (*_SUMS, *_PRODUCTS, _sum_into, _product_into, *_IN_PLACE.values())

    if node.op != "call_function":
        return
    if node.target in _SUMS + _PRODUCTS and len(node.args) == 2 and not node.kwargs:
        first, second = node.args
        if fresh(second) and not fresh(first):
            first, second = second, first
        if fresh(first) and isinstance(second, fx.Node):
            node.args = (first, second)
            node.target = _sum_into if node.target in _SUMS else _product_into
    elif (activation := _activation(node, layers)) and fresh(node.args[0]):
        node.target, node.args, node.kwargs = _IN_PLACE[activation], node.args[:1], {}


def _sum_into(a: Tensor, b: Tensor) -> Tensor:
    return a.add_(b) if _holds(a, b) else a + b


def _product_into(a: Tensor, b: Tensor) -> Tensor:
    return a.mul_(b) if _holds(a, b) else a * b


def _holds(a: Tensor, b: Tensor) -> bool:
    """Whether `a` can take the result of an operation with `b`: same shape, and no loss of precision."""
    return a.shape == b.shape and torch.promote_types(a.dtype, b.dtype) == a.dtype
