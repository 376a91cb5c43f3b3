"""The bilevel problems on which hypergradients are timed, and the unrolled gradient of each library."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from twofold.solve import Bilevel, GradientDescent, Strategy, Unrolled, as_function, hypergradient


class Case(NamedTuple):
    """A bilevel problem with its starts; rate: the step of the lower level."""

    problem: Bilevel
    upper: Tensor
    lower: dict[str, Tensor]
    rate: float


def weight_decay() -> Case:
    """One weight decay a feature, chosen on validation data: logistic regression, 1,000 samples, 100 features."""
    torch.manual_seed(0)
    features, samples = 100, 1000
    truth = torch.randn(features) * (torch.arange(features) < 20)
    x, xv = torch.randn(samples, features), torch.randn(samples // 4, features)
    y, yv = ((z @ truth + 2 * torch.randn(len(z)) > 0).float() for z in (x, xv))

    def fit(w: Tensor, u: dict[str, Tensor]) -> Tensor:
        return F.binary_cross_entropy_with_logits(x @ u["weight"], y) + (w.exp() * u["weight"] ** 2).sum() / 2

    def validate(w: Tensor, u: dict[str, Tensor]) -> Tensor:
        return F.binary_cross_entropy_with_logits(xv @ u["weight"], yv)

    return Case(Bilevel(validate, fit), torch.full((features,), -3.0), {"weight": torch.zeros(features)}, 0.5)


def reweighting() -> Case:
    """One weight a training sample, half of the labels wrong: a small convolutional net, 32 pictures of 28×28."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.Softplus(),
        nn.Conv2d(16, 32, 3, padding=1, stride=2),
        nn.Softplus(),
        nn.Conv2d(32, 32, 3, padding=1, stride=2),
        nn.Softplus(),
        nn.Flatten(),
        nn.Linear(32 * 49, 4),
    )
    function, lower = as_function(net)
    x, t = bars(32)
    xv, tv = bars(32)
    t = torch.where(torch.rand(32) < 0.5, torch.randint(0, 4, (32,)), t)

    def fit(w: Tensor, u: dict[str, Tensor]) -> Tensor:
        return (F.cross_entropy(function(u, x), t, reduction="none") * w.sigmoid()).mean()

    def validate(w: Tensor, u: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(function(u, xv), tv)

    return Case(Bilevel(validate, fit), torch.zeros(32), lower, 0.05)


class MixedNet(nn.Module):
    """Two nodes, each a softmax mixture of four operations, as DARTS relaxes them; the logits come from outside."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.threes = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.ones = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in range(2))
        self.head = nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, x: Tensor, logits: Tensor) -> Tensor:
        h = self.stem(x)
        for three, one, mixture in zip(self.threes, self.ones, logits.softmax(1), strict=True):
            blurred = F.avg_pool2d(h, 3, stride=1, padding=1)
            h = mixture[0] * three(h).tanh() + mixture[1] * one(h).tanh() + mixture[2] * blurred + mixture[3] * h
        return x + self.head(h)


def mixed_operation() -> Case:
    """Architecture weights of a small denoiser, chosen on validation pictures: 16 crops of 24×24."""
    torch.manual_seed(0)
    net = MixedNet()
    function, lower = as_function(net)
    clean, held = (F.avg_pool2d(torch.rand(16, 1, 28, 28), 5, stride=1) for _ in range(2))
    noisy, noisy_held = (z + 0.1 * torch.randn_like(z) for z in (clean, held))

    def fit(w: Tensor, u: dict[str, Tensor]) -> Tensor:
        return F.mse_loss(function(u, noisy, w), clean)

    def validate(w: Tensor, u: dict[str, Tensor]) -> Tensor:
        return F.mse_loss(function(u, noisy_held, w), held)

    return Case(Bilevel(validate, fit), torch.zeros(2, 4), lower, 0.1)


def bars(count: int) -> tuple[Tensor, Tensor]:
    """Bars in four directions under noise, and which."""
    kind = torch.randint(0, 4, (count,))
    y, x = torch.meshgrid(torch.arange(28.0), torch.arange(28.0), indexing="ij")
    waves = torch.stack([(x * a + y * b).sin() for a, b in ((1, 0), (0, 1), (0.7, 0.7), (0.7, -0.7))])
    return waves[kind][:, None] + 0.5 * torch.randn(count, 1, 28, 28), kind


CASES = {"weight decay": weight_decay, "reweighting": reweighting, "mixed operation": mixed_operation}


def differentiate(case: Case, strategy: Strategy) -> Tensor:
    return hypergradient(case.problem, case.upper, case.lower, strategy=strategy).gradient


def ours(case: Case, steps: int, *, keep_every: int = 1) -> Tensor:
    return differentiate(case, Unrolled(steps, GradientDescent(case.rate), keep_every))


def ours_sparse(case: Case, steps: int) -> Tensor:
    return ours(case, steps, keep_every=math.isqrt(steps))


def ours_together(case: Case, steps: int) -> Tensor:
    return differentiate(case, Unrolled(steps, GradientDescent(case.rate), together=4))


def ours_kept(case: Case, steps: int) -> Tensor:
    return differentiate(case, Unrolled(steps, GradientDescent(case.rate), graph_bytes=math.inf))


class ParameterHolder(nn.Module):
    """The lower parameters as a module's, for libraries that ask for one; the loss is called through `forward`."""

    def __init__(self, parameters: dict[str, Tensor]) -> None:
        super().__init__()
        self.names = list(parameters)
        self.values = nn.ParameterList(nn.Parameter(p.clone()) for p in parameters.values())

    def forward(self, loss: Callable[[Tensor, dict[str, Tensor]], Tensor], w: Tensor) -> Tensor:
        return loss(w, dict(zip(self.names, self.values, strict=True)))


def torchopt_unrolled(case: Case, steps: int) -> Tensor:
    import torchopt

    w, holder = case.upper.clone().requires_grad_(), ParameterHolder(case.lower)
    optimizer = torchopt.MetaSGD(holder, lr=case.rate)
    for _ in range(steps):
        optimizer.step(holder(case.problem.lower, w))
    return torch.autograd.grad(holder(case.problem.upper, w), w)[0]


def higher_unrolled(case: Case, steps: int) -> Tensor:
    import higher

    w, holder = case.upper.clone().requires_grad_(), ParameterHolder(case.lower)
    with higher.innerloop_ctx(holder, torch.optim.SGD(holder.parameters(), case.rate)) as (fast, optimizer):
        for _ in range(steps):
            optimizer.step(fast(case.problem.lower, w))
        return torch.autograd.grad(fast(case.problem.upper, w), w)[0]


UNROLLED: dict[str, Callable[[Case, int], Tensor]] = {
    "twofold": ours,
    "twofold, √T states": ours_sparse,
    "twofold, 4 together": ours_together,
    "twofold, graphs kept": ours_kept,
    "torchopt": torchopt_unrolled,
    "higher": higher_unrolled,
}
