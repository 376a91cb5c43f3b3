"""What is trained for K steps and run for many more: certified nets keep converging, unconstrained ones need not."""

import torch
import torch.nn.functional as F

from twofold.nets.fourier import DataProx, convolve, psf2otf
from twofold.nets.lipschitz import circular_conv_norm
from twofold.solve import Compose, KrasnoselskiiMann, UnrolledAdjoint, fixed_point, iterate

SIZE, DEPTH = 12, 4


def trained(*, certified):
    """A deconvolution scheme, data prox then net, whose net learned to restore 8 pictures in DEPTH steps."""
    generator = torch.Generator().manual_seed(0)
    clean = F.avg_pool2d(torch.rand(8, 1, SIZE + 4, SIZE + 4, generator=generator), 5, stride=1)
    kernel = torch.full((1, 1, 3, 3), 1 / 9)
    observed = convolve(clean, psf2otf(kernel, (SIZE, SIZE)))
    observed = observed + 0.02 * torch.randn(observed.shape, generator=generator)
    raw = [(0.3 * torch.randn(o, i, 3, 3, generator=generator)).requires_grad_() for o, i in ((6, 1), (1, 6))]

    def operator():
        first, last = (w / circular_conv_norm(w, SIZE).clamp_min(1) if certified else w for w in raw)
        circular = lambda u, w: F.conv2d(F.pad(u, (1, 1, 1, 1), mode="circular"), w)  # noqa: E731
        return Compose((DataProx(observed, kernel, 1.0), lambda u: circular(circular(u, first).relu(), last)))

    optimizer = torch.optim.Adam(raw, 0.02)
    for _ in range(60):
        optimizer.zero_grad()
        solver = KrasnoselskiiMann(1.0, DEPTH, 0.0)
        value = fixed_point(operator(), torch.zeros_like(observed), solver=solver, adjoint=UnrolledAdjoint()).value
        loss = (value - clean).square().mean()
        loss.backward()
        optimizer.step()
    return operator(), observed, loss.item()


def residuals(operator, start):
    with torch.no_grad():
        return iterate(operator, torch.zeros_like(start), solver=KrasnoselskiiMann(1.0, 40 * DEPTH, 0.0)).history


def test_a_certified_scheme_converges_far_beyond_the_depth_it_was_trained_for():
    operator, observed, loss = trained(certified=True)
    history = residuals(operator, observed)
    assert loss < 0.05
    assert (history[10 * DEPTH] < 0.05 * history[DEPTH]).all()
    assert (history.diff(dim=0) <= 1e-5).all()


def test_an_unconstrained_scheme_diverges_beyond_that_depth():
    operator, observed, loss = trained(certified=False)
    history = residuals(operator, observed)
    assert loss < 0.05
    assert not (history[-1] < 10 * history[DEPTH]).any()  # grown tenfold, or no longer finite
