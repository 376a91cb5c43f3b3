"""A model computed by ONNX Runtime or OpenVINO in place of torch, and which runtime was chosen for this machine.

`choose` measures the runtimes that are installed and keeps the fastest in a file of the user's cache folder. Nothing is
measured while photographs are restored: without that file torch is used, so that results never depend on timing.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, cast

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

import twofold
from twofold import hub, runtime, zoo
from twofold.contracts import Restorer, TwofoldError
from twofold.export import network, onnx_graph, precision
from twofold.export.network import ESTIMATE, Whole
from twofold.files import cache_folder, replacing, write_text
from twofold.metrics import psnr
from twofold.restorers.tile import Extra, Tile

RuntimeName = Literal["torch", "onnx", "openvino"]
Computation = Literal["exact", "float32", "bf16"]
"""How numbers are computed, as `load(precision=...)` has it."""
LIBRARIES: dict[str, tuple[str, str]] = {"onnx": ("onnxruntime", "onnx"), "openvino": ("openvino", "openvino")}
"""Of each runtime beside torch: the library, and the extra that installs it."""
GREY_LEVELS, DECIBELS = 0.5, 0.02
"""What a runtime may change: root mean square of grey levels, and PSNR, of every photograph it is tried on."""
GAIN = 1.05
"""How much faster than torch another runtime must be to be chosen; less is within the scatter of a measurement."""
_SIDE = 384


@dataclass(frozen=True)
class RuntimeChoice:
    """What was chosen for a model on a machine, and from what.

    model: its name when it was measured. seconds: of one 384 × 384 photograph, by "runtime precision". left_out: what
    was not taken into account, with the reason. versions: of torch and the libraries when it was measured.
    """

    model: str
    runtime: RuntimeName
    precision: Computation
    threads: int
    seconds: dict[str, float]
    left_out: dict[str, str]
    versions: dict[str, str]

    @property
    def reason(self) -> str:
        """One line for a report."""
        times = ", ".join(f"{name} {1000 * seconds:.0f} ms" for name, seconds in sorted(self.seconds.items()))
        left = "".join(f"; not {name}: {why}" for name, why in self.left_out.items())
        return f"measured with {self.threads} thread{'s' * (self.threads > 1)}: {times}{left}"


@dataclass(eq=False)
class GraphRunner:
    """A model's ONNX graph in a runtime; it can be pickled, and opens its session where it is first used.

    data: the bytes of the ONNX file. strength 0 returns the observed picture exactly in every precision.
    """

    name: Literal["onnx", "openvino"]
    data: bytes
    bfloat16: bool = False
    _sessions: dict[int, Callable[[Mapping[str, Tensor]], list[Tensor]]] = field(default_factory=dict, repr=False)

    def tile(self, restorer: Restorer, extras: Sequence[Extra]) -> Callable[..., Tensor]:
        """What `runtime.runner(Tile(restorer, extras), ...)` computes, by this graph."""

        def compute(observed: Tensor, strength: Tensor, *given: Tensor) -> Tensor:
            inputs = {"observed": observed.contiguous(), "strength": strength.reshape(1)}
            if restorer.kind is not None:
                inputs["guidance"] = torch.full_like(observed[:, :1], ESTIMATE).contiguous()
            inputs |= {name: value.contiguous() for name, value in zip(extras, given, strict=True)}
            found = self._session()(inputs)
            image = observed if strength.item() == 0 else found[0]
            return image if restorer.kind is None else torch.cat([image, found[1]], 1)

        return compute

    def _session(self) -> Callable[[Mapping[str, Tensor]], list[Tensor]]:
        threads = torch.get_num_threads()
        if threads not in self._sessions:
            if self.name == "onnx":
                self._sessions[threads] = onnx_graph.Session(self.data, threads=threads)
            else:
                self._sessions[threads] = onnx_graph.OpenVinoSession(self.data, threads=threads, bfloat16=self.bfloat16)
        return self._sessions[threads]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_sessions": {}}


def require_runtime(name: str) -> None:
    """Raises: TwofoldError for a runtime that is unknown or not installed."""
    if name not in ("torch", *LIBRARIES):
        raise TwofoldError(f"runtime: expected auto, torch, {' or '.join(LIBRARIES)}, got {name!r}")
    if name != "torch":
        library, extra = LIBRARIES[name]
        onnx_graph.installed(library, extra)


def graph_runner(model: str | Path, restorer: Restorer, choice: RuntimeName, *, bfloat16: bool = False) -> GraphRunner:
    """A loaded model in another runtime than torch. Its graph is traced once and kept in the cache folder.

    Raises: TwofoldError where the runtime is not installed, cannot compute in bfloat16, or the model has no graph.
    """
    require_runtime(choice)
    if choice == "torch" or (bfloat16 and choice == "onnx"):
        raise TwofoldError(f"runtime {choice} has no bfloat16 graph; take precision float32, or openvino")
    whole = Whole(restorer)
    file = cache_folder() / "graphs" / f"{_digest(model)[:32]}-{_digest_of_versions(versions())}.onnx"
    if not file.is_file():
        for needed in ("onnx", "onnxscript"):
            onnx_graph.installed(needed)
        graph = onnx_graph.to_onnx(network.trace(whole), whole, {"written_by": versions()["twofold"]})
        _require_inputs(graph)
        with replacing(file) as temporary:
            temporary.write_bytes(graph.SerializeToString())
    return GraphRunner(choice, file.read_bytes(), bfloat16)


def _require_inputs(graph: Any) -> None:
    """Takes the defaults of inputs out: all are given here, and OpenVINO would take them for constants."""
    kept = [value for value in graph.graph.initializer if value.name not in onnx_graph.OPTIONAL]
    del graph.graph.initializer[:]
    graph.graph.initializer.extend(kept)


def kept_choice(model: str | Path) -> RuntimeChoice | None:
    """What `choose` kept for this model, machine and these versions; None where it kept nothing."""
    kept = _kept()
    if not kept:
        return None
    try:
        choice = TypeAdapter(RuntimeChoice).validate_python(kept.get(_key(model)))
    except (ValidationError, TwofoldError, OSError):
        return None
    return choice if choice.versions == versions() else None


def choices_file() -> Path:
    """Where the chosen runtimes are kept."""
    return cache_folder() / "runtimes.json"


def choose(model: str | Path, *, rounds: int = 5) -> RuntimeChoice:
    """Measures a model in every runtime that is installed, on degraded photographs of 384 × 384, and keeps the choice.

    Every runtime takes its turn in each round, and its best round counts. One that changes a photograph by more than
    half a grey level (root mean square) or 0.02 dB from plain float32 is left out. The recipe of torch that is used
    without a measurement stays, unless another is faster by 5 %.

    Raises: WeightsError for an unknown model; TwofoldError for one that has no graph, or where nothing can be kept.
    """
    restorer = zoo.load_restorer(model)
    card = zoo.cards().get(str(model))
    whole = Whole(restorer)
    cases = _cases(whole, restorer, "" if card is None else card.task)
    half = card is not None and card.allows_bf16 and runtime.has_bf16(torch.device("cpu"))
    candidates, left_out = _candidates(model, restorer, cases[0].extras, bfloat16=half)
    plain = candidates["torch exact"]
    wanted = [plain(*case.inputs) for case in cases]
    for name in [name for name in candidates if name != "torch exact"]:
        try:
            if reason := _differs(candidates[name], cases, wanted, restorer.channels):
                left_out[name] = reason
        except (RuntimeError, ValueError) as error:
            left_out[name] = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        if name in left_out:
            del candidates[name]
    # On one thread, CPU time: other work on the machine disturbs it least.
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    seconds = dict.fromkeys(candidates, float("inf"))
    for _ in range(rounds):
        for name, run in candidates.items():
            began = clock()
            run(*cases[0].inputs)
            seconds[name] = min(seconds[name], clock() - began)
    usual = "torch bf16" if half and "torch bf16" in seconds else "torch float32"
    fastest = min(seconds, key=seconds.__getitem__)
    best = fastest if usual not in seconds or seconds[usual] > GAIN * seconds[fastest] else usual
    name, computed = best.split()
    choice = RuntimeChoice(
        model=Path(model).name,
        runtime=cast(RuntimeName, name),
        precision=cast(Computation, computed),
        threads=torch.get_num_threads(),
        seconds={each: round(value, 4) for each, value in seconds.items()},
        left_out=left_out,
        versions=versions(),
    )
    write_text(choices_file(), json.dumps({**_kept(), _key(model): asdict(choice)}, indent=1) + "\n")
    return choice


@dataclass(frozen=True)
class _Case:
    """Inputs of a tile in their order, the extras among them, and the clean picture where it is known."""

    inputs: tuple[Tensor, ...]
    extras: tuple[Extra, ...]
    clean: Tensor | None


def _cases(whole: Whole, restorer: Restorer, task: str) -> list[_Case]:
    known = precision.degradation_of(task, whole.kind) is not None
    found = []
    for pair in precision.pairs(whole, task):
        observed = nn.functional.interpolate(pair.inputs["observed"][:1], (_SIDE, _SIDE), mode="bicubic").clamp(0, 1)
        clean = nn.functional.interpolate(pair.clean[:1], (_SIDE, _SIDE), mode="bicubic").clamp(0, 1)
        extras: list[Extra] = []
        inputs = [observed, torch.ones(1, 1, 1, 1)]
        if "kernel" in pair.inputs:
            extras.append("kernel")
            inputs.append(pair.inputs["kernel"])
        with torch.inference_mode():
            context = restorer.context(observed)
        if context is not None:
            extras.append("context")
            inputs.append(context)
        found.append(_Case(tuple(inputs), tuple(extras), clean if known and not restorer.takes_kernel else None))
    return found


def _candidates(
    model: str | Path, restorer: Restorer, extras: tuple[Extra, ...], *, bfloat16: bool
) -> tuple[dict[str, Callable[..., Tensor]], dict[str, str]]:
    """Functions of a tile by "runtime precision", and why others are left out."""
    count, device = 2 + len(extras), torch.device("cpu")
    plans = {"exact": runtime.plain(), "float32": runtime.plan_for(device, bfloat16=False)}
    plans |= {"bf16": runtime.plan_for(device, bfloat16=True)} if bfloat16 else {}
    found: dict[str, Callable[..., Tensor]] = {
        f"torch {name}": runtime.runner(Tile(restorer, extras).eval(), plan, inputs=count)
        for name, plan in plans.items()
    }
    left_out: dict[str, str] = {}
    graphs: list[tuple[Literal["onnx", "openvino"], str]] = [("onnx", "float32"), ("openvino", "float32")]
    graphs += [("openvino", "bf16")] if bfloat16 else []
    for name, computed in graphs:
        try:
            made = graph_runner(model, restorer, name, bfloat16=computed == "bf16")
            found[f"{name} {computed}"] = made.tile(restorer, extras)
        except TwofoldError as error:
            left_out[name] = str(error)
    return found, left_out


def _differs(run: Callable[..., Tensor], cases: Sequence[_Case], wanted: Sequence[Tensor], channels: int) -> str:
    """Why a runtime may not be taken; empty where its pictures are those of plain float32."""
    for case, expected in zip(cases, wanted, strict=True):
        image, right = (x[:, :channels].clamp(0, 1) for x in (run(*case.inputs), expected))
        levels = 255 * (image - right).square().mean().sqrt().item()
        if not levels <= GREY_LEVELS:  # also NaN
            return f"changes a photograph by {levels:.2f} grey levels"
        if case.clean is not None:
            change = (psnr(image, case.clean) - psnr(right, case.clean)).mean().item()
            if not abs(change) <= DECIBELS:
                return f"changes the PSNR of a photograph by {change:+.3f} dB"
    return ""


def _kept() -> dict[str, Any]:
    """The file of choices; empty where there is none, or it is damaged."""
    try:
        found = json.loads(choices_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _key(model: str | Path) -> str:
    return f"{_digest(model)} on {runtime.processor()}"


def _digest(model: str | Path) -> str:
    """SHA-256 of the weights file of a model."""
    card = zoo.cards().get(str(model))
    if card is not None:
        return card.sha256 or card.name
    path = hub.fetch_weights(str(model)) if hub.is_hub_place(model) else Path(model)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def versions() -> dict[str, str]:
    """Of twofold, torch and the other runtimes, as far as they are installed."""
    found = {"twofold": twofold.__version__}
    for library in ("torch", *(name for name, _ in LIBRARIES.values())):
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return found


def _digest_of_versions(found: Mapping[str, str]) -> str:
    """Graphs are traced by twofold and torch; those of other versions are not used again."""
    return hashlib.sha256(f"{found.get('twofold')} {found['torch']}".encode()).hexdigest()[:8]
