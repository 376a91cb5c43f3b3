"""What this machine and installation can do, and whether restoring works here: the facts that a bug report needs."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import time
from collections.abc import Callable, Mapping
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from skimage import data as photographs
from torch import Tensor, nn

import twofold
from twofold import runtime, tiling, zoo
from twofold.contracts import TwofoldError
from twofold.degrade.additive import RainStreaks
from twofold.metrics import psnr

LIBRARIES = ("torch", "numpy", "pillow", "safetensors", "scikit-image", "kornia", "torchmetrics")
OPTIONAL = {  # by extra
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("openvino",),
    "hub": ("huggingface_hub",),
    "ray": ("ray",),
    "train": ("accelerate",),
    "ui": ("gradio",),
}
SWITCHES = ("OMP_NUM_THREADS", "THP_MEM_ALLOC_ENABLE", "CUDA_VISIBLE_DEVICES", "HF_HUB_OFFLINE", "XDG_CACHE_HOME")
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


def examine(environment: Mapping[str, str], *, cache: Path | None = None, test: bool = True) -> dict[str, Any]:
    """Sections of facts, plain data for JSON; "problems" lists what is wrong and what to do, empty if nothing is.

    environment: the process's. cache: the folder where recipes are kept. test: also restore a picture, two seconds.
    """
    report: dict[str, Any] = {
        "versions": versions(),
        "machine": machine(),
        "memory": memory(),
        "settings": settings(environment),
        "weights": weights(),
        "recipes": recipes(cache),
    }
    if test:
        report["test"] = guarded(self_test)
    report["problems"] = problems(report)
    return report


def versions() -> dict[str, Any]:
    found: dict[str, Any] = {"twofold": twofold.__version__, "python": platform.python_version()}
    found |= {name: _version(name) for name in LIBRARIES}
    found["optional"] = {extra: {name: _version(name) for name in names} for extra, names in OPTIONAL.items()}
    return found


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def machine() -> dict[str, Any]:
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


def memory() -> dict[str, int | None]:
    """Bytes: in all, free for a new program, and the limit that a container sets; None where the system does not say."""
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


def settings(environment: Mapping[str, str]) -> dict[str, str | None]:
    """The switches that are set, and whether the system gives large pages of memory to who asks."""
    found: dict[str, str | None] = {name: environment.get(name) for name in SWITCHES}
    try:
        text = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
        found["huge_pages"] = text.partition("[")[2].partition("]")[0]
    except OSError:
        found["huge_pages"] = None
    return found


def weights() -> dict[str, dict[str, Any]]:
    """Of every card: whether its weights are there, and whether they are those of the card."""
    folder = resources.files("twofold") / "weights"
    found: dict[str, dict[str, Any]] = {}
    for name, card in zoo.cards().items():
        try:
            data = (folder / f"{name}.safetensors").read_bytes()
            found[name] = {"found": True, "right": hashlib.sha256(data).hexdigest() == card.sha256, "bytes": len(data)}
        except OSError:
            found[name] = {"found": False, "right": False, "bytes": 0}
    return found


def recipes(cache: Path | None) -> dict[str, Any]:
    """The recipes kept for this machine, with this version of torch and as many threads."""
    if cache is None:
        return {"file": None, "kept": []}
    file = cache / "recipes.json"
    shown = str(file).replace(str(Path.home()), "~", 1)
    try:
        known = json.loads(file.read_text())
    except (OSError, ValueError):
        return {"file": shown, "kept": []}
    here = (f"torch {torch.__version__}", runtime.processor(), f"{torch.get_num_threads()} threads")
    kept = [_named(recipe) for key, recipe in known.items() if all(part in key for part in here)]
    return {"file": shown, "kept": kept}


def _named(recipe: Mapping[str, bool]) -> str:
    return " + ".join(name for name, chosen in recipe.items() if chosen) or "plain float32"


def self_test() -> dict[str, Any]:
    """Removes rain from a bundled photograph by every recipe, whole and in tiles.

    Returns the PSNR before and after, seconds and deviation of each recipe, and which of them is fastest.
    """
    clean = _photograph()
    sample = RainStreaks()(clean, torch.Generator().manual_seed(0))
    network = _Picture(zoo.load("derain")).eval()
    observed = sample.observed
    plain = runtime.run(network, runtime.plain())
    expected = plain(observed)
    tiles = tiling.tiled(plain, observed, halo=network.restorer.halo, multiple=network.restorer.multiple, tile=48)
    found: list[dict[str, Any]] = []
    for recipe in (runtime.plain(), *runtime.CANDIDATES):
        name = _named(vars(recipe))
        try:
            run = runtime.run(network, recipe)
            deviation = (run(observed) - expected).square().mean().sqrt().item()
            found.append({"recipe": name, "seconds": _best(run, observed), "deviation": round(deviation, 6)})
        except (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError) as error:
            found.append({"recipe": name, "failed": (str(error).splitlines() or ["?"])[0][:200]})
    timed = [each for each in found if "seconds" in each]
    return {
        "psnr_before": round(psnr(observed, clean).item(), 2),
        "psnr_after": round(psnr(expected.clamp(0, 1), clean).item(), 2),
        "tiles_deviate": (tiles - expected).abs().max().item(),
        "recipes": found,
        "fastest": min(timed, key=lambda each: float(each["seconds"]))["recipe"],
    }


class _Picture(nn.Module):
    def __init__(self, restorer: nn.Module) -> None:
        super().__init__()
        self.restorer: Any = restorer

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


def guarded(test: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `test` finds, or the error that it ends with: the report is needed most where something fails."""
    began = time.perf_counter()
    try:
        found = test()
    except (TwofoldError, RuntimeError, OSError, ValueError, ImportError, MemoryError) as error:
        found = {"error": f"{type(error).__name__}: {error}"}
    return {**found, "seconds": round(time.perf_counter() - began, 2)}


def problems(report: Mapping[str, Any]) -> list[str]:
    """What is wrong in a report, each with what to do."""
    found = [f"{name} is not installed; pip install twofold" for name in LIBRARIES if report["versions"][name] is None]
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


def text(report: Mapping[str, Any]) -> str:
    """The report as lines to paste."""
    versions_, machine_ = report["versions"], report["machine"]
    lines = [f"twofold {versions_['twofold']}, Python {versions_['python']}, {machine_['system']}"]
    lines.append("libraries: " + ", ".join(f"{name} {versions_[name] or 'MISSING'}" for name in LIBRARIES))
    extras = {extra: _extra(libraries) for extra, libraries in versions_["optional"].items()}
    lines.append("extras: " + ", ".join(f"{extra} ({said})" for extra, said in extras.items()))
    lines.append(f"processor: {machine_['processor']}; {machine_['cores']} cores, {machine_['threads']} threads")
    units = machine_["units"]
    lines.append(f"units: {', '.join(units) if units else 'unknown'}; torch uses {machine_['torch_uses']}")
    lines.append(f"matrix unit: {_yes(machine_['matrix_unit'])}; bfloat16: {_yes(machine_['bfloat16'])}")
    cards = [f"{card['name']} ({card['bytes'] / 2**30:.0f} GiB)" for card in machine_["graphics"]]
    lines.append(f"device: {machine_['device']}" + (f"; {', '.join(cards)}" if cards else ""))
    sizes = {name: f"{size / 2**30:.1f} GiB" for name, size in report["memory"].items() if size is not None}
    lines.append("memory: " + (", ".join(f"{size} {name}" for name, size in sizes.items()) or "unknown"))
    set_ = {name: value for name, value in report["settings"].items() if value is not None}
    lines.append("settings: " + (", ".join(f"{name}={value}" for name, value in set_.items()) or "none"))
    right = [name for name, facts in report["weights"].items() if facts["right"]]
    lines.append(f"weights: {len(right)} of {len(report['weights'])} found with the right hash: {', '.join(right)}")
    kept = report["recipes"]["kept"]
    lines.append(f"recipes kept for this machine: {', '.join(sorted(set(kept))) if kept else 'none yet'}")
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
    for each in test["recipes"]:
        chosen = " ← fastest" if each["recipe"] == test["fastest"] else ""
        said = (
            f"{each['seconds'] * 1000:.0f} ms, deviates by {each['deviation']:.1e}"
            if "seconds" in each
            else each["failed"]
        )
        lines.append(f"  {each['recipe']}: {said}{chosen}")
    return lines


def _extra(libraries: Mapping[str, str | None]) -> str:
    missing = [name for name, version in libraries.items() if version is None]
    if not missing:
        return ", ".join(f"{name} {version}" for name, version in libraries.items())
    return "not installed" if len(missing) == len(libraries) else f"lacks {', '.join(missing)}"


def _yes(fact: bool | None) -> str:
    return "unknown" if fact is None else "yes" if fact else "no"
