"""One step of the architecture search against a plain DARTS-style step on the same supernet: time, memory, gradients.

    python benchmarks/search.py --json benchmarks/results/search.json

The reference evaluates every candidate and adds them up, in float32 and torch's default layout; its steps are those
of the published programs (Liu, Simonyan and Yang 2019; Zhu et al. 2022). One thread; times are CPU seconds, the best
of interleaved rounds. Memory is what a process of its own holds at its peak above what it held before the step.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from harness import RETURN_MEMORY_AT_ONCE, cpu_seconds, fresh_process, parser, peak_growth, write
from twofold.losses import PLAIN, Loss, l1, ssim
from twofold.nets.hadamard import HadamardNet
from twofold.nets.judge import Judge, clear_loss
from twofold.solve import (
    Bilevel,
    CentralDifference,
    Cross,
    FirstOrder,
    ForwardDifference,
    OneStepUnrolled,
    Strategy,
    hypergradient,
)
from twofold.space.loss_space import LossSpace, searchable
from twofold.space.supernet import Mixture, architecture, mixtures, network_weights

STEP = 5e-4  # ξ, the learning rate of the published search
RADIUS = 0.01  # of the central difference, as published

Pair = tuple[Tensor, Tensor]


def restoration(restored: Tensor, clean: Tensor) -> Tensor:
    """The loss of both levels: cheap, so that the network's share of a step is seen."""
    return l1(restored, clean) + 0.1 * ssim(restored, clean)


class PlainMixture(Mixture):
    """The reference: one candidate after the other."""

    def forward(self, features: Tensor) -> Tensor:
        return sum(
            w * candidate(features) for w, candidate in zip(self.weights(), self.candidates.values(), strict=True)
        )


KINDS = ("plain", "merged", "light", "checkpointed")  # the reference, and ours with more and more computed twice


def supernet(kind: str) -> HadamardNet:
    torch.manual_seed(0)
    cell = mixtures(torch.Generator().manual_seed(0), light=kind == "light")
    net = HadamardNet(cell, checkpointed=kind == "checkpointed")
    if kind == "plain":
        for module in net.modules():
            if isinstance(module, Mixture):
                module.__class__ = PlainMixture
    return net


def plain_first_order(net: nn.Module, train: Pair, validation: Pair) -> list[Tensor]:
    net.zero_grad()
    restoration(net(validation[0]), validation[1]).backward()
    return [p.grad for p in architecture(net).values()]


def plain_one_step(net: nn.Module, train: Pair, validation: Pair) -> list[Tensor]:
    """Second-order DARTS: a virtual step on a copy, then two gradients at shifted weights."""
    alpha, omega = list(architecture(net).values()), list(network_weights(net).values())
    gradient = torch.autograd.grad(restoration(net(train[0]), train[1]), omega)
    virtual = copy.deepcopy(net)
    with torch.no_grad():
        for p, g in zip(network_weights(virtual).values(), gradient, strict=True):
            p -= STEP * g
    virtual.zero_grad()
    restoration(virtual(validation[0]), validation[1]).backward()
    direct = [p.grad for p in architecture(virtual).values()]
    v = [p.grad for p in network_weights(virtual).values()]
    e = RADIUS / torch.cat([g.flatten() for g in v]).norm()

    def shifted(by: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            for p, g in zip(omega, v, strict=True):
                p += by * g
        return torch.autograd.grad(restoration(net(train[0]), train[1]), alpha)

    ahead, behind = shifted(e), shifted(-2 * e)
    with torch.no_grad():
        for p, g in zip(omega, v, strict=True):
            p += e * g
    return [d - STEP * (a - b) / (2 * e) for d, a, b in zip(direct, ahead, behind, strict=True)]


def ours(strategy: Strategy) -> Callable[[nn.Module, Pair, Pair], list[Tensor]]:
    def step(net: nn.Module, train: Pair, validation: Pair) -> list[Tensor]:
        def on(pair: Pair) -> Callable[..., Tensor]:
            observed = pair[0].contiguous(memory_format=torch.channels_last)
            return lambda a, w: restoration(torch.func.functional_call(net, {**a, **w}, (observed,)), pair[1])

        problem = Bilevel(upper=on(validation), lower=on(train))
        found = hypergradient(problem, dict(architecture(net)), dict(network_weights(net)), strategy=strategy)
        return list(found.gradient.values())

    return step


STEPS = {  # name: reference, ours
    "first_order": (plain_first_order, ours(FirstOrder())),
    "one_step_central": (plain_one_step, ours(OneStepUnrolled(STEP, CentralDifference(RADIUS)))),
    "one_step_forward": (plain_one_step, ours(OneStepUnrolled(STEP, ForwardDifference(RADIUS)))),
}


def pictures(size: int, batch: int, dtype: torch.dtype = torch.float32) -> tuple[Pair, Pair]:
    generator = torch.Generator().manual_seed(1)
    clean, dark = torch.rand(2, 2, batch, 3, size, size, generator=generator).to(dtype)
    return (dark[0] * 0.3, clean[0]), (dark[1] * 0.3, clean[1])


def apart(a: list[Tensor], b: list[Tensor]) -> float:
    """Relative difference of two gradients in the Euclidean norm."""
    a_, b_ = (torch.cat([t.flatten() for t in ts]) for ts in (a, b))
    return float((a_ - b_).norm() / b_.norm())


def gradient_differences() -> dict[str, float]:
    """In float64 the algorithms are compared; in float32 mostly rounding, which flips ReLUs here and there."""
    found = {}
    for dtype in (torch.float64, torch.float32):
        plain, merged = supernet("plain").to(dtype), supernet("merged").to(dtype)
        data = pictures(32, 1, dtype)
        for name, (reference, step) in STEPS.items():
            found[f"{name}/{dtype}".replace("torch.", "")] = apart(step(merged, *data), reference(plain, *data))
    laid = [(x.contiguous(memory_format=torch.channels_last), y) for x, y in data]
    found["reference_against_itself_in_another_layout/float32"] = apart(
        plain_first_order(plain, *laid), plain_first_order(plain, *data)
    )
    return found


def peak_bytes(step: str, kind: str, size: int, batch: int) -> int:
    """Peak of the resident memory of a fresh process during one step, above what was resident before."""
    arguments = ["--peak-of", step, "--kind", kind, "--size", str(size), "--batch", str(batch)]
    return int(fresh_process(__file__, *arguments, environment=RETURN_MEMORY_AT_ONCE))


def measure_peak(step: str, kind: str, size: int, batch: int) -> int:
    net, data = supernet(kind), pictures(size, batch)
    chosen = STEPS[step][0 if kind == "plain" else 1]
    chosen(net, *pictures(16, 1))  # what libraries keep for good
    net.zero_grad()
    return peak_growth(lambda: chosen(net, *data))


def beta_step(size: int, batch: int) -> dict[str, Callable[[], object]]:
    """A step for the losses' weights, and a plain training step of the same network with the same losses."""
    torch.manual_seed(0)
    net, judge = supernet("merged"), Judge().eval().requires_grad_(False)
    space = LossSpace(searchable(PLAIN))
    train, validation = pictures(size, batch)
    alpha = {name: p.detach() for name, p in architecture(net).items()}
    omega = {name: p.detach() for name, p in network_weights(net).items()}
    beta = {name: p.detach() for name, p in space.named_parameters()}

    def restored(w: dict[str, Tensor], pair: Pair) -> Tensor:
        observed = pair[0].contiguous(memory_format=torch.channels_last)
        return torch.func.functional_call(net, {**alpha, **w}, (observed,))

    problem = Bilevel(
        upper=lambda b, w: clear_loss(judge(restored(w, validation))),
        lower=lambda b, w: torch.func.functional_call(space, b, (restored(w, train), train[1])),
    )

    def step(cross: Cross) -> Callable[[], object]:
        return lambda: hypergradient(problem, beta, omega, strategy=OneStepUnrolled(STEP, cross))

    def plain_training() -> object:
        w = {name: p.requires_grad_() for name, p in omega.items()}
        loss: Loss = space
        gradients = torch.autograd.grad(loss(restored(w, train), train[1]), list(w.values()))
        return [p.detach() - STEP * g for p, g in zip(w.values(), gradients, strict=True)]

    return {
        "beta_step_central": step(CentralDifference(RADIUS)),
        "beta_step_forward": step(ForwardDifference(RADIUS)),
        "training_step": plain_training,
    }


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--size", type=int, default=128)
    options.add_argument("--batch", type=int, default=4)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--peak-of", choices=STEPS, help=argparse.SUPPRESS)
    options.add_argument("--kind", choices=KINDS, default="plain", help=argparse.SUPPRESS)
    a = options.parse_args()
    torch.set_num_threads(1)
    if a.peak_of:
        print(measure_peak(a.peak_of, a.kind, a.size, a.batch))
        return

    data = pictures(a.size, a.batch)
    nets = {kind: supernet(kind) for kind in KINDS}
    steps: dict[str, Callable[[], object]] = {}
    for name, (reference, step) in STEPS.items():
        for kind in KINDS:
            steps[f"{name}/{kind}"] = partial(reference if kind == "plain" else step, nets[kind], *data)
    seconds = cpu_seconds({**steps, **beta_step(a.size, a.batch)}, a.rounds)
    peaks = {f"{name}/{kind}": peak_bytes(name, kind, a.size, a.batch) for name in STEPS for kind in KINDS}
    ratios = {
        f"{name}/{kind}": {
            "time": seconds[f"{name}/{kind}"] / seconds[f"{name}/plain"],
            "memory": peaks[f"{name}/{kind}"] / peaks[f"{name}/plain"],
        }
        for name in STEPS
        for kind in KINDS[1:]
    }
    differences = gradient_differences()
    result = {
        "summary": {
            "time_ratio": ratios["one_step_central/light"]["time"],
            "memory_ratio": ratios["one_step_central/light"]["memory"],
            "gradient_difference": differences["one_step_central/float32"],
            "beta_step_ratio": seconds["beta_step_central"] / seconds["training_step"],
        },
        "ratios": ratios,
        "gradient_differences": differences,
        "cpu_seconds": seconds,
        "peak_bytes": peaks,
        "pictures": {"size": a.size, "batch": a.batch},
    }
    print(json.dumps(result, indent=1))
    write(a.json, result)


if __name__ == "__main__":
    main()
