"""A solver that learns its own metric: sparse codes of signals with outliers, in a fraction of ISTA's iterations.

    python examples/sparse_coding.py [--steps 150]

The problem is min Σ|Zᵢ|·0.45 + Huber(X − A Z). Learning changes how fast the solution is approached, not the solution:
whatever the coder was trained on, after enough iterations its answer is that of the model. Two minutes on one core.
"""

import argparse
import copy

import torch

from twofold.restorers.sparse_coding import LearnedALM, SparseModel
from twofold.solve import Harmonic, ProximalGradient, aggregated_step

DEPTH = 15
parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=150)
steps = parser.parse_args().steps


def signals(dictionary: torch.Tensor, count: int, seed: int) -> torch.Tensor:
    """A Z + E with one entry in ten of Z and of E not zero."""
    generator = torch.Generator().manual_seed(seed)
    m, n = dictionary.shape
    both = torch.randn(count, n + m, generator=generator) * (torch.rand(count, n + m, generator=generator) < 0.1)
    both = both.to(dictionary)
    return both[:, :n] @ dictionary.mT + both[:, n:]


generator = torch.Generator().manual_seed(0)
model = SparseModel(torch.nn.functional.normalize(torch.randn(64, 128, generator=generator), dim=0), curvature=5.0)

# Train: the upper loss is the objective after 15 steps, and the leader's gradient enters every step.
coder = LearnedALM(model, whitened=False)
optimizer = torch.optim.Adam([p for p in coder.parameters() if p.requires_grad], 0.05)
for step in range(steps):
    x = signals(model.dictionary, 16, seed=step)
    T, u = coder.operator(x), coder.start(x)
    leads = Harmonic(float(T.metric.floor) / (model.curvature * float(coder.spectrum.max())))
    for k in range(DEPTH):
        u = aggregated_step(T, lambda v, x=x: model.objective(coder.code(v), x).sum(), u, mu=0.1, step=leads(k))
    loss = model.objective(coder.code(u), x).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 30 == 0:
        print(f"step {step:3}: objective after {DEPTH} steps {loss.item():.4f}")

# Test: how many iterations until the objective is within one millionth of the best, and stays there?
exact = SparseModel(model.dictionary.double(), curvature=5.0)
x = signals(exact.dictionary, 20, seed=10_000)
smoothness = exact.curvature * torch.linalg.matrix_norm(exact.dictionary, 2) ** 2
ista = ProximalGradient(lambda z: -exact.descent(z, x), smoothness, prox=exact.prox_code)


def iterated(step, state, read, count):
    """The objective of each sample after each of `count` steps."""
    found = []
    for _ in range(count):
        state = step(state)
        found.append(exact.objective(read(state), x))
    return torch.stack(found)


with torch.no_grad():
    curves = {"ISTA": iterated(ista, x.new_zeros(len(x), 128), lambda z: z, 4000)}
    for name, made in (
        ("before training", LearnedALM(exact, whitened=False)),
        ("learned", copy.deepcopy(coder).double()),
    ):
        curves[name] = iterated(made.operator(x), made.start(x), made.code, 800)
best = torch.stack([curve.min(0).values for curve in curves.values()]).min(0).values
for name, curve in curves.items():
    good = (curve - best) <= 1e-6 * best
    needed = len(good) - good.flip(0).int().cumprod(0).sum(0) + 1
    print(f"{name:16} {int(needed.median()):5} iterations")
