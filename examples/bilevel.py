"""Learn how much each feature of a ridge regression should be shrunk, from held-out data: a small bilevel problem."""

from itertools import islice

import torch

from twofold.solve import Bilevel, ConjugateGradient, GradientDescent, rounds

torch.manual_seed(0)
truth = torch.tensor([2.0, -1.0, 0.5] + [0.0] * 17)  # three features matter, seventeen do not
x_train, x_held = torch.randn(30, 20), torch.randn(200, 20)
y_train, y_held = (x @ truth + 0.5 * torch.randn(len(x)) for x in (x_train, x_held))

problem = Bilevel(  # w: one log weight decay a feature; u: the regression's coefficients
    lower=lambda w, u: ((x_train @ u - y_train) ** 2).mean() + (w.exp() * u**2).sum(),
    upper=lambda w, u: ((x_held @ u - y_held) ** 2).mean(),
)
strategy = ConjugateGradient(steps=100, dynamics=GradientDescent(0.05))  # or Unrolled(100, GradientDescent(0.05))
adam = lambda w: torch.optim.Adam(w, 0.1)  # noqa: E731
capped = lambda w: w.clamp(max=2.0)  # noqa: E731   curvature grows with exp(w): keep it below 2 / 0.05
w = torch.full((20,), -3.0)
for r in islice(rounds(problem, w, torch.zeros(20), strategy=strategy, optimizer=adam, project=capped), 101):
    if r.number % 20 == 0:
        print(f"round {r.number:3d}   held-out error {r.upper_loss:.4f}   ‖hypergradient‖ {r.gradient_norm:.4f}")
shrinkage = r.upper_params.exp()
print(f"shrinkage of the three that matter: {shrinkage[:3].tolist()}; of the others, mean: {shrinkage[3:].mean():.2f}")
