import pytest
import torch

from twofold.contracts import ImageError
from twofold.nets.griddehaze import GridDehazeNet

SMALL = {"width": 4, "columns": 4, "growth": 4, "dense": 2}


def count(net: torch.nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def reach(net: GridDehazeNet, size: int) -> int:
    """How far from a pixel its farthest influence lies, by differentiating with weights that cannot cancel."""
    net = net.double()
    with torch.no_grad():
        for p in net.parameters():
            p.abs_()
    farthest = 0
    for offset in range(net.multiple):
        x, middle = torch.rand(1, 3, size, size, dtype=torch.float64, requires_grad=True), size // 2 + offset
        (gradient,) = torch.autograd.grad(net(x)[0, :, middle, middle].sum(), x)
        farthest = max(farthest, int((gradient[0].abs().sum(0).nonzero() - middle).abs().max()))
    return farthest


def test_it_has_the_published_number_of_parameters() -> None:
    assert count(GridDehazeNet()) == 958_051
    assert count(GridDehazeNet(guidance=1)) == 958_195
    assert count(GridDehazeNet(width=8, columns=4, growth=8, dense=3)) == 121_115


@pytest.mark.parametrize("size", [(1, 1), (5, 9), (16, 12), (37, 51)])
def test_any_size_comes_back_as_it_went_in_and_is_not_negative(size: tuple[int, int]) -> None:
    restored = GridDehazeNet(**SMALL, guidance=1)(torch.rand(2, 3, *size), torch.rand(2, 1, *size))
    assert restored.shape == (2, 3, *size)
    assert restored.min() >= 0


@pytest.mark.parametrize(("rows", "columns", "dense"), [(1, 2, 1), (2, 4, 2), (3, 2, 1), (3, 4, 1)])
def test_the_halo_is_the_radius_of_the_receptive_field(rows: int, columns: int, dense: int) -> None:
    net = GridDehazeNet(rows=rows, columns=columns, dense=dense, width=2, growth=2)
    assert reach(net, 4 * net.halo) == net.halo


def test_guidance_is_used_and_must_be_there_when_the_network_is_built_for_it() -> None:
    net, observed = GridDehazeNet(**SMALL, guidance=1), torch.rand(1, 3, 16, 16)
    assert not torch.allclose(net(observed, torch.zeros(1, 1, 16, 16)), net(observed, torch.ones(1, 1, 16, 16)))
    with pytest.raises(ImageError, match="for 1 channels, got none"):
        net(observed)
    with pytest.raises(ImageError, match="for 0 channels, got some"):
        GridDehazeNet(**SMALL)(observed, torch.zeros(1, 1, 16, 16))


def test_every_parameter_that_takes_part_gets_a_gradient() -> None:
    net = GridDehazeNet(**SMALL)
    net(torch.rand(1, 3, 24, 24)).sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())


def test_it_learns_one_picture() -> None:
    torch.manual_seed(0)
    clean = torch.nn.functional.interpolate(torch.rand(1, 3, 6, 6), size=(32, 32), mode="bilinear")
    observed = 0.4 * clean + 0.6 * 0.9
    net = GridDehazeNet(**SMALL)
    optimiser = torch.optim.Adam(net.parameters(), 5e-3)
    for _ in range(150):
        loss = (net(observed) - clean).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert -10 * torch.log10(loss) > 28
    assert -10 * torch.log10((observed - clean).square().mean()) < 12
