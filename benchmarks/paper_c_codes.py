"""Sparse coding for `paper_c.py`: convergence on synthetic codes, and photographs with salt-and-pepper noise."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness import figure, score, table
from paper_c_coders import DLADMM, ISTA, LADMM, LISTA, Coder
from paper_c_training import MU, Photos, grey, mean_and_half, of_seeds, share_left, trained
from twofold import losses
from twofold.data.batches import Batches
from twofold.data.crops import CropCache
from twofold.data.sources import SyntheticCrops
from twofold.degrade.additive import SaltAndPepper
from twofold.restorers.sparse_coding import LearnedALM, PatchCoding, SparseModel, joined, patches_of
from twofold.solve import Harmonic, Relax, aggregated_step


def bernoulli_gaussian(A: Tensor, share: float, scale: float, count: int, seed: int) -> Tensor:
    """Signals A Z + E, Z and E sparse with normal entries."""
    generator = torch.Generator().manual_seed(seed)

    def draw(width: int) -> Tensor:
        chosen = torch.rand(count, width, generator=generator) < share
        return chosen * scale * torch.randn(count, width, generator=generator)

    return draw(A.shape[1]).to(A) @ A.mT + draw(A.shape[0]).to(A)


LEVELS = ((0.2, 2.0),)
ROWS, ATOMS = 64, 128


def teach_metric(coder: LearnedALM, model: SparseModel, level: tuple[float, float], seed: int, *, mu: float) -> None:
    """Lowers the mean logarithm of the relative gap after 30 steps, over 256 signals; mu = 0 is plain unrolling."""
    batches = [bernoulli_gaussian(model.dictionary, *level, 16, 1_000 * (seed + 1) + n) for n in range(16)]
    best = [objectives(LearnedALM(model), model, x, 600).min(0).values for x in batches]
    optimizer = torch.optim.Adam([p for p in coder.parameters() if p.requires_grad], 5e-3)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 48)
    for step in range(48):
        signals, least = batches[step % 16], best[step % 16]
        code = aggregated(coder, model, signals, 30, mu)
        loss = (model.objective(code, signals) / least - 1).clamp_min(1e-12).log().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        falling.step()


def teach_layers(coder: LISTA | DLADMM, model: SparseModel, level: tuple[float, float], seed: int) -> None:
    """Lowers the mean objective after the last layer, on fresh signals at every step."""
    optimizer = torch.optim.Adam(coder.parameters(), 1e-3)
    for step in range(200):
        signals = bernoulli_gaussian(model.dictionary, *level, 16, 1_000 * (seed + 1) + step)
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


def aggregated(coder: LearnedALM, model: SparseModel, signals: Tensor, depth: int, mu: float) -> Tensor:
    """The code after aggregated steps; the leader descends the objective itself."""
    T, u = coder.operator(signals), coder.start(signals)
    largest = float(T.metric.floor) / (model.curvature * float(coder.spectrum.max()))
    leads = Harmonic(largest)
    for k in range(depth):
        u = aggregated_step(T, lambda v: model.objective(coder.code(v), signals).sum(), u, mu=mu, step=leads(k))
    return coder.code(u)


def objectives(coder: Coder, model: SparseModel, signals: Tensor, steps: int) -> Tensor:
    """(steps, B)."""
    with torch.no_grad():
        return torch.stack([model.objective(code, signals) for code in coder.codes(signals, steps)])


def needed(gap: Tensor, tolerance: float = 1e-6) -> float | None:
    """Median number of iterations after which the gap stays below the tolerance; None if more than half never do."""
    steps = gap.shape[0]
    last = steps - (gap <= tolerance).flip(0).int().cumprod(0).sum(0) + 1.0
    found = float(last.median())
    return found if found <= steps else None


def sparse(_: Photos, out: Path, seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    A = nn.functional.normalize(torch.randn(ROWS, ATOMS, generator=generator), dim=0)
    model = SparseModel(A, weights=0.45, curvature=5.0)
    precise = SparseModel(A.double(), model.weights, model.curvature)
    mu, seconds, levels, curves = 0.1, dict[str, float](), dict[str, Any](), {}
    for level in LEVELS:
        began = time.process_time()
        torch.manual_seed(seed)
        joint, alone, lista, unrolled = LearnedALM(precise), LearnedALM(precise), LISTA(model), DLADMM(model)
        teach_metric(joint, precise, level, seed, mu=mu)
        teach_metric(alone, precise, level, seed, mu=0.0)
        for layers in (lista, unrolled):
            teach_layers(layers, model, level, seed)
        seconds[str(level[0])] = round(time.process_time() - began)
        unrolled = copy.deepcopy(unrolled).double()
        unrolled.dictionary = precise.dictionary
        coders: dict[str, tuple[Coder, int]] = {
            "ISTA": (ISTA(precise), 5000),
            "FISTA": (ISTA(precise, accelerated=True), 2000),
            "LADMM": (LADMM(precise, 0.5), 2000),
            "preconditioned by hand": (LearnedALM(precise), 1000),
            "the same, unrolled (mu = 0)": (alone, 1000),
            "BMO": (Relaxed(joint, mu), 1000),
            "LISTA": (copy.deepcopy(lista).double(), 15),
            "D-LADMM": (unrolled, 15),
        }
        signals = bernoulli_gaussian(precise.dictionary, *level, 16, 7 + seed)
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
    if seed == 0:
        plot_gaps(curves, out.with_name("paper_c_sparse.png"))
    return {"levels": levels, "training_seconds": seconds, "mu": mu}


def shown(coder: Coder, dictionary: Tensor, observed: Tensor, steps: int) -> Iterator[Tensor]:
    """The picture after each iteration of any coder, patch by patch, as `PatchCoding` has it."""
    side = math.isqrt(len(dictionary))
    rows = patches_of(observed, side)
    middle = rows.median(1, keepdim=True).values
    for code in coder.codes(rows - middle, steps):
        yield joined(code @ dictionary.mT + middle, side, tuple(observed.shape))


def learned_dictionary(rows: Tensor, atoms: int, seed: int) -> Tensor:
    """A dictionary `(m, atoms)` with unit columns for the rows `(N, m)`, by scikit-learn (Mairal et al. 2010)."""
    from sklearn.decomposition import MiniBatchDictionaryLearning

    learner = MiniBatchDictionaryLearning(
        atoms, alpha=0.1, max_iter=1, batch_size=256, fit_algorithm="cd", random_state=seed
    )
    found = torch.from_numpy(learner.fit(rows.numpy()).components_).to(rows).mT
    return nn.functional.normalize(found, dim=0)


def patches(material: Photos, out: Path, seed: int) -> dict[str, Any]:
    began = time.process_time()
    side, degrade = 8, SaltAndPepper()
    clean_crops = SyntheticCrops(CropCache(grey(material.train)), degrade, 4 * side)
    draws = Batches(clean_crops, 2, seed=seed, ahead=False)
    rows = torch.cat([patches_of(draws(n).clean, side) for n in range(60)])
    A = learned_dictionary(rows - rows.mean(1, keepdim=True), 128, seed)
    print("patches: dictionary", round(time.process_time() - began), "s", flush=True)

    pictures = [p[:, : p.shape[1] // side * side, : p.shape[2] // side * side] for p in grey(material.test)[:2]]
    tests = [
        degrade(p[None].float() / 255, torch.Generator().manual_seed(9 * seed + i)) for i, p in enumerate(pictures)
    ]
    held = draws(10_000)

    def scores(coder: Coder, marks: tuple[int, ...]) -> dict[str, float]:
        found: dict[int, list[float]] = {k: [] for k in marks}
        with torch.no_grad():
            for sample in tests:
                for k, image in enumerate(shown(coder, A, sample.observed, max(marks)), 1):
                    if k in found:
                        found[k].append(score(image, sample.clean))
        return {str(k): round(sum(v) / len(v), 2) for k, v in found.items() if v}

    def by_hand(make: Callable[[SparseModel], Coder], curvature: float) -> tuple[Coder, float]:
        """The best of four weights on a few training crops."""
        best: tuple[float, Coder, float] | None = None
        for weight in (0.2, 0.4, 0.8, 1.6):
            coder = make(SparseModel(A, weight, curvature))
            *_, image = shown(coder, A, held.observed, 150)
            value = round(score(image, held.clean), 3)
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
    model = SparseModel(A, chosen["LADMM"])
    torch.manual_seed(seed)
    for name, family in (("LISTA", LISTA), ("D-LADMM", DLADMM)):
        tried = []
        for rate in (1e-4, 1e-3):
            net = family(model)
            optimizer = torch.optim.Adam(net.parameters(), rate)
            for step in range(100):
                sample = draws(step)
                *_, image = shown(net, A, sample.observed, 15)
                optimizer.zero_grad()
                losses.l2(image, sample.clean).backward()
                optimizer.step()
            with torch.no_grad():
                *_, image = shown(net, A, held.observed, 15)
            tried.append((round(score(image, held.clean), 3), rate, net))
        best = max(tried, key=lambda t: t[0])
        table[name], chosen[f"learning rate of {name}"] = scores(best[2], marks), best[1]
        print("patches:", name, table[name], round(time.process_time() - began), "s", flush=True)
    facts: dict[str, float] = {}
    for name, mu in (("BMO", MU), ("the same, unrolled (mu = 0)", 0.0)):
        restorer = PatchCoding(LearnedALM(model, tune_weights=True))
        log = trained(restorer, draws, steps=100, depth=15, mu=mu, rate=0.02)
        table[name] = scores(restorer.coder, beyond)
        facts[name] = share_left(log)
        print("patches:", name, table[name], round(time.process_time() - began), "s", flush=True)
    untouched = sum(score(s.observed, s.clean) for s in tests) / len(tests)
    return {
        "psnr": table,
        "untouched": round(untouched, 2),
        "chosen_on_training_crops": chosen,
        "training": facts,
        "pictures": len(tests),
    }


def plot_gaps(curves: dict[float, dict[str, list[float]]], path: Path) -> None:
    drawing, axes = figure(len(curves))
    panels = axes if len(curves) > 1 else [axes]
    for axis, (share, found) in zip(panels, curves.items(), strict=True):
        for name, gap in found.items():
            axis.loglog(range(1, len(gap) + 1), gap, label=name)
        axis.axhline(1e-6, color="grey", linewidth=0.8)
        axis.set(title=f"p = {share}", xlabel="iterations", ylabel="relative gap", ylim=(1e-10, 3))
    panels[0].legend(fontsize="x-small")
    drawing.savefig(path, dpi=90)


def sparse_table(facts: dict[str, Any]) -> str:
    """Means over seeds; a method that needs more iterations than it was given for one of them says so."""
    first = facts["seeds"]["0"]["sparse"]["levels"]
    body = []
    for name in next(iter(first.values())):
        line = [name]
        for level in first:
            rows = [found["sparse"]["levels"][level][name] for found in facts["seeds"].values()]
            gaps, counts = [row["gap_at_5_10_15"][2] for row in rows], [row["iterations"] for row in rows]
            tried = rows[0]["tried"]
            never = f"> {tried:,}" if tried > 15 else "never"
            line += [mean_and_half(gaps, ".1e"), never if None in counts else mean_and_half(counts, ",.0f")]
        body.append(line)
    return table(["", *(f"p = {p}, {what}" for p in first for what in ("gap at 15", "iterations to 1e-6"))], body)


def patches_table(facts: dict[str, Any]) -> str:
    depths = ["5", "10", "15", "150"]
    body = [["untouched", mean_and_half(of_seeds(facts, "patches", "untouched")), "", "", ""]]
    for name, line in facts["seeds"]["0"]["patches"]["psnr"].items():
        body.append(
            [name, *(mean_and_half(of_seeds(facts, "patches", "psnr", name, k)) if k in line else "–" for k in depths)]
        )
    return table(["iterations", *depths], body)
