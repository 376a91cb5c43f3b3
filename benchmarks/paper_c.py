"""Bilevel Meta Optimization on its three applications, beside what it is measured against; and the claims that follow.

    python benchmarks/paper_c.py --data DATA --json benchmarks/results/paper_c.json

Parts: counter (the smallest problem on which aggregation matters), sparse (convergence on synthetic codes), patches
(photographs with salt and pepper), deconvolution, leader (how strong it may be), rain, rain_shallow. `--only` with none
of them and `--page` writes the tables of a file that is there.
Data: BSDS500 to train, Kodak24 to test, Rain100 for rain; without --data scikit-image's photographs and drawn rain.
About ten minutes on one free core. Plots are written beside the JSON.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from skimage import data as photographs
from torch import Tensor, nn

from twofold import images, losses
from twofold.contracts import Sample
from twofold.data.batches import Batches
from twofold.data.crops import CropCache
from twofold.data.pairs import every, find_pairs
from twofold.data.sources import PairCrops, Source, SyntheticCrops
from twofold.degrade.additive import GaussianNoise, RainStreaks
from twofold.degrade.blur import Blur, CameraShake
from twofold.files import write_text
from twofold.nets.denoiser import Denoiser
from twofold.restorers.fixed_point import Deconvolution, FixedPointRestorer, RainLayers, RidgeDenoiser
from twofold.restorers.sparse_coding import (
    DLADMM,
    ISTA,
    LADMM,
    LISTA,
    Coder,
    LearnedALM,
    Model,
    PatchCoding,
    joined,
    learn_dictionary,
    patches_of,
)
from twofold.solve import Harmonic, Relax, aggregated_step, contraction_factor, metric_of
from twofold.solve.params import minus, norm
from twofold.train.meta import MetaTraining, Watched
from twofold.train.schemes import Learner

DEPTH, RAIN_DEPTH = 8, 24  # K in training; rain settles more slowly, so 8 is shallow for it
MU = 0.1
TURNS = 100


@dataclass(frozen=True)
class Photos:
    """Bytes (C, H, W) to train on and to test on."""

    train: list[Tensor]
    test: list[Tensor]
    data: Path | None


def photos(data: Path | None) -> Photos:
    if data is None:
        names = ("chelsea", "coffee", "rocket", "astronaut")
        found = [torch.from_numpy(getattr(photographs, name)().copy()).permute(2, 0, 1) for name in names]
        return Photos(found[:3], found[3:], None)

    def read(folder: Path, count: int) -> list[Tensor]:
        return [(images.read(path).pixels[0] * 255).round().byte() for path in images.find([folder])[:count]]

    return Photos(read(data / "clean" / "BSDS500", 80), read(data / "clean" / "Kodak24", 24), data)


def grey(pictures: list[Tensor]) -> list[Tensor]:
    return [(p.float().mean(0, keepdim=True)).round().byte() for p in pictures]


def psnr(restored: Tensor, clean: Tensor) -> Tensor:
    """(B,), on pictures clamped to [0, 1]."""
    return -10 * torch.log10((restored.clamp(0, 1) - clean).square().flatten(1).mean(1))


def summary(values: Tensor) -> float:
    return round(float(values.mean()), 3)


# Sparse codes --------------------------------------------------------------------------------------------------------


def bernoulli_gaussian(A: Tensor, share: float, scale: float, count: int, seed: int) -> Tensor:
    """Signals A Z + E, Z and E sparse with normal entries."""
    generator = torch.Generator().manual_seed(seed)

    def draw(width: int) -> Tensor:
        chosen = torch.rand(count, width, generator=generator) < share
        return chosen * scale * torch.randn(count, width, generator=generator)

    return draw(A.shape[1]).to(A) @ A.mT + draw(A.shape[0]).to(A)


LEVELS = ((0.1, 1.0), (0.2, 2.0), (0.3, 3.0))


def teach_metric(coder: LearnedALM, model: Model, level: tuple[float, float], *, mu: float) -> None:
    """Lowers the mean logarithm of the relative gap after 60 steps, over 256 signals; mu = 0 is plain unrolling."""
    batches = [bernoulli_gaussian(model.dictionary, *level, 16, 1_000 + n) for n in range(16)]
    best = [objectives(LearnedALM(model), model, x, 600).min(0).values for x in batches]
    optimizer = torch.optim.Adam([p for p in coder.parameters() if p.requires_grad], 5e-3)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 96)
    for turn in range(96):
        signals, least = batches[turn % 16], best[turn % 16]
        code = aggregated(coder, model, signals, 60, mu)
        loss = (model.objective(code, signals) / least - 1).clamp_min(1e-12).log().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        falling.step()


def teach_layers(coder: LISTA | DLADMM, model: Model, level: tuple[float, float]) -> None:
    """Lowers the mean objective after the last layer, on fresh signals at every turn."""
    optimizer = torch.optim.Adam(coder.parameters(), 1e-3)
    for turn in range(500):
        signals = bernoulli_gaussian(model.dictionary, *level, 16, 1_000 + turn)
        *_, code = coder.codes(signals, 15)
        loss = (model.objective(code, signals) / model.objective(0 * code, signals)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@dataclass(frozen=True)
class Relaxed:
    """Steps μ u + (1 − μ) T(u): what the aggregated step becomes as the leader's steps fall to 0."""

    coder: LearnedALM
    mu: float

    def codes(self, signals: Tensor, steps: int) -> Iterator[Tensor]:
        T, u = Relax(self.coder.operator(signals), 1 - self.mu), self.coder.start(signals)
        for _ in range(steps):
            u = T(u)
            yield self.coder.code(u)


def aggregated(coder: LearnedALM, model: Model, signals: Tensor, depth: int, mu: float) -> Tensor:
    """The code after aggregated steps; the leader descends the objective itself."""
    T, u = coder.operator(signals), coder.start(signals)
    largest = float(T.metric.floor) / (model.curvature * float(coder.spectrum.max()))
    leads = Harmonic(largest)
    for k in range(depth):
        u = aggregated_step(T, lambda v: model.objective(coder.code(v), signals).sum(), u, mu=mu, step=leads(k))
    return coder.code(u)


def objectives(coder: Coder, model: Model, signals: Tensor, steps: int) -> Tensor:
    """(steps, B)."""
    with torch.no_grad():
        return torch.stack([model.objective(code, signals) for code in coder.codes(signals, steps)])


def needed(gap: Tensor, tolerance: float = 1e-6) -> float | None:
    """Median number of iterations after which the gap stays below the tolerance; None if more than half never do."""
    steps = gap.shape[0]
    last = steps - (gap <= tolerance).flip(0).int().cumprod(0).sum(0) + 1.0
    found = float(last.median())
    return found if found <= steps else None


def sparse(_: Photos, out: Path) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    A = nn.functional.normalize(torch.randn(250, 500, generator=generator), dim=0)
    model = Model(A, weights=0.45, curvature=5.0)
    precise = Model(A.double(), model.weights, model.curvature)
    mu, seconds, levels, curves = 0.1, dict[str, float](), dict[str, Any](), {}
    for level in LEVELS:
        began = time.process_time()
        torch.manual_seed(0)
        joint, alone, lista, unrolled = LearnedALM(precise), LearnedALM(precise), LISTA(model), DLADMM(model)
        teach_metric(joint, precise, level, mu=mu)
        teach_metric(alone, precise, level, mu=0.0)
        for layers in (lista, unrolled):
            teach_layers(layers, model, level)
        seconds[str(level[0])] = round(time.process_time() - began)
        unrolled = copy.deepcopy(unrolled).double()
        unrolled.dictionary = precise.dictionary
        coders: dict[str, tuple[Coder, int]] = {
            "ISTA": (ISTA(precise), 10_000),
            "FISTA": (ISTA(precise, accelerated=True), 2000),
            "LADMM": (LADMM(precise, 0.5), 2000),
            "preconditioned by hand": (LearnedALM(precise), 1000),
            "the same, unrolled (mu = 0)": (alone, 1000),
            "BMO": (Relaxed(joint, mu), 1000),
            "LISTA": (copy.deepcopy(lista).double(), 15),
            "D-LADMM": (unrolled, 15),
        }
        signals = bernoulli_gaussian(precise.dictionary, *level, 16, 7)
        found = {name: objectives(coder, precise, signals, steps) for name, (coder, steps) in coders.items()}
        best = torch.stack([f.min(0).values for f in found.values()]).min(0).values
        gaps = {name: (f - best) / best for name, f in found.items()}
        curves[level[0]] = {name: gap.median(1).values.clamp_min(1e-12).tolist() for name, gap in gaps.items()}
        levels[str(level[0])] = {
            name: {
                "iterations": needed(gap),
                "tried": gap.shape[0],
                "gap_at_5_10_15": [float(gap[k].median()) for k in (4, 9, 14)],
                "gap_at_end": float(gap[-1].median()),
            }
            for name, gap in gaps.items()
        }
        print("sparse: level", level, {n: needed(g) for n, g in gaps.items()}, seconds, flush=True)
    ratios = []
    for rows in levels.values():
        ista, ours = rows["ISTA"]["iterations"] or rows["ISTA"]["tried"], rows["BMO"]["iterations"]
        ratios.append(round(ista / ours, 1) if ours else 0.0)
    plot_gaps(curves, out.with_name("paper_c_sparse.png"))
    return {"levels": levels, "ista_over_bmo": ratios, "training_seconds": seconds, "mu": mu}


# Patches of photographs ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SaltAndPepper:
    """A share of the pixels becomes black or white, evenly."""

    share: float = 0.1

    def __call__(self, clean: Tensor, generator: torch.Generator) -> Sample:
        draw = torch.rand(clean.shape, generator=generator)
        observed = torch.where(draw < self.share / 2, 0.0, torch.where(draw < self.share, 1.0, clean))
        return Sample(clean, observed)


def shown(coder: Coder, dictionary: Tensor, observed: Tensor, steps: int) -> Iterator[Tensor]:
    """The picture after each iteration of any coder, patch by patch, as `PatchCoding` has it."""
    side = math.isqrt(len(dictionary))
    rows = patches_of(observed, side)
    middle = rows.median(1, keepdim=True).values
    for code in coder.codes(rows - middle, steps):
        yield joined(code @ dictionary.mT + middle, side, tuple(observed.shape))


def patches(material: Photos, out: Path) -> dict[str, Any]:
    began = time.process_time()
    side, spoil = 16, SaltAndPepper()
    clean_crops = SyntheticCrops(CropCache(grey(material.train)), spoil, 4 * side)
    draws = Batches(clean_crops, 2, ahead=False)
    rows = torch.cat([patches_of(draws(n).clean, side) for n in range(200)])
    generator = torch.Generator().manual_seed(0)
    A = learn_dictionary(rows - rows.mean(1, keepdim=True), 512, passes=2, generator=generator)
    print("patches: dictionary", round(time.process_time() - began), "s", flush=True)

    pictures = [p[:, : p.shape[1] // side * side, : p.shape[2] // side * side] for p in grey(material.test)[:3]]
    tests = [spoil(p[None].float() / 255, torch.Generator().manual_seed(i)) for i, p in enumerate(pictures)]
    held = draws(10_000)

    def scores(coder: Coder, marks: tuple[int, ...]) -> dict[str, float]:
        found: dict[int, list[float]] = {k: [] for k in marks}
        with torch.no_grad():
            for sample in tests:
                for k, image in enumerate(shown(coder, A, sample.observed, max(marks)), 1):
                    if k in found:
                        found[k].append(float(psnr(image, sample.clean)))
        return {str(k): round(sum(v) / len(v), 2) for k, v in found.items() if v}

    def by_hand(make: Callable[[Model], Coder], curvature: float) -> tuple[Coder, float]:
        """The best of four weights on a few training crops."""
        best: tuple[float, Coder, float] | None = None
        for weight in (0.2, 0.4, 0.8, 1.6):
            coder = make(Model(A, weight, curvature))
            *_, image = shown(coder, A, held.observed, 150)
            value = summary(psnr(image, held.clean))
            if best is None or value > best[0]:
                best = (value, coder, weight)
        assert best is not None
        return best[1], best[2]

    marks, beyond = (5, 10, 15), (5, 10, 15, 150)
    table: dict[str, dict[str, float]] = {}
    chosen = {}
    for name, make, curvature in (
        ("ISTA", ISTA, 20.0),
        ("FISTA", lambda m: ISTA(m, accelerated=True), 20.0),
        ("LADMM", lambda m: LADMM(m, 2.0), math.inf),
    ):
        coder, weight = by_hand(make, curvature)
        table[name], chosen[name] = scores(coder, beyond), weight
        print("patches:", name, weight, table[name], flush=True)
    model = Model(A, chosen["LADMM"])
    torch.manual_seed(0)
    for name, family in (("LISTA", LISTA), ("D-LADMM", DLADMM)):
        tried = []
        for rate in (1e-4, 1e-3):
            net = family(model)
            optimizer = torch.optim.Adam(net.parameters(), rate)
            for turn in range(150):
                sample = draws(turn)
                *_, image = shown(net, A, sample.observed, 15)
                optimizer.zero_grad()
                losses.l2(image, sample.clean).backward()
                optimizer.step()
            with torch.no_grad():
                *_, image = shown(net, A, held.observed, 15)
            tried.append((summary(psnr(image, held.clean)), rate, net))
        best = max(tried, key=lambda t: t[0])
        table[name], chosen[f"learning rate of {name}"] = scores(best[2], marks), best[1]
        print("patches:", name, table[name], round(time.process_time() - began), "s", flush=True)
    facts: dict[str, Any] = {}
    for name, mu in (("BMO", MU), ("the same, unrolled (mu = 0)", 0.0)):
        restorer = PatchCoding(LearnedALM(model, tune_weights=True))
        log = trained(restorer, draws, turns=150, depth=15, mu=mu, rate=0.02)
        table[name] = scores(restorer.coder, beyond)
        facts[name] = settled(log)
        print("patches:", name, table[name], round(time.process_time() - began), "s", flush=True)
    untouched = sum(float(psnr(s.observed, s.clean)) for s in tests) / len(tests)
    return {
        "psnr": table,
        "untouched": round(untouched, 2),
        "chosen_on_training_crops": chosen,
        "training": facts,
        "pictures": len(tests),
    }


# Deconvolution and rain ----------------------------------------------------------------------------------------------


def trained(
    restorer: FixedPointRestorer, draws: Callable[[int], Sample], *, turns: int, depth: int, mu: float, rate: float
) -> list[dict[str, float]]:
    """Bilevel Meta Optimization (mu = 0: plain unrolling); the log."""

    def schedule(n: int) -> float:
        return 0.5 * (1 + math.cos(math.pi * n / turns))

    learner = Learner(
        [p for p in restorer.parameters() if p.requires_grad],
        lambda p: torch.optim.Adam(p, rate),
        schedule=schedule,
        clip=1.0,
    )
    scheme = MetaTraining(restorer, losses.l2, learner, steps=depth, mu=mu)
    return [scheme.step([draws(turn)]) for turn in range(turns)]


def settled(log: list[dict[str, float]]) -> dict[str, float]:
    """What the log says of the claims: how far residuals fell within every turn, and gradients over the turns."""
    last = max(int(name.split("/")[1]) for name in log[0] if name.startswith("residual/"))
    falls = [line[f"residual/{last}"] / max(line[f"residual/{k}"] for k in range(last + 1)) for line in log]
    tenth = max(len(log) // 10, 1)

    def ends(name: str) -> tuple[float, float]:
        values = [line[name] for line in log]
        return sum(values[:tenth]) / tenth, sum(values[-tenth:]) / tenth

    return {
        "largest_residual_ratio_of_any_turn": max(falls),
        "gradient_first_tenth": ends("gradient")[0],
        "gradient_last_tenth": ends("gradient")[1],
        "change_first_tenth": ends("change")[0],
        "change_last_tenth": ends("change")[1],
        "contraction_last_tenth": ends("contraction")[1],
        "loss_first_tenth": ends("restoration")[0],
        "loss_last_tenth": ends("restoration")[1],
    }


def run_long(restorer: FixedPointRestorer, tests: list[Sample], steps: int) -> dict[str, list[float]]:
    """PSNR, relative change ‖u_{k+1} − u_k‖ / ‖u_k‖ and residual of T alone after every step; means over pictures."""
    quality, change, residual = (torch.zeros(steps, dtype=torch.float64) for _ in range(3))
    with torch.no_grad():
        for sample in tests:
            problem = restorer.problem(sample.observed, sample.known)
            T, u = Watched(problem.operator), problem.start
            for k in range(steps):
                fresh = T(u)
                change[k] += float(norm(minus(fresh, u)) / norm(u))
                u = fresh
                quality[k] += float(psnr(problem.image(u), sample.clean).mean())
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
            problem = restorer.problem(sample.observed, sample.known)
            u = problem.start
            for _ in range(steps):
                u = problem.operator(u)
            found.append(psnr(problem.image(u), sample.clean).mean())
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
            log = trained(restorer, draws, turns=TURNS, depth=depth, mu=mu, rate=2e-3 if "plain" in way else 1e-2)
            logs[way] = settled(log)
            if way == "BMO":
                plot_log(log, out.with_name(f"paper_c_{name}_training.png"))
        seconds = round(time.process_time() - began)
        curves[way] = run_long(restorer, tests, 10 * depth)
        single[way] = each_psnr(restorer, tests, 10 * depth)
        sample = tests[0]
        problem = restorer.problem(sample.observed, sample.known)
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
            half = 1.96 * float(d.std()) / math.sqrt(len(d)) if len(d) > 1 else float("nan")
            against[way] = {"bmo_minus_this_db": round(float(d.mean()), 3), "half_interval_db": round(half, 3)}
    untouched = sum(float(psnr(s.observed, s.clean).mean()) for s in tests) / len(tests)
    return {
        "ways": rows,
        "training": logs,
        "beyond_paired": against,
        "untouched": round(untouched, 2),
        "pictures": len(tests),
        "depth": depth,
        "turns": TURNS,
    }


def gaussian_denoiser(net: nn.Module, pictures: list[Tensor], level: float, turns: int, rate: float) -> nn.Module:
    """For plug-and-play: trained on white noise, then frozen."""
    draws = Batches(SyntheticCrops(CropCache(pictures), GaussianNoise((level, level)), 40), 4, seed=3, ahead=False)
    optimizer = torch.optim.Adam(net.parameters(), rate)
    for turn in range(turns):
        sample = draws(turn)
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
    spoil = Blur(CameraShake(size=9, extent=(3.0, 8.0)), GaussianNoise((0.01, 0.03)))
    draws = Batches(SyntheticCrops(CropCache(pictures), spoil, 64, margin=8), 2, ahead=False)
    tests = [
        spoil(p[None, :, 100:236, 100:236].float() / 255, torch.Generator().manual_seed(i))
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
        trained(restorer, draws, turns=TURNS, depth=DEPTH, mu=mu, rate=1e-2)
        single[mu] = each_psnr(restorer, tests, 10 * DEPTH)
        print("leader:", mu, summary(single[mu]), flush=True)
    facts = {}
    for mu, values in single.items():
        d = values - single[0.0]
        half = 1.96 * float(d.std()) / math.sqrt(len(d))
        facts[str(mu)] = {
            "psnr": summary(values),
            "lead_over_unrolled_db": summary(d),
            "half_interval_db": round(half, 3),
        }
    return {"shares": facts}


def thawed(restorer: FixedPointRestorer) -> FixedPointRestorer:
    """A copy to train: every trained way starts where plug-and-play stops."""
    return copy.deepcopy(restorer).requires_grad_(True)


def fixed_batch(restorer: FixedPointRestorer, sample: Sample, turns: int = TURNS) -> dict[str, float]:
    """Stationarity, without the noise of drawing: the same four crops at every turn, a constant rate."""
    learner = Learner(restorer.parameters(), lambda p: torch.optim.Adam(p, 5e-3))
    scheme = MetaTraining(restorer, losses.l2, learner, steps=DEPTH, mu=MU)
    return settled([scheme.step([sample]) for _ in range(turns)])


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


# The smallest problem on which aggregation matters -------------------------------------------------------------------


def counter(_: Photos, out: Path) -> dict[str, Any]:
    """BDA's example: T(y) = (y₁ − ½ (y₁ − x), y₂), upper loss ½ (x − y₂)² + ½ (y₁ − 1)²; the answer is x = 1.

    φ_K is quadratic in x, so its minimum follows from the slope at two points.
    """

    def slope(x0: float, steps: int, mu: float) -> tuple[float, float]:
        x = torch.tensor(x0, dtype=torch.float64, requires_grad=True)

        def upper(y: Tensor) -> Tensor:
            return 0.5 * (x - y[1]) ** 2 + 0.5 * (y[0] - 1) ** 2

        def follow(y: Tensor) -> Tensor:
            return torch.stack([y[0] - 0.5 * (y[0] - x), y[1]])

        y, leads = torch.zeros(2, dtype=torch.float64), Harmonic(1.0)
        for k in range(steps):
            y = aggregated_step(follow, upper, y, mu=mu, step=leads(k), metric=metric_of(follow))
        value = upper(y)
        return float(torch.autograd.grad(value, x)[0]), float(value.detach())

    def answer(steps: int, mu: float) -> tuple[float, float]:
        at_zero, at_one = slope(0.0, steps, mu)[0], slope(1.0, steps, mu)[0]
        x = at_zero / (at_zero - at_one)
        return round(x, 4), slope(x, steps, mu)[1]

    facts = {}
    for steps in (16, 64, 256):
        facts[str(steps)] = {
            "unrolled": answer(steps, 0.0)[0],
            "BMO": answer(steps, 0.5)[0],
            "upper_loss_unrolled": answer(steps, 0.0)[1],
            "upper_loss_BMO": answer(steps, 0.5)[1],
        }
    print("counter:", facts, flush=True)
    return facts


# Pictures ------------------------------------------------------------------------------------------------------------


def axes_of(columns: int) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * columns, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, columns)


def plot_gaps(curves: dict[float, dict[str, list[float]]], path: Path) -> None:
    figure, axes = axes_of(len(curves))
    for axis, (share, found) in zip(axes, curves.items(), strict=True):
        for name, gap in found.items():
            axis.loglog(range(1, len(gap) + 1), gap, label=name)
        axis.axhline(1e-6, color="grey", linewidth=0.8)
        axis.set(title=f"p = {share}", xlabel="iterations", ylabel="relative gap", ylim=(1e-10, 3))
    axes[0].legend(fontsize="x-small")
    figure.savefig(path, dpi=90)


def plot_curves(curves: dict[str, dict[str, list[float]]], depth: int, path: Path) -> None:
    figure, axes = axes_of(2)
    for name, c in curves.items():
        axes[0].plot(range(1, len(c["psnr"]) + 1), c["psnr"], label=name)
        axes[1].loglog(range(1, len(c["residual"]) + 1), [max(r, 1e-9) for r in c["residual"]], label=name)
    for axis in axes:
        axis.axvline(depth, color="grey", linewidth=0.8)
    best = max(max(c["psnr"]) for c in curves.values())
    axes[0].set(title="PSNR", xlabel="steps of T", ylabel="dB", ylim=(best - 12, best + 1))
    axes[1].set(title="residual ‖u − T(u)‖", xlabel="steps of T")
    axes[0].legend(fontsize="x-small")
    figure.savefig(path, dpi=90)


def plot_log(log: list[dict[str, float]], path: Path) -> None:
    from twofold.train.convergence import draw

    series = {name: [line[name] for line in log] for name in log[0]}
    draw({"turn": [float(n + 1) for n in range(len(log))], **series}, path)


# Tables --------------------------------------------------------------------------------------------------------------


def rows_of(head: list[str], body: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *body])


def sparse_table(facts: dict[str, Any]) -> str:
    levels = facts["sparse"]["levels"]
    body = []
    for name in next(iter(levels.values())):
        line = [name]
        for level in levels.values():
            found = level[name]
            more = f"> {found['tried']:,}" if found["tried"] > 15 else "never"
            line += [
                f"{found['gap_at_5_10_15'][2]:.1e}",
                f"{found['iterations']:,.0f}" if found["iterations"] else more,
            ]
        body.append(line)
    return rows_of(["", *(f"p = {p}, {what}" for p in levels for what in ("gap at 15", "iterations to 1e-6"))], body)


def patches_table(facts: dict[str, Any]) -> str:
    found = facts["patches"]["psnr"]
    depths = ["5", "10", "15", "150"]
    body = [[name, *(f"{line[k]:.2f}" if k in line else "–" for k in depths)] for name, line in found.items()]
    return rows_of(["iterations", *depths], [["untouched", f"{facts['patches']['untouched']:.2f}", "", "", ""], *body])


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
    return rows_of([*head, "factor at rest", "parameters", f"BMO's lead, {steps[1]}"], body)


def leader_table(facts: dict[str, Any]) -> str:
    body = [
        [mu, f"{f['psnr']:.2f}", f"{f['lead_over_unrolled_db']:+.2f} ± {f['half_interval_db']:.2f}"]
        for mu, f in facts["leader"]["shares"].items()
    ]
    return rows_of(["mu in training", "PSNR, 80 steps of T", "lead over mu = 0"], body)


def claims_table(facts: dict[str, Any]) -> str:
    """The six checkable claims, each judged by its numbers."""
    pictures = {name: facts[name] for name in ("deconvolution", "rain", "rain_shallow")}
    ways = {name: f["ways"] for name, f in pictures.items()}
    ratio = {name: f["training"]["BMO"]["largest_residual_ratio_of_any_turn"] for name, f in pictures.items()}
    change = {name: w["BMO"]["change_beyond"] for name, w in ways.items()}
    falls = {n: (w["BMO"]["residual_trained_depth"], w["BMO"]["residual_beyond"]) for n, w in ways.items()}
    still = facts["deconvolution"]["fixed_batch"]
    steady = {n: w["BMO"]["psnr_beyond"] - w["BMO"]["psnr_trained_depth"] for n, w in ways.items()}
    loose = {
        f"{n}, {way}": (line["residual_beyond"] / line["residual_trained_depth"], line["contraction_factor"])
        for n, w in ways.items()
        for way, line in w.items()
        if "plain" in way
    }
    lead = {n: f["beyond_paired"]["unrolled, certified denoiser"] for n, f in pictures.items()}
    loses = [n for n, (left, factor) in loose.items() if left > 0.1 or factor >= 1]
    counts = facts["counter"]["256"]
    judged = [
        (
            "‖u_{k+1} − u_k‖ / ‖u_k‖ → 0 in every outer round",
            max(ratio.values()) < 0.5 and max(change["deconvolution"], change["rain"]) < 1e-3,
            "largest share of the residual left after the trained depth in any round: "
            + ", ".join(f"{n} {v:.2f}" for n, v in ratio.items())
            + "; relative change after ten times that: "
            + ", ".join(f"{n} {v:.1e}" for n, v in change.items())
            + " (below 1e-3 asked of the first two; the last one is a control that stops at a third of rain's steps)",
        ),
        (
            "the residual falls with K",
            all(after < before / 3 for before, after in falls.values()),
            ", ".join(f"{n} {a:.1e} → {b:.1e}" for n, (a, b) in falls.items()),
        ),
        (
            "‖∇φ_K‖ and ‖w_{t+1} − w_t‖ → 0",
            still["gradient_last_tenth"] < 0.5 * still["gradient_first_tenth"]
            and still["change_last_tenth"] < 0.5 * still["change_first_tenth"],
            f"deconvolution, one fixed batch, constant rate: ‖∇φ‖ {still['gradient_first_tenth']:.1e} → "
            f"{still['gradient_last_tenth']:.1e}, ‖Δw‖ {still['change_first_tenth']:.1e} → "
            f"{still['change_last_tenth']:.1e} (first and last tenth of the rounds)",
        ),
        (
            "a non-expansive net keeps converging beyond the trained depth",
            all(w["BMO"]["contraction_factor"] < 1 for w in ways.values())
            and all(after < before / 3 for before, after in falls.values()),
            "factor at rest: "
            + ", ".join(f"{n} {w['BMO']['contraction_factor']:.3f}" for n, w in ways.items())
            + "; PSNR from the trained depth to ten times it: "
            + ", ".join(f"{n} {v:+.2f} dB" for n, v in steady.items()),
        ),
        (
            "an unconstrained net need not",
            bool(loses),
            "share of the residual left, factor at rest: "
            + "; ".join(f"{n} {left:.1e}, {factor:.3f}" for n, (left, factor) in loose.items())
            + f". Fails: {'; '.join(loses) or 'none'}",
        ),
        (
            "where fixed points are many, mu > 0 reaches a lower upper loss than mu = 0",
            counts["upper_loss_BMO"] < 0.1 * counts["upper_loss_unrolled"],
            f"BDA's example, K = 256: x = {counts['BMO']} against {counts['unrolled']} (truth 1), "
            f"upper loss {counts['upper_loss_BMO']:.1e} against {counts['upper_loss_unrolled']:.2f}",
        ),
        (
            "joint training is at least as good as separate training at depths beyond the trained one",
            all(v["bmo_minus_this_db"] >= -v["half_interval_db"] for v in lead.values()),
            "BMO less unrolled, same net: "
            + ", ".join(f"{n} {v['bmo_minus_this_db']:+.3f} ± {v['half_interval_db']:.3f} dB" for n, v in lead.items()),
        ),
    ]
    numbers = ["1", "2", "3", "4a", "4b", "5", "6"]
    body = [
        [k, c, "reproduced" if ok else "**not reproduced**", t] for k, (c, ok, t) in zip(numbers, judged, strict=True)
    ]
    return rows_of(["", "claim", "", "numbers"], body)


def write_tables(facts: dict[str, Any], page: Path) -> None:
    """Puts the tables between their marks on a page."""
    text = page.read_text()
    made = {
        "sparse": sparse_table(facts),
        "patches": patches_table(facts),
        "deconvolution": ways_table(facts["deconvolution"]),
        "rain": ways_table(facts["rain"]),
        "rain_shallow": ways_table(facts["rain_shallow"]),
        "leader": leader_table(facts),
        "claims": claims_table(facts),
    }
    for name, table in made.items():
        mark, end = f"<!-- paper_c {name} -->", "<!-- end paper_c -->"
        before, _, rest = text.partition(mark)
        text = f"{before}{mark}\n{table}\n{end}{rest.partition(end)[2]}"
    write_text(page, text)


PARTS = {
    "counter": counter,
    "sparse": sparse,
    "patches": patches,
    "deconvolution": deconvolution,
    "leader": leader,
    "rain": rain,
    "rain_shallow": rain_shallow,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--data", type=Path, help="folder with clean/BSDS500, clean/Kodak24, rain/Rain100")
    parser.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--resume", action="store_true", help="keep the parts that the JSON has already")
    parser.add_argument("--page", type=Path, help="a page whose tables are made anew from the JSON, as docs/bmo.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    facts: dict[str, Any] = json.loads(arguments.json.read_text()) if arguments.json.exists() else {}
    material = photos(arguments.data)
    for name in arguments.only:
        if arguments.resume and name in facts:
            continue
        began = time.process_time()
        facts[name] = PARTS[name](material, arguments.json)
        facts[name]["cpu_seconds"] = round(time.process_time() - began)
        facts["data"] = "BSDS500, Kodak24, Rain100" if arguments.data else "photographs of scikit-image"
        facts["machine"] = f"{platform.machine()}, 1 thread, torch {torch.__version__}"
        write_text(arguments.json, json.dumps(facts, indent=1) + "\n")
    if arguments.page:
        write_tables(facts, arguments.page)


if __name__ == "__main__":
    main()
