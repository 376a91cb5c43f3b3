"""How fast rain is removed, and in how much memory: PReNet by the shipped recipe against the official implementation.

    python benchmarks/restore.py --official FOLDER --data DATA --json benchmarks/results/restore.json

FOLDER holds a checkout of github.com/csdwren/PReNet, whose code and weights are under its own terms and stay there.
Without it, the same arithmetic in the official layout (four convolutions for the gates, plain layout, float32) and
random weights stand in, and the change in PSNR is left out. Every variant lives in a process of its own, so that each
has its allocator; they alternate, and the best round counts. CPU seconds of one thread are disturbed least by other
work; run it on a quiet machine all the same.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness import largest_resident, parser, table, write

WEIGHTS = {"light": "logs/Rain100L/PReNet6/net_latest.pth", "heavy": "logs/Rain100H/PReNet6/net_latest.pth"}
HUGE = {"THP_MEM_ALLOC_ENABLE": "1"}
# name: (recipe's fields, or None for the official network; what is set before torch is imported)
VARIANTS: dict[str, tuple[dict[str, bool] | None, dict[str, str]]] = {
    "official, float32": (None, {}),
    "official, float32, huge pages": (None, HUGE),
    "ours, float32 (gates in one convolution)": ({}, {}),
    "+ huge pages": ({}, HUGE),
    "+ channels last": ({"channels_last": True}, HUGE),
    "+ fused, float32": ({"channels_last": True, "fused": True}, HUGE),
    "+ bfloat16, not fused": ({"channels_last": True, "bfloat16": True}, HUGE),
    "+ bfloat16, fused (the recipe)": ({"channels_last": True, "bfloat16": True, "fused": True}, HUGE),
    "the recipe without huge pages": ({"channels_last": True, "bfloat16": True, "fused": True}, {}),
}
LARGE_PHOTOGRAPH = """
import sys, numpy
from PIL import Image
from skimage import data
height, width = int(sys.argv[1]), int(sys.argv[2])
photo = numpy.tile(data.astronaut(), (height // 512 + 1, width // 512 + 1, 1))[:height, :width]
Image.fromarray(photo).save(sys.argv[3], quality=95)
"""
OFFICIAL, RECIPE = "official, float32", "+ bfloat16, fused (the recipe)"


def restore_speed_table(result: dict[str, Any]) -> str:
    """What each ingredient of running a network brings, PReNet at two sizes."""
    speed = result["speed"]
    body = []
    for variant, large in speed["512"]["variants"].items():
        small = speed["256"]["variants"][variant]
        cells = [f"{row['cpu_seconds']:.2f} s ({row['speedup']:.1f}×)" for row in (large, small)]
        body.append([variant, *cells])
    return table(["PReNet, CPU seconds of one thread", "512 × 512", "256 × 256"], body)


def tables(result: dict[str, Any]) -> dict[str, str]:
    return {
        "restore_speed": restore_speed_table(result),
    }


def main() -> None:
    options = parse()
    if options.worker:
        work(options)
        return
    results: dict[str, Any] = {"summary": {}, "threads": options.threads}
    results["speed"] = {str(side): speed(options, side) for side in (512, 256)}
    results["quality"] = quality(options)
    results["denormals"] = ask(options, {"do": "denormals"}, {})
    results["photograph"] = ask(options, {"do": "photograph"}, HUGE)
    results["summary"] = {
        "speedup_512": results["speed"]["512"]["speedup"],
        "speedup_256": results["speed"]["256"]["speedup"],
        "psnr_change": min((row["change"] for row in results["quality"].values()), default=None, key=lambda c: -abs(c)),
        "peak_gib_12mp": results["photograph"]["peak_gib_above_imports"],
    }
    print(json.dumps(results, indent=1))
    write(options.json, results)


def parse() -> argparse.Namespace:
    made = parser(__doc__)
    made.add_argument("--official", type=Path, help="a checkout of the official implementation")
    made.add_argument("--data", type=Path, help="folder with rain/Rain100/{clean,light,heavy}")
    made.add_argument("--rounds", type=int, default=3)
    made.add_argument("--threads", type=int, default=1)
    made.add_argument("--megapixels", type=float, default=12.0)
    made.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return made.parse_args()


def speed(options: argparse.Namespace, side: int) -> dict[str, Any]:
    """Best CPU and wall seconds of every variant at `side` × `side`, interleaved."""
    workers = {
        name: (Worker(options, environment), {"do": "time", "side": side, "recipe": recipe})
        for name, (recipe, environment) in VARIANTS.items()
    }
    best: dict[str, dict[str, float]] = {}
    for _ in range(options.rounds + 1):  # the first round warms up, and counts like any other
        for name, (worker, task) in workers.items():
            took = worker.ask(task)
            known = best.setdefault(name, took)
            best[name] = {kind: min(known[kind], took[kind]) for kind in took}
    for worker, _task in workers.values():
        worker.close()
    reference = best[OFFICIAL]
    rows = {
        name: {
            "cpu_seconds": round(took["cpu"], 4),
            "wall_seconds": round(took["wall"], 4),
            "speedup": round(reference["cpu"] / took["cpu"], 2),
        }
        for name, took in best.items()
    }
    return {
        "speedup": rows[RECIPE]["speedup"],
        "speedup_wall": round(reference["wall"] / best[RECIPE]["wall"], 2),
        "speedup_huge_pages_for_both": round(best["official, float32, huge pages"]["cpu"] / best[RECIPE]["cpu"], 2),
        "variants": rows,
    }


def quality(options: argparse.Namespace) -> dict[str, Any]:
    """Mean Y-PSNR of every fifth scene by plain float32 and by the recipe, official weights; empty without them."""
    if not options.official or not options.data:
        return {}
    return {kind: ask(options, {"do": "quality", "kind": kind}, HUGE) for kind in WEIGHTS}


class Worker:
    """A process that holds one network and does what it is asked, one line of JSON at a time."""

    def __init__(self, options: argparse.Namespace, environment: dict[str, str]) -> None:
        command = [sys.executable, __file__, "--worker", "--megapixels", str(options.megapixels)]
        command += ["--threads", str(options.threads)]
        command += ["--official", str(options.official)] if options.official else []
        command += ["--data", str(options.data)] if options.data else []
        clean = {key: value for key, value in os.environ.items() if key not in HUGE}
        threads = {"OMP_NUM_THREADS": str(options.threads)}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=clean | threads | environment
        )

    def ask(self, task: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(task) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"the process for {task} ended with code {self.process.wait()}")
        result: dict[str, Any] = json.loads(answer)
        return result

    def close(self) -> None:
        self.process.communicate()


def ask(options: argparse.Namespace, task: dict[str, Any], environment: dict[str, str]) -> dict[str, Any]:
    worker = Worker(options, environment)
    try:
        return worker.ask(task)
    finally:
        worker.close()


def work(options: argparse.Namespace) -> None:
    runners: dict[str, Callable[..., Any]] = {}
    for line in sys.stdin:
        task = json.loads(line)
        if task["do"] == "time":
            key = json.dumps(task["recipe"])
            if key not in runners:
                runners[key] = runner(options, task["recipe"])
            answer = timed(runners[key], task["side"])
        else:
            answer = {"quality": measure_quality, "denormals": denormals, "photograph": photograph}[task["do"]](
                options, task
            )
        print(json.dumps(answer), flush=True)


def runner(options: argparse.Namespace, recipe: dict[str, bool] | None) -> Callable[..., Any]:
    import torch

    from twofold import runtime

    if recipe is None:
        network = official(options)
        return torch.inference_mode()(lambda x: network(x))
    return runtime.runner(ours(options), runtime.ExecutionPlan(**recipe))


def ours(options: argparse.Namespace, kind: str = "light") -> Any:
    import torch

    from twofold.nets.prenet import PReNet, from_published

    torch.manual_seed(0)
    network = PReNet().eval()
    if options.official:
        network.load_state_dict(
            from_published(torch.load(options.official / WEIGHTS[kind], weights_only=True, map_location="cpu"))
        )
    return network


def official(options: argparse.Namespace) -> Any:
    """The official network with its own weights, or the same arithmetic laid out as there."""
    import torch

    if options.official:
        for name in ("torchvision", "cv2"):  # imported at its top, not used by the network
            sys.modules.setdefault(name, types.ModuleType(name))
        sys.path.insert(0, str(options.official))
        import networks  # type: ignore[import-not-found]

        network = networks.PReNet(6, use_GPU=False).eval()
        network.load_state_dict(torch.load(options.official / WEIGHTS["light"], weights_only=True, map_location="cpu"))
        return lambda x: network(x)[0]
    network = ours(options)
    gates = [
        (weight.detach().clone(), bias.detach().clone())
        for weight, bias in zip(network.gates.weight.chunk(4), network.gates.bias.chunk(4), strict=True)
    ]
    network.gates.forward = lambda x: torch.cat(
        [torch.nn.functional.conv2d(x, weight, bias, padding=1) for weight, bias in gates], 1
    )
    return network


def timed(run: Callable[..., Any], side: int) -> dict[str, float]:
    import torch

    images = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(side))
    wall, cpu = time.perf_counter(), time.process_time()
    run(images)
    return {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}


def measure_quality(options: argparse.Namespace, task: dict[str, Any]) -> dict[str, Any]:
    from twofold import images, runtime
    from twofold.metrics import PROTOCOLS

    network = ours(options, task["kind"])
    runs = {
        "float32": runtime.runner(network, runtime.plain()),
        "recipe": runtime.runner(network, runtime.ExecutionPlan(**(VARIANTS[RECIPE][0] or {}))),
    }
    folder = options.data / "rain" / "Rain100"
    names = [path.name for path in images.find([folder / "clean"])][::5]
    scores: dict[str, list[float]] = {name: [] for name in runs}
    for name in names:
        clean, observed = images.read(folder / "clean" / name), images.read(folder / task["kind"] / name)
        for kind, run in runs.items():
            scores[kind].append(PROTOCOLS["y-matlab"].score(run(observed.pixels), clean.pixels).psnr.item())
    means = {kind: sum(values) / len(values) for kind, values in scores.items()}
    changes = [b - a for a, b in zip(scores["float32"], scores["recipe"], strict=True)]
    return {
        "images": len(names),
        "y_psnr_float32": round(means["float32"], 4),
        "y_psnr_recipe": round(means["recipe"], 4),
        "change": round(means["recipe"] - means["float32"], 4),
        "largest_change_of_one_image": round(max(changes, key=abs), 4),
    }


def denormals(options: argparse.Namespace, _: dict[str, Any]) -> dict[str, Any]:
    """A network half of whose filters died, as weight decay leaves them: as loaded, flushed, and with true zeros."""
    import copy

    import torch

    from twofold.runtime import flush_denormals_, plain, runner

    clean = ours(options)
    dying = copy.deepcopy(clean)
    with torch.no_grad():
        for a, b in zip(clean.parameters(), dying.parameters(), strict=True):
            if a.ndim == 4:
                a[::2] = 0
                b[::2] = 1e-39 * b[::2].sign()
    flushed = copy.deepcopy(dying)
    count = flush_denormals_(flushed)
    runs = {name: runner(net, plain()) for name, net in (("denormal", dying), ("flushed", flushed), ("clean", clean))}
    images = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    same = torch.equal(runs["denormal"](images), runs["flushed"](images))
    same_as_clean = torch.equal(runs["clean"](images), runs["flushed"](images))
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(7):
        for name, one in runs.items():
            best[name] = min(best[name], timed(one, 128)["cpu"])
    return {
        "denormal_weights": count,
        "bit_identical_to_before": same,
        "bit_identical_to_clean": same_as_clean,
        **{f"{name}_over_clean": round(best[name] / best["clean"], 3) for name in ("denormal", "flushed")},
    }


def photograph(options: argparse.Namespace, _: dict[str, Any]) -> dict[str, Any]:
    """One large JPEG from file to file, the memory it took, and how far tiles are from the whole on a part of it."""
    import torch

    from twofold import images, runtime, tiling

    network, recipe = ours(options), runtime.ExecutionPlan(**(VARIANTS[RECIPE][0] or {}))
    width = int((options.megapixels * 1e6 * 4 / 3) ** 0.5)
    height = int(options.megapixels * 1e6 / width)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large.jpg"
        # In a process of its own: this one's high-water mark must not know of it.
        subprocess.run([sys.executable, "-c", LARGE_PHOTOGRAPH, str(height), str(width), str(path)], check=True)
        example = torch.rand(1, 3, 128, 128)
        run = runtime.runner(network, recipe)
        per_pixel = runtime.peak_bytes(run, example) // 128**2
        budget = tiling.Budget(per_pixel=per_pixel)
        before = largest_resident()
        cpu, wall = time.process_time(), time.perf_counter()
        picture = images.read(path)
        out = tiling.tiled(run, picture.pixels, halo=network.halo, tile=budget)
        images.write(Path(folder) / "restored.jpg", images.Picture(out))
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        peak = largest_resident() - before
    part = picture.pixels[..., :700, :900]
    differences = {}
    for name, settings in (("float32", runtime.plain()), ("recipe", recipe)):
        one = runtime.runner(network, settings)
        pieces = tiling.tiled(one, part, halo=network.halo, tile=300)
        differences[f"largest_difference_tiled_{name}"] = float((pieces - one(part)).abs().max())
    return {
        "width": width,
        "height": height,
        "peak_gib_above_imports": round(peak / 2**30, 3),
        "bytes_per_pixel": per_pixel,
        "compute_over_untiled": round(tiling.overhead(height, width, halo=network.halo, tile=budget), 3),
        "cpu_seconds": round(cpu, 1),
        "wall_seconds": round(wall, 1),
        **differences,
    }


if __name__ == "__main__":
    main()
