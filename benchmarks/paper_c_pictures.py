"""Deconvolution and rain for `paper_c.py`: plug-and-play, plain unrolling and Bilevel Meta Optimization compared."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness import figure, score, table
from paper_c_training import (
    DEPTH,
    MU,
    RAIN_DEPTH,
    RAIN_STEPS,
    STEPS,
    Photos,
    grey,
    mean_and_half,
    of_seeds,
    power,
    share_left,
    trained,
)
from twofold import images, losses
from twofold.contracts import Sample
from twofold.data.batches import Batches
from twofold.data.crops import CropCache
from twofold.data.pairs import every, find_pairs
from twofold.data.sources import PairCrops, Source, SyntheticCrops
from twofold.degrade.additive import GaussianNoise, RainStreaks
from twofold.degrade.blur import Blur, CameraShake
from twofold.nets.denoiser import Denoiser
from twofold.restorers.fixed_point import (
    Deconvolution,
    FixedPointRestorer,
    RainLayers,
    RidgeDenoiser,
    SplitDeconvolution,
)
from twofold.solve import contraction_factor
from twofold.solve.params import minus, norm
from twofold.train.meta import Watched


def run_long(restorer: FixedPointRestorer, tests: list[Sample], steps: int) -> dict[str, list[float]]:
    """PSNR, relative change ‖u_{k+1} − u_k‖ / ‖u_k‖ and residual of T alone after every step; means over pictures."""
    quality, change, residual = (torch.zeros(steps, dtype=torch.float64) for _ in range(3))
    with torch.no_grad():
        for sample in tests:
            problem = restorer.problem(sample.observed, sample.kernel)
            T, u = Watched(problem.operator), problem.start
            for k in range(steps):
                fresh = T(u)
                change[k] += float(norm(minus(fresh, u)) / norm(u))
                u = fresh
                quality[k] += score(problem.image(u), sample.clean)
            residual += torch.stack(T.residuals).double()
    return {
        name: (values / len(tests)).tolist()
        for name, values in (("psnr", quality), ("change", change), ("residual", residual))
    }


def each_psnr(restorer: FixedPointRestorer, tests: list[Sample], steps: int) -> Tensor:
    """(pictures,), after `steps` of T."""
    found = []
    with torch.no_grad():
        for sample in tests:
            problem = restorer.problem(sample.observed, sample.kernel)
            u = problem.start
            for _ in range(steps):
                u = problem.operator(u)
            found.append(torch.tensor(score(problem.image(u), sample.clean)))
    return torch.stack(found)


def compare(
    name: str,
    ways: dict[str, tuple[FixedPointRestorer, float | None]],
    draws: Callable[[int], Sample],
    tests: list[Sample],
    depth: int,
    out: Path,
    seed: int,
) -> dict[str, Any]:
    """Trains every way that names a mu, runs all ten times deeper than trained, and pairs BMO with the rest."""
    curves: dict[str, dict[str, list[float]]] = {}
    rows: dict[str, dict[str, float]] = {}
    left: dict[str, float] = {}
    steps = STEPS if name == "deconvolution" else RAIN_STEPS
    for way, (restorer, mu) in ways.items():
        began = time.process_time()
        if mu is not None:
            log = trained(restorer, draws, steps=steps, depth=depth, mu=mu, rate=2e-3 if "plain" in way else 1e-2)
            left[way] = share_left(log)
            if way == "BMO" and seed == 0:
                plot_log(log, out.with_name(f"paper_c_{name}_training.png"))
        seconds = round(time.process_time() - began)
        c = curves[way] = run_long(restorer, tests, 10 * depth)
        sample = tests[0]
        problem = restorer.problem(sample.observed, sample.kernel)
        with torch.no_grad():
            u = problem.start
            for _ in range(10 * depth):
                u = problem.operator(u)
        factor = float(contraction_factor(problem.operator, u, generator=torch.Generator().manual_seed(0)))
        rows[way] = {
            "psnr_trained_depth": round(c["psnr"][depth - 1], 3),
            "psnr_beyond": round(c["psnr"][-1], 3),
            "residual_trained_depth": c["residual"][depth - 1],
            "residual_beyond": c["residual"][-1],
            "residual_left": c["residual"][-1] / c["residual"][depth - 1],
            "change_beyond": c["change"][-1],
            "change_slope": power(c["change"], depth),
            "contraction_factor": round(factor, 4),
            "parameters": sum(p.numel() for p in restorer.parameters()),
            "training_seconds": seconds,
        }
        print(name, way, rows[way], flush=True)
    if seed == 0:
        plot_curves(curves, depth, out.with_name(f"paper_c_{name}.png"))
    untouched = sum(score(s.observed, s.clean) for s in tests) / len(tests)
    return {
        "ways": rows,
        "training": left,
        "bmo_leads": {
            w: round(rows["BMO"]["psnr_beyond"] - r["psnr_beyond"], 3) for w, r in rows.items() if w != "BMO"
        },
        "untouched": round(untouched, 2),
        "pictures": len(tests),
        "depth": depth,
        "steps": steps,
    }


def gaussian_denoiser(net: nn.Module, pictures: list[Tensor], seed: int, steps: int, rate: float) -> nn.Module:
    """For plug-and-play: trained on white noise of 3 %, then frozen."""
    degrade = GaussianNoise((0.03, 0.03))
    draws = Batches(SyntheticCrops(CropCache(pictures), degrade, 40), 4, seed=100 + seed, ahead=False)
    optimizer = torch.optim.Adam(net.parameters(), rate)
    for step in range(steps):
        sample = draws(step)
        optimizer.zero_grad()
        losses.l2(net(sample.observed), sample.clean).backward()
        optimizer.step()
    return net.requires_grad_(False)


def best_penalty(make: Callable[[float], FixedPointRestorer], sample: Sample, values: tuple[float, ...]) -> Any:
    """Plug-and-play has one number to set by hand: the best after 80 steps, on training crops."""
    return max((make(v) for v in values), key=lambda restorer: float(each_psnr(restorer, [sample], 80)))


def deblurring_data(material: Photos, seed: int) -> tuple[Batches, list[Sample]]:
    """What to train on and what to test on."""
    degrade = Blur(CameraShake(size=9, extent=(3.0, 8.0)), GaussianNoise((0.01, 0.03)))
    crops = SyntheticCrops(CropCache(grey(material.train)), degrade, 64, margin=8)
    tests = [
        degrade(p[None, :, 100:196, 100:196].float() / 255, torch.Generator().manual_seed(100 * seed + i))
        for i, p in enumerate(grey(material.test)[:6])
    ]
    return Batches(crops, 2, seed=seed, ahead=False), tests


def deblurring(material: Photos, seed: int) -> tuple[Batches, list[Sample], dict[str, FixedPointRestorer]]:
    """The data, and plug-and-play with a certified and a plain denoiser."""
    draws, tests = deblurring_data(material, seed)
    pictures = grey(material.train)
    torch.manual_seed(seed)
    certified = gaussian_denoiser(RidgeDenoiser(filters=16, layers=2), pictures, seed, 100, 1e-2)
    plain = gaussian_denoiser(Denoiser(guidance=0, width=16, layers=4), pictures, seed, 200, 2e-3)
    penalties, held = (0.003, 0.01, 0.03, 0.1, 0.3), draws(10_000)
    shelf = {
        name: best_penalty(lambda v, net=net: Deconvolution(net, penalty=v), held, penalties)
        for name, net in (("certified", certified), ("plain", plain))
    }
    return draws, tests, shelf


def deconvolution(material: Photos, out: Path, seed: int) -> dict[str, Any]:
    draws, tests, shelf = deblurring(material, seed)
    split = SplitDeconvolution(shelf["certified"].denoiser)
    ways = {
        "plug-and-play, certified denoiser": (shelf["certified"], None),
        "plug-and-play, plain denoiser": (shelf["plain"], None),
        "unrolled, plain denoiser": (thawed(shelf["plain"]), 0.0),
        "unrolled, certified denoiser": (thawed(shelf["certified"]), 0.0),
        "BMO": (thawed(shelf["certified"]), MU),
        "ADMM ∘ certified denoiser, unrolled": (thawed(split), 0.0),
        "ADMM ∘ certified denoiser, BMO": (thawed(split), MU),
    }
    return compare("deconvolution", ways, draws, tests, DEPTH, out, seed)


def thawed(restorer: FixedPointRestorer) -> FixedPointRestorer:
    """A copy to train: every trained way starts where plug-and-play stops."""
    return copy.deepcopy(restorer).requires_grad_(True)


def rain(material: Photos, out: Path, seed: int) -> dict[str, Any]:
    return deraining(material, "rain", RAIN_DEPTH, out, seed)


def rain_shallow(material: Photos, out: Path, seed: int) -> dict[str, Any]:
    return deraining(material, "rain_shallow", DEPTH, out, seed)


def rainy(material: Photos, seed: int) -> tuple[Batches, list[Sample]]:
    """What to train on and what to test on.

    Rain100's scenes are split; every third test picture is taken.
    """
    source: Source
    if material.data is None:
        drawn = RainStreaks()
        source = SyntheticCrops(CropCache(material.train), drawn, 32)
        tests = [
            drawn(p[None, :, 100:228, 100:228].float() / 255, torch.Generator().manual_seed(100 * seed + i))
            for i, p in enumerate(material.test)
        ]
    else:
        root = material.data / "rain" / "Rain100"
        found = find_pairs(root, observed="light", clean="clean")
        kept = every(found, 5, picked=False)
        source = PairCrops(CropCache.of(p.observed for p in kept), CropCache.of(p.clean for p in kept), 32)
        held = every(found, 5, picked=True)[::3]
        tests = [
            Sample(*(images.read(path).pixels[:, :3, 96:160, 160:224] for path in (p.clean, p.observed))) for p in held
        ]
    return Batches(source, 2, seed=seed, ahead=False), tests


def deraining(material: Photos, name: str, depth: int, out: Path, seed: int) -> dict[str, Any]:
    draws, tests = rainy(material, seed)
    torch.manual_seed(seed)
    certified = gaussian_denoiser(RidgeDenoiser(channels=3, filters=16), material.train, seed, 60, 1e-2)
    plain = gaussian_denoiser(Denoiser(channels=3, guidance=0, width=12, layers=4), material.train, seed, 120, 2e-3)
    streaks = RidgeDenoiser(channels=3, filters=16, size=7, keep_mean=False)
    # Nobody has a denoiser for rain on the shelf: plug-and-play gets a soft threshold for that layer.
    penalties, sample = (0.1, 0.3, 1.0), draws(10_000)
    shelf = best_penalty(lambda v: RainLayers(certified, nn.Softshrink(0.02), penalty=v), sample, penalties)
    ways = {
        "plug-and-play, certified denoiser": (shelf, None),
        "unrolled, plain denoiser": (
            thawed(RainLayers(plain, Denoiser(channels=3, guidance=0, width=12, layers=4))),
            0.0,
        ),
        "unrolled, certified denoiser": (thawed(RainLayers(certified, streaks)), 0.0),
        "BMO": (thawed(RainLayers(certified, streaks)), MU),
    }
    return compare(name, ways, draws, tests, depth, out, seed)


def plot_curves(curves: dict[str, dict[str, list[float]]], depth: int, path: Path) -> None:
    drawing, axes = figure(2)
    for name, c in curves.items():
        axes[0].plot(range(1, len(c["psnr"]) + 1), c["psnr"], label=name)
        axes[1].loglog(range(1, len(c["residual"]) + 1), [max(r, 1e-9) for r in c["residual"]], label=name)
    for axis in axes:
        axis.axvline(depth, color="grey", linewidth=0.8)
    best = max(max(c["psnr"]) for c in curves.values())
    axes[0].set(title="PSNR", xlabel="steps of T", ylabel="dB", ylim=(best - 12, best + 1))
    axes[1].set(title="residual ‖u − T(u)‖", xlabel="steps of T")
    axes[0].legend(fontsize="x-small")
    drawing.savefig(path, dpi=90)


def plot_log(log: list[dict[str, float]], path: Path) -> None:
    from twofold.train.convergence import draw

    series = {name: [line[name] for line in log] for name in log[0]}
    draw({"step": [float(n + 1) for n in range(len(log))], **series}, path)


def ways_table(facts: dict[str, Any], part: str) -> str:
    """Means over seeds, with half of Student's 95 % interval."""
    first = facts["seeds"]["0"][part]
    body = [["untouched", mean_and_half(of_seeds(facts, part, "untouched")), "", "", "", "", ""]]
    for name, way in first["ways"].items():
        said = {key: of_seeds(facts, part, "ways", name, key) for key in way}
        lead = of_seeds(facts, part, "bmo_leads", name) if name in first["bmo_leads"] else None
        body.append(
            [
                name,
                mean_and_half(said["psnr_trained_depth"]),
                mean_and_half(said["psnr_beyond"]),
                mean_and_half(said["residual_left"], ".1e"),
                mean_and_half(said["contraction_factor"], ".3f"),
                f"{way['parameters']:,}",
                mean_and_half(lead, "+.2f") if lead else "",
            ]
        )
    steps = f"{first['depth']} steps", f"{10 * first['depth']} steps"
    head = ["", *(f"PSNR, {k}" for k in steps), "share of the residual left"]
    return table([*head, "factor at rest", "parameters", f"BMO's lead, {steps[1]}"], body)
