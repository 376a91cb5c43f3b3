"""Bilevel Meta Optimization against plain unrolling where many lower solutions leave something to select.

    python benchmarks/unrolling.py --json benchmarks/results/unrolling.json

1. cleaning: linear regression with twice as many variables as samples, four targets in ten replaced by noise; w holds a
   weight for each sample. Upper loss: 40 clean samples. Measured: error on fresh samples.
2. pixels: deconvolution of one photograph of which a quarter of the pixels is observed; the lower level fits four
   fifths of them, the upper loss sees the others; w scales eight bands of the cosine transform in which u is written.
   Measured: PSNR against the photograph, which no loss has seen.
3. pictures: the certified deconvolution of `paper_c.py`, trained on 8 crops and used on others, where no clean picture
   leads (T alone). Measured: PSNR on held-out crops.

In 1 and 2 the upper loss is known when u is wanted, in 3 in training alone. `refit`: w as learned, u from the samples
of both levels by plain steps: what a separate method would do with the same data. Everything else is equal: K, rounds,
start, optimiser; mu = 0.3 (3: 0.1), and the steps s_k start at half of the theory's bound. Warm: every round starts
where the last one ended.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import torch
from skimage import data as photographs
from torch import Tensor

from harness import half_interval, parser, read, rounded, score, table, write
from paper_c_training import mean_and_half
from twofold import losses
from twofold.contracts import Sample
from twofold.degrade.additive import GaussianNoise
from twofold.degrade.blur import Blur, CameraShake
from twofold.restorers.fixed_point import Deconvolution, RidgeDenoiser
from twofold.solve import (
    Aggregated,
    Bilevel,
    Constant,
    Geometric,
    GradientDescent,
    Harmonic,
    StepSchedule,
    Unrolled,
    aggregated_step,
    lower_solution,
    rounds,
)
from twofold.solve.params import State, detach

DOUBLE = torch.float64


@dataclass(frozen=True)
class Way:
    """schedule: of the leader, given its longest step; None for plain unrolling."""

    schedule: Callable[[float], StepSchedule] | None
    warm: bool


def ways() -> dict[str, Way]:
    leaders: dict[str, Callable[[float], StepSchedule] | None] = {
        "unrolled": None,
        "harmonic": lambda longest: Harmonic(longest),
        "geometric (0.9)": lambda longest: Geometric(longest, rate=0.9),
        "constant": lambda longest: Constant(longest),
    }
    return {
        f"{name}, {start}": Way(leads, start == "warm") for name, leads in leaders.items() for start in ("cold", "warm")
    }


class Task(NamedTuple):
    """problem, refit: with both levels' samples below. upper, lower: starts. smooth: L of both losses in u. score:
    (w, u) → what is measured. steps: K. rounds. rate: of Adam on w."""

    problem: Bilevel
    refit: Bilevel
    upper: Tensor
    lower: Tensor
    smooth: tuple[float, float]
    score: Callable[[Tensor, Tensor], float]
    steps: int
    rounds: int
    rate: float


def solved(task: Task, way: Way) -> dict[str, float]:
    lower, upper = task.smooth
    followers = GradientDescent(1 / lower)
    leads = way.schedule
    dynamics = followers if leads is None else Aggregated(followers, 0.3, leads(0.5 / upper))
    loop = rounds(
        task.problem,
        task.upper,
        task.lower,
        strategy=Unrolled(task.steps, dynamics, graph_bytes=math.inf),
        optimizer=lambda p: torch.optim.Adam(p, task.rate),
        warm_start=way.warm,
    )
    *_, last = islice(loop, task.rounds)
    w, u = last.upper_params, last.lower_params
    assert isinstance(w, Tensor)
    assert isinstance(u, Tensor)
    again = lower_solution(
        task.refit, w, task.lower, dynamics=GradientDescent(1 / (lower + upper)), steps=20 * task.steps
    )
    assert isinstance(again, Tensor)
    return {
        "measured": task.score(w, u),
        "upper_loss": last.upper_loss,
        "lower_loss": float(last.lower_loss or 0.0),
        "refit": task.score(w, again),
    }


def cleaning(seed: int) -> Task:
    generator = torch.Generator().manual_seed(seed)
    many, few = 80, 40
    scale = torch.logspace(0, -1, many, dtype=DOUBLE)
    truth = torch.randn(many, generator=generator, dtype=DOUBLE)

    def draw(count: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(count, many, generator=generator, dtype=DOUBLE) * scale
        return x, x @ truth + 0.1 * torch.randn(count, generator=generator, dtype=DOUBLE)

    (x, y), (xv, yv), (xt, yt) = draw(few), draw(few), draw(1000)
    wrong = torch.rand(few, generator=generator) < 0.4
    y = torch.where(wrong, y.std() * torch.randn(few, generator=generator, dtype=DOUBLE), y)

    def fit(w: Tensor, u: Tensor) -> Tensor:
        return (w.sigmoid() * (x @ u - y).square()).mean() / 2

    def judge(w: Tensor, u: Tensor) -> Tensor:
        return (xv @ u - yv).square().mean() / 2

    smooth = tuple(float(torch.linalg.matrix_norm(z, 2)) ** 2 / few for z in (x, xv))
    both = Bilevel(judge, lambda w, u: fit(w, u) + judge(w, u))
    error = lambda w, u: float((xt @ u - yt).square().mean() / yt.square().mean())  # noqa: E731
    start = torch.zeros(few, dtype=DOUBLE), torch.zeros(many, dtype=DOUBLE)
    return Task(Bilevel(judge, fit), both, *start, (smooth[0], smooth[1]), error, 20, 60, 0.1)


def cosine_matrix(side: int) -> Tensor:
    """The orthonormal cosine transform of `side` samples, a row a frequency."""
    place = (torch.arange(side, dtype=DOUBLE) + 0.5)[None]
    waves = torch.cos(math.pi * place * torch.arange(side, dtype=DOUBLE)[:, None] / side) * (2 / side) ** 0.5
    waves[0] /= 2**0.5
    return waves


def crop(seed: int, side: int) -> Tensor:
    """The crop `(side, side)` of the largest contrast among ten, of a grey photograph of scikit-image, float64."""
    names = ("camera", "chelsea", "coffee", "astronaut", "rocket", "brick", "grass", "cat", "moon", "coins")
    pixels = torch.from_numpy(getattr(photographs, names[seed % len(names)])().copy()).to(DOUBLE) / 255
    grey = pixels if pixels.ndim == 2 else pixels.mean(2)
    generator = torch.Generator().manual_seed(seed)
    places = [[int(torch.randint(size - side, (), generator=generator)) for size in grey.shape] for _ in range(10)]
    return max((grey[y : y + side, x : x + side] for y, x in places), key=lambda part: float(part.std()))


def pixels(seed: int) -> Task:
    side, bands = 32, 8
    generator = torch.Generator().manual_seed(seed)
    clean = crop(seed, side)
    C = cosine_matrix(side)
    index = (torch.arange(side)[:, None] + torch.arange(side)).mul(bands).div(2 * side - 1, rounding_mode="floor")

    def image(w: Tensor, u: Tensor) -> Tensor:
        scales = (w - w.max()).exp()[index]  # at most 1, so that the curvature never grows
        return C.mT @ (scales * u.reshape(side, side)) @ C

    def blurred(x: Tensor) -> Tensor:
        return (x + sum(x.roll(shift, 1) for shift in (-2, -1, 1, 2))) / 5

    observed = blurred(clean) + 0.01 * torch.randn(side, side, generator=generator, dtype=DOUBLE)
    lot = torch.rand(side, side, generator=generator)
    below, above = lot < 0.2, (lot >= 0.2) & (lot < 0.25)

    def loss(mask: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda w, u: (blurred(image(w, u)) - observed)[mask].square().sum() / 2

    fit, judge = loss(below), loss(above)
    psnr = lambda w, u: score(image(w, u)[None, None], clean[None, None])  # noqa: E731
    start = torch.zeros(bands, dtype=DOUBLE), torch.zeros(side * side, dtype=DOUBLE)
    return Task(Bilevel(judge, fit), Bilevel(judge, loss(below | above)), *start, (1.0, 1.0), psnr, 20, 40, 0.1)


def pictures(seed: int, way: Way) -> dict[str, float]:
    """Eight training crops, four to test on, T alone there for ten times the depth."""
    degrade = Blur(CameraShake(size=7, extent=(3.0, 6.0)), GaussianNoise((0.01, 0.02)))

    def sample(number: int) -> Sample:
        return degrade(crop(number, 40)[None, None].float(), torch.Generator().manual_seed(number))

    train, test = [sample(100 * seed + k) for k in range(8)], [sample(100 * seed + 50 + k) for k in range(4)]
    torch.manual_seed(seed)
    restorer = Deconvolution(RidgeDenoiser(filters=12, layers=2), penalty=0.03)
    optimizer = torch.optim.Adam(restorer.parameters(), 1e-2)
    depth, held = 5, dict[int, State]()
    schedule = Constant(0.0) if way.schedule is None else way.schedule(0.5)
    mu = 0.0 if way.schedule is None else 0.1
    for step in range(40):
        k = step % len(train)
        clean = train[k].clean
        problem = restorer.problem(train[k].observed, train[k].kernel)
        u = held.get(k, problem.start) if way.warm else problem.start
        for n in range(depth):
            leader = lambda v: 0.5 * (problem.image(v) - clean).square().sum()  # noqa: B023, E731
            u = aggregated_step(problem.operator, leader, u, mu=mu, step=schedule(n), project=problem.project)
        held[k] = detach(u)
        optimizer.zero_grad()
        losses.l2(problem.image(u), clean).backward()
        optimizer.step()
    found = []
    with torch.no_grad():
        for one in test:
            problem = restorer.problem(one.observed, one.kernel)
            u = problem.start
            for _ in range(10 * depth):
                u = problem.operator(u)
            found.append(score(problem.image(u), one.clean))
    return {"measured": sum(found) / len(found)}


CASES: dict[str, Callable[[int, Way], dict[str, float]]] = {
    "cleaning": lambda seed, way: solved(cleaning(seed), way),
    "pixels": lambda seed, way: solved(pixels(seed), way),
    "pictures": pictures,
}


def unrolling_table(result: dict[str, Any]) -> str:
    """Means ± half of Student's 95 % interval over seeds; and the difference to the same start, unrolled."""
    cases = result["cases"]
    body = []
    for way in ways():
        line = [way]
        for name, found in cases.items():
            values = [facts["measured"] for facts in found[way]]
            base = [facts["measured"] for facts in found["unrolled, " + way.split(", ")[-1]]]
            line.append(mean_and_half(values, ".3f" if name == "cleaning" else ".2f"))
            gains = [b - a for a, b in zip(base, values, strict=True)]
            line.append("" if "unrolled" in way else mean_and_half(gains, "+.3f" if name == "cleaning" else "+.2f"))
            if "refit" in found[way][0]:
                line.append(mean_and_half([f["refit"] for f in found[way]], ".3f" if name == "cleaning" else ".2f"))
        body.append(line)
    head = ["in training"]
    for name, unit in (("cleaning", "relative error"), ("pixels", "PSNR"), ("pictures", "PSNR")):
        head += [f"{name}: {unit}", "against unrolling", *(["refit"] if name != "pictures" else [])]
    return table(head, body)


def tables(result: dict[str, Any]) -> dict[str, str]:
    return {"unrolling": unrolling_table(result)}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--seeds", type=int, default=5)
    options.add_argument("--only", nargs="+", choices=CASES, help="renew these; else those that the file lacks")
    arguments = options.parse_args()
    torch.set_num_threads(1)
    result = read(arguments.json)
    cases: dict[str, Any] = result.setdefault("cases", {})
    for name in arguments.only or [name for name in CASES if name not in cases]:
        case = CASES[name]
        cases[name] = {
            way: [rounded(case(seed, how)) for seed in range(arguments.seeds)] for way, how in ways().items()
        }
        write(arguments.json, {**result, "seeds": arguments.seeds})
        for way, found in cases[name].items():
            values = [facts["measured"] for facts in found]
            print(name, way, round(sum(values) / len(values), 4), "±", round(half_interval(values), 4), flush=True)


if __name__ == "__main__":
    main()
