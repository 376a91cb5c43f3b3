"""Deconvolution and rain for `paper_c.py`: plug-and-play, plain unrolling and Bilevel Meta Optimization compared."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness import figure, half_interval, score, table
from paper_c_training import DEPTH, MU, RAIN_DEPTH, STEPS, Photos, grey, settled, trained
from twofold import images, losses
from twofold.contracts import Sample
from twofold.data.batches import Batches
from twofold.data.crops import CropCache
from twofold.data.pairs import every, find_pairs
from twofold.data.sources import PairCrops, Source, SyntheticCrops
from twofold.degrade.additive import GaussianNoise, RainStreaks
from twofold.degrade.blur import Blur, CameraShake
from twofold.nets.denoiser import Denoiser
from twofold.restorers.fixed_point import Deconvolution, FixedPointRestorer, RainLayers, RidgeDenoiser
from twofold.solve import contraction_factor
from twofold.solve.params import minus, norm
from twofold.train.learner import Learner
from twofold.train.meta import MetaTraining, Watched


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
) -> dict[str, Any]:
    """Trains every way that names a mu, runs all ten times deeper than trained, and pairs BMO with the rest."""
    curves, logs, rows, single = {}, {}, {}, {}
    for way, (restorer, mu) in ways.items():
        began = time.process_time()
        if mu is not None:
            log = trained(restorer, draws, steps=STEPS, depth=depth, mu=mu, rate=2e-3 if "plain" in way else 1e-2)
            logs[way] = settled(log)
            if way == "BMO":
                plot_log(log, out.with_name(f"paper_c_{name}_training.png"))
        seconds = round(time.process_time() - began)
        curves[way] = run_long(restorer, tests, 10 * depth)
        single[way] = each_psnr(restorer, tests, 10 * depth)
        sample = tests[0]
        problem = restorer.problem(sample.observed, sample.kernel)
        with torch.no_grad():
            u = problem.start
            for _ in range(10 * depth):
                u = problem.operator(u)
        factor = float(contraction_factor(problem.operator, u, generator=torch.Generator().manual_seed(0)))
        c = curves[way]
        rows[way] = {
            "psnr_trained_depth": round(c["psnr"][depth - 1], 2),
            "psnr_beyond": round(c["psnr"][-1], 2),
            "residual_trained_depth": c["residual"][depth - 1],
            "residual_beyond": c["residual"][-1],
            "change_beyond": c["change"][-1],
            "contraction_factor": round(factor, 4),
            "parameters": sum(p.numel() for p in restorer.parameters()),
            "training_seconds": seconds,
        }
        print(name, way, rows[way], flush=True)
    plot_curves(curves, depth, out.with_name(f"paper_c_{name}.png"))
    against = {}
    for way, values in single.items():
        if way != "BMO":
            d = single["BMO"] - values
            half = half_interval(d.tolist())
            against[way] = {"bmo_minus_this_db": round(float(d.mean()), 3), "half_interval_db": round(half, 3)}
    untouched = sum(score(s.observed, s.clean) for s in tests) / len(tests)
    return {
        "ways": rows,
        "training": logs,
        "beyond_paired": against,
        "untouched": round(untouched, 2),
        "pictures": len(tests),
        "depth": depth,
        "steps": STEPS,
    }


def gaussian_denoiser(net: nn.Module, pictures: list[Tensor], level: float, steps: int, rate: float) -> nn.Module:
    """For plug-and-play: trained on white noise, then frozen."""
    draws = Batches(SyntheticCrops(CropCache(pictures), GaussianNoise((level, level)), 40), 4, seed=3, ahead=False)
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


def deblurring(material: Photos) -> tuple[Batches, list[Sample], dict[str, FixedPointRestorer]]:
    """What to train on, what to test on, and plug-and-play with a certified and a plain denoiser."""
    pictures = grey(material.train)
    degrade = Blur(CameraShake(size=9, extent=(3.0, 8.0)), GaussianNoise((0.01, 0.03)))
    draws = Batches(SyntheticCrops(CropCache(pictures), degrade, 64, margin=8), 2, ahead=False)
    tests = [
        degrade(p[None, :, 100:236, 100:236].float() / 255, torch.Generator().manual_seed(i))
        for i, p in enumerate(grey(material.test)[:12])
    ]
    torch.manual_seed(0)
    certified = gaussian_denoiser(RidgeDenoiser(filters=16, layers=2), pictures, 0.03, 100, 1e-2)
    plain = gaussian_denoiser(Denoiser(guidance=0, width=16, layers=4), pictures, 0.03, 200, 2e-3)
    penalties, held = (0.003, 0.01, 0.03, 0.1, 0.3), draws(10_000)
    shelf = {
        name: best_penalty(lambda v, net=net: Deconvolution(net, penalty=v), held, penalties)
        for name, net in (("certified", certified), ("plain", plain))
    }
    return draws, tests, shelf


def deconvolution(material: Photos, out: Path) -> dict[str, Any]:
    draws, tests, shelf = deblurring(material)
    ways = {
        "plug-and-play, certified denoiser": (shelf["certified"], None),
        "plug-and-play, plain denoiser": (shelf["plain"], None),
        "unrolled, plain denoiser": (thawed(shelf["plain"]), 0.0),
        "unrolled, certified denoiser": (thawed(shelf["certified"]), 0.0),
        "BMO": (thawed(shelf["certified"]), MU),
    }
    facts = compare("deconvolution", ways, draws, tests, DEPTH, out)
    facts["fixed_batch"] = fixed_batch(thawed(shelf["certified"]), draws(0))
    return facts


def leader(material: Photos, _: Path) -> dict[str, Any]:
    """How strong the leader may be: the certified deconvolution again, trained with other shares mu."""
    draws, tests, shelf = deblurring(material)
    single = {}
    for mu in (0.0, 0.03, MU, 0.3):
        restorer = thawed(shelf["certified"])
        trained(restorer, draws, steps=STEPS, depth=DEPTH, mu=mu, rate=1e-2)
        single[mu] = each_psnr(restorer, tests, 10 * DEPTH)
        print("leader:", mu, round(float(single[mu].mean()), 3), flush=True)
    facts = {}
    for mu, values in single.items():
        d = values - single[0.0]
        half = half_interval(d.tolist())
        facts[str(mu)] = {
            "psnr": round(float(values.mean()), 3),
            "lead_over_unrolled_db": round(float(d.mean()), 3),
            "half_interval_db": round(half, 3),
        }
    return {"shares": facts}


def thawed(restorer: FixedPointRestorer) -> FixedPointRestorer:
    """A copy to train: every trained way starts where plug-and-play stops."""
    return copy.deepcopy(restorer).requires_grad_(True)


def fixed_batch(restorer: FixedPointRestorer, sample: Sample, steps: int = STEPS) -> dict[str, float]:
    """Stationarity, without the noise of drawing: the same four crops at every step, a constant rate."""
    learner = Learner(restorer.parameters(), lambda p: torch.optim.Adam(p, 5e-3))
    scheme = MetaTraining(restorer, losses.l2, learner, iterations=DEPTH, mu=MU)
    return settled([scheme.step([sample]) for _ in range(steps)])


def rain(material: Photos, out: Path) -> dict[str, Any]:
    return deraining(material, "rain", RAIN_DEPTH, out)


def rain_shallow(material: Photos, out: Path) -> dict[str, Any]:
    return deraining(material, "rain_shallow", DEPTH, out)


def deraining(material: Photos, name: str, depth: int, out: Path) -> dict[str, Any]:
    source: Source
    if material.data is None:
        drawn = RainStreaks()
        source = SyntheticCrops(CropCache(material.train), drawn, 40)
        tests = [
            drawn(p[None, :, 100:228, 100:228].float() / 255, torch.Generator().manual_seed(i))
            for i, p in enumerate(material.test)
        ]
    else:
        root = material.data / "rain" / "Rain100"
        found = find_pairs(root, observed="light", clean="clean")
        kept = every(found, 5, picked=False)
        source = PairCrops(CropCache.of(p.observed for p in kept), CropCache.of(p.clean for p in kept), 40)
        held = every(found, 5, picked=True)
        tests = [
            Sample(*(images.read(path).pixels[:, :3, 96:224, 160:288] for path in (p.clean, p.observed))) for p in held
        ]
    draws = Batches(source, 4, ahead=False)

    torch.manual_seed(0)
    certified = gaussian_denoiser(RidgeDenoiser(channels=3, filters=16), material.train, 0.03, 100, 1e-2)
    plain = gaussian_denoiser(Denoiser(channels=3, guidance=0, width=12, layers=4), material.train, 0.03, 200, 2e-3)
    streaks = RidgeDenoiser(channels=3, filters=16, size=7, keep_mean=False)
    # Nobody has a denoiser for rain on the shelf: plug-and-play gets a soft threshold for that layer.
    penalties, sample = (0.03, 0.1, 0.3, 1.0, 3.0), draws(10_000)
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
    return compare(name, ways, draws, tests, depth, out)


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


def ways_table(facts: dict[str, Any]) -> str:
    body = [["untouched", f"{facts['untouched']:.2f}", "", "", "", "", "", ""]]
    for name, w in facts["ways"].items():
        pair = facts["beyond_paired"].get(name)
        body.append(
            [
                name,
                f"{w['psnr_trained_depth']:.2f}",
                f"{w['psnr_beyond']:.2f}",
                f"{w['residual_trained_depth']:.1e}",
                f"{w['residual_beyond']:.1e}",
                f"{w['contraction_factor']:.3f}",
                f"{w['parameters']:,}",
                f"{pair['bmo_minus_this_db']:+.2f} ± {pair['half_interval_db']:.2f}" if pair else "",
            ]
        )
    steps = f"{facts['depth']} steps", f"{10 * facts['depth']} steps"
    head = ["", *(f"PSNR, {k}" for k in steps), *(f"residual, {k}" for k in steps)]
    return table([*head, "factor at rest", "parameters", f"BMO's lead, {steps[1]}"], body)


def leader_table(facts: dict[str, Any]) -> str:
    body = [
        [mu, f"{f['psnr']:.2f}", f"{f['lead_over_unrolled_db']:+.2f} ± {f['half_interval_db']:.2f}"]
        for mu, f in facts["leader"]["shares"].items()
    ]
    return table(["mu in training", "PSNR, 80 steps of T", "lead over mu = 0"], body)
