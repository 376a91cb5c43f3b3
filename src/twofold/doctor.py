"""Report on this machine and installation for bug reports, with a test restoration."""

from __future__ import annotations

import hashlib
import math
import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from skimage import data as photographs
from torch import Tensor, nn

import twofold
from twofold import runtime, tiling, zoo
from twofold.contracts import Restorer, TwofoldError
from twofold.degrade.additive import RainStreaks
from twofold.export import runtimes
from twofold.metrics import psnr

_LIBRARIES = ("torch", "numpy", "pillow", "safetensors", "scikit-image", "kornia")
_OPTIONAL = {  # by extra
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("openvino",),
    "hub": ("huggingface_hub",),
    "ray": ("ray",),
    "train": ("accelerate",),
    "ui": ("gradio",),
}
_SWITCHES = ("OMP_NUM_THREADS", "THP_MEM_ALLOC_ENABLE", "CUDA_VISIBLE_DEVICES", "HF_HUB_OFFLINE", "XDG_CACHE_HOME")
"""Variables of the environment that change what twofold does."""
_UNITS = {
    "amx_tile": "AMX (matrix unit)",
    "amx_bf16": "AMX bfloat16",
    "avx512_bf16": "AVX-512 bfloat16",
    "avx512_vnni": "AVX-512 int8",
    "avx512f": "AVX-512",
    "avx2": "AVX2",
    "sme": "SME (matrix unit)",
    "bf16": "Arm bfloat16",
    "i8mm": "Arm int8",
    "asimd": "NEON",
}
_ENOUGH = 2 * 2**30
_GAIN = 3.0
"""Decibels that the model for rain must gain in the self-test."""
_SIDE = 128


def examine(environment: Mapping[str, str], *, test: bool = True, choose: Iterable[str] = ()) -> dict[str, Any]:
    """Sections of facts, plain data for JSON; "problems" lists what is wrong and what to do, empty if nothing is.

    environment: the process's. test: also restore a picture, two seconds. choose: models whose runtime is measured and
    kept first, see `export.runtimes.choose`.

    Raises: TwofoldError where one of `choose` is unknown or has no graph.
    """
    choose = list(choose)
    for name in choose:
        runtimes.choose(name)
    report: dict[str, Any] = {
        "versions": _versions(),
        "machine": _machine(),
        "memory": _memory(),
        "settings": _settings(environment),
        "weights": _weights(),
        "plans": _plans(),
        "runtimes": {name: _runtime(name) for name in dict.fromkeys([*with_weights(), *choose])},
    }
    if test:
        report["test"] = _guarded(self_test)
    report["problems"] = _problems(report)
    return report


def _versions() -> dict[str, Any]:
    found: dict[str, Any] = {"twofold": twofold.__version__, "python": platform.python_version()}
    found |= {name: _version(name) for name in _LIBRARIES}
    found["optional"] = {extra: {name: _version(name) for name in names} for extra, names in _OPTIONAL.items()}
    return found


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _machine() -> dict[str, Any]:
    """Processor, graphics cards, threads and what the processor computes in hardware."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    flags = _processor_flags()
    units = [name for flag, name in _UNITS.items() if flag in flags]
    facts: dict[str, Any] = {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": runtime.processor(),
        "cores": cores,
        "threads": torch.get_num_threads(),
        "units": units if flags else None,
        "matrix_unit": None if not flags else any("matrix unit" in unit for unit in units),
        "bfloat16": None if not flags else any("bfloat16" in unit for unit in units),
        "torch_uses": torch.backends.cpu.get_cpu_capability(),
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "graphics": [],
    }
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        card = torch.cuda.get_device_properties(number)
        facts["graphics"].append({"name": card.name, "bytes": card.total_memory})
    return facts


def _processor_flags() -> set[str]:
    """Empty where the system does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    found = (line.partition(":")[2] for line in lines if line.startswith(("flags", "Features")))
    return set(next(found, "").split())


def _memory() -> dict[str, int | None]:
    """Bytes: in all, free, and the limit that a container sets; None where the system does not say."""
    facts: dict[str, int | None] = {"total": None, "available": None, "limit": None}
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            name, _, value = line.partition(":")
            key = {"MemTotal": "total", "MemAvailable": "available"}.get(name)
            if key:
                facts[key] = int(value.split()[0]) * 1024
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        facts["limit"] = None if limit == "max" else int(limit)
    except (OSError, ValueError, IndexError):
        pass
    return facts


def _settings(environment: Mapping[str, str]) -> dict[str, str | None]:
    """The switches that are set, and whether the system gives large pages of memory to who asks."""
    found: dict[str, str | None] = {name: environment.get(name) for name in _SWITCHES}
    try:
        text = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
        found["huge_pages"] = text.partition("[")[2].partition("]")[0]
    except OSError:
        found["huge_pages"] = None
    return found


def _weights() -> dict[str, dict[str, Any]]:
    """Of every card: whether its weights are there, and whether they are those of the card."""
    folder = resources.files("twofold") / "weights"
    found: dict[str, dict[str, Any]] = {}
    for name, card in with_weights().items():
        try:
            data = (folder / f"{name}.safetensors").read_bytes()
            found[name] = {"found": True, "right": hashlib.sha256(data).hexdigest() == card.sha256, "bytes": len(data)}
        except OSError:
            found[name] = {"found": False, "right": False, "bytes": 0}
    return found


def with_weights() -> dict[str, zoo.Card]:
    """The cards of all models but the classical ones, which have no weights."""
    return {name: card for name, card in zoo.cards().items() if card.parameters}


def _plans() -> dict[str, dict[str, str]]:
    """How each model is run here by default, and why."""
    place = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    hardware = runtime.has_bf16(place)
    found = {}
    for name, card in with_weights().items():
        plan = runtime.plan_for(place, bfloat16=hardware and card.allows_bf16)
        if not hardware:
            reason = f"the {place.type} does not compute in bfloat16"
        elif card.allows_bf16:
            reason = f"bfloat16 in hardware, and the picture deviates by {card.bf16_difference:.2f} grey levels"
        elif card.bf16_difference is None:
            reason = "the card does not say how much bfloat16 changes the picture"
        else:
            reason = (
                f"bfloat16 would change the picture by {card.bf16_difference:.2f} grey levels, more than half a one"
            )
        found[name] = {"plan": _named(plan), "reason": reason}
    return found


def _runtime(name: str) -> dict[str, str]:
    """Which runtime a model has on the processor, and why."""
    chosen = runtimes.kept_choice(name)
    if chosen is None:
        reason = "nothing was measured with these versions on this machine; twofold doctor --choose does"
        return {"runtime": "torch", "reason": reason}
    return {"runtime": f"{chosen.runtime} {chosen.precision}", "reason": chosen.reason}


def _named(plan: runtime.ExecutionPlan) -> str:
    return " + ".join(name for name, chosen in vars(plan).items() if chosen) or "plain float32"


def self_test() -> dict[str, Any]:
    """Removes rain from a bundled photograph by every plan, whole and in tiles.

    Returns the PSNR before and after, the largest deviation of the tiles from the whole, and of each plan the seconds
    and the root mean square deviation from plain float32 in grey levels.
    """
    clean = _photograph()
    sample = RainStreaks()(clean, torch.Generator().manual_seed(0))
    restorer = zoo.load_restorer("derain")
    network = _Picture(restorer).eval()
    observed = sample.observed
    plain = runtime.runner(network, runtime.plain())
    expected = plain(observed)
    tiles = tiling.tiled(plain, observed, halo=restorer.halo, multiple=restorer.multiple, tile=48)
    device = torch.device("cpu")
    plans = [runtime.plain(), *(runtime.plan_for(device, bfloat16=half) for half in (False, True))]
    found: list[dict[str, Any]] = []
    for plan in plans:
        try:
            run = runtime.runner(network, plan)
            deviation = (run(observed) - expected).square().mean().sqrt().item() * 255
            found.append({"plan": _named(plan), "seconds": _best(run, observed), "deviation": round(deviation, 4)})
        except (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError) as error:
            found.append({"plan": _named(plan), "failed": (str(error).splitlines() or ["?"])[0][:200]})
    return {
        "psnr_before": round(psnr(observed, clean).item(), 2),
        "psnr_after": round(psnr(expected.clamp(0, 1), clean).item(), 2),
        "tiles_deviate": (tiles - expected).abs().max().item(),
        "plans": found,
    }


class _Picture(nn.Module):
    def __init__(self, restorer: Restorer) -> None:
        super().__init__()
        self.restorer = restorer

    def forward(self, observed: Tensor) -> Tensor:
        image: Tensor = self.restorer(observed).image
        return image


def _photograph() -> Tensor:
    cut = np.asarray(photographs.astronaut())[64 : 64 + _SIDE, 128 : 128 + _SIDE]
    return torch.from_numpy(cut.copy()).permute(2, 0, 1)[None].float() / 255


def _best(run: Callable[[Tensor], Tensor], observed: Tensor) -> float:
    seconds = math.inf
    for _ in range(2):
        began = time.perf_counter()
        run(observed)
        seconds = min(seconds, time.perf_counter() - began)
    return round(seconds, 4)


def _guarded(test: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `test` finds, or the error that it ends with: the report is needed most where something fails."""
    began = time.perf_counter()
    try:
        found = test()
    except (TwofoldError, RuntimeError, OSError, ValueError, ImportError, MemoryError) as error:
        found = {"error": f"{type(error).__name__}: {error}"}
    return {**found, "seconds": round(time.perf_counter() - began, 2)}


def _problems(report: Mapping[str, Any]) -> list[str]:
    """What is wrong in a report, each with what to do."""
    found = [f"{name} is not installed; pip install twofold" for name in _LIBRARIES if report["versions"][name] is None]
    for name, facts in report["weights"].items():
        if not facts["found"]:
            found.append(f"the weights of {name} are missing; install twofold again")
        elif not facts["right"]:
            found.append(f"the weights of {name} are not those of its card; install twofold again")
    if not report["weights"]:
        found.append("no model is shipped with this installation; install twofold again")
    free, limit = report["memory"]["available"], report["memory"]["limit"]
    least = min((size for size in (free, limit) if size is not None), default=None)
    if least is not None and least < _ENOUGH:
        found.append(
            f"{least / 2**30:.1f} GiB of memory are free, 2 are needed; close programs, or restore by --tile 256"
        )
    threads, cores = report["machine"]["threads"], report["machine"]["cores"]
    if cores is not None and threads > cores:
        found.append(f"{threads} threads on {cores} cores slow one another; set OMP_NUM_THREADS={cores}")
    test = report.get("test", {})
    if "error" in test:
        found.append(f"the self-test failed: {test['error']}; paste this report into an issue")
    elif test:
        if test["psnr_after"] - test["psnr_before"] < _GAIN:
            found.append("the self-test restored less than it should; paste this report into an issue")
        if test["tiles_deviate"] > 1e-3:
            found.append("tiles differ from the whole picture in the self-test; paste this report into an issue")
    return found


def report_text(report: Mapping[str, Any]) -> str:
    """The report as lines to paste."""
    versions, machine = report["versions"], report["machine"]
    lines = [f"twofold {versions['twofold']}, Python {versions['python']}, {machine['system']}"]
    lines.append("libraries: " + ", ".join(f"{name} {versions[name] or 'MISSING'}" for name in _LIBRARIES))
    extras = {extra: _extra(libraries) for extra, libraries in versions["optional"].items()}
    lines.append("extras: " + ", ".join(f"{extra} ({said})" for extra, said in extras.items()))
    lines.append(f"processor: {machine['processor']}; {machine['cores']} cores, {machine['threads']} threads")
    units = machine["units"]
    lines.append(f"units: {', '.join(units) if units else 'unknown'}; torch uses {machine['torch_uses']}")
    lines.append(f"matrix unit: {_yes(machine['matrix_unit'])}; bfloat16: {_yes(machine['bfloat16'])}")
    cards = [f"{card['name']} ({card['bytes'] / 2**30:.0f} GiB)" for card in machine["graphics"]]
    lines.append(f"device: {machine['device']}" + (f"; {', '.join(cards)}" if cards else ""))
    sizes = {name: f"{size / 2**30:.1f} GiB" for name, size in report["memory"].items() if size is not None}
    lines.append("memory: " + (", ".join(f"{size} {name}" for name, size in sizes.items()) or "unknown"))
    set_ = {name: value for name, value in report["settings"].items() if value is not None}
    lines.append("settings: " + (", ".join(f"{name}={value}" for name, value in set_.items()) or "none"))
    right = [name for name, facts in report["weights"].items() if facts["right"]]
    lines.append(f"weights: {len(right)} of {len(report['weights'])} found with the right hash: {', '.join(right)}")
    by_plan: dict[tuple[str, str], list[str]] = {}
    for name, chosen in report["plans"].items():
        by_plan.setdefault((chosen["plan"], chosen["reason"]), []).append(name)
    lines += [f"plan of {', '.join(names)}: {plan} ({reason})" for (plan, reason), names in by_plan.items()]
    unmeasured = [name for name, facts in report["runtimes"].items() if facts["runtime"] == "torch"]
    for name, facts in report["runtimes"].items():
        if name not in unmeasured:
            lines.append(f"runtime of {name}: {facts['runtime']} ({facts['reason']})")
    if unmeasured:
        lines.append(f"runtime of {', '.join(unmeasured)}: torch ({report['runtimes'][unmeasured[0]]['reason']})")
    lines += _tested(report.get("test", {}))
    found = report["problems"]
    return "\n".join([*lines, *(f"PROBLEM: {each}" for each in found), *([] if found else ["no problems found"])])


def _tested(test: Mapping[str, Any]) -> list[str]:
    if not test:
        return []
    if "error" in test:
        return [f"self-test: {test['error']}"]
    lines = [
        f"self-test: rain, {test['psnr_before']:.2f} → {test['psnr_after']:.2f} dB; tiles deviate by "
        f"{test['tiles_deviate']:.1e}; {test['seconds']:.1f} s"
    ]
    for each in test["plans"]:
        said = each.get("failed") or f"{each['seconds'] * 1000:.0f} ms, deviates by {each['deviation']:.2f} grey levels"
        lines.append(f"  {each['plan']}: {said}")
    return lines


def _extra(libraries: Mapping[str, str | None]) -> str:
    missing = [name for name, version in libraries.items() if version is None]
    if not missing:
        return ", ".join(f"{name} {version}" for name, version in libraries.items())
    return "not installed" if len(missing) == len(libraries) else f"lacks {', '.join(missing)}"


def _yes(fact: bool | None) -> str:
    return "unknown" if fact is None else "yes" if fact else "no"
