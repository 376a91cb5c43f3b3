import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from twofold.nets.denoiser import Denoiser, NonExpansiveDenoiser
from twofold.nets.lipschitz import circular_conv_norm


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def stretch(net, x: Tensor, *, steps: int = 40) -> float:
    """Largest ‖D(x + d) − D(x)‖ / ‖d‖ that power iteration on small differences finds: d ← Dᵀ D d, linearised at x."""
    step = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    step = 1e-4 * step / step.norm()
    x = x.requires_grad_()
    for _ in range(steps):
        difference = (net(x + step) - net(x)).detach()
        (pulled,) = torch.autograd.grad(net(x), x, difference)
        step = 1e-4 * pulled / pulled.norm()
    return ((net(x + step) - net(x)).norm() / step.norm()).item()


def loud(net: nn.Module) -> nn.Module:
    """Weights as wild as training could make them."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(3 * torch.rand(p.shape, generator=generator) - 0.5)  # mostly of one sign: all passes add up
    return net.double()


def test_the_parameters_are_those_of_the_plain_stacks() -> None:
    assert count(Denoiser(layers=9)) == 260_289
    assert count(Denoiser(layers=6)) == 149_505
    assert count(Denoiser(layers=9, guidance=0)) == 260_289 - 576
    assert count(Denoiser(layers=6, guidance=0)) == 149_505 - 576


def test_a_fresh_denoiser_is_the_identity_and_its_last_layer_learns() -> None:
    net, image = Denoiser(width=8, layers=3), torch.rand(2, 1, 9, 11)
    assert torch.equal(net(image, torch.zeros(2, 1, 9, 11)), image)
    net(image, torch.zeros(2, 1, 9, 11)).sum().backward()
    assert net.layers[-1].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("net", [Denoiser(width=4, layers=3), NonExpansiveDenoiser(width=4, layers=3)])
def test_the_halo_is_the_radius_of_the_receptive_field(net: nn.Module) -> None:
    net = loud(net)
    x = torch.rand(1, 1, 21, 21, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(net(x, torch.zeros_like(x))[0, 0, 10, 10], x)
    assert int((gradient[0, 0].nonzero() - 10).abs().max()) == net.halo == 3


@pytest.mark.parametrize("padding", ["zeros", "circular"])
@pytest.mark.parametrize("size", [(8, 8), (13, 20)])
def test_the_certified_denoiser_expands_no_difference_whatever_its_weights(padding, size: tuple[int, int]) -> None:
    net = loud(NonExpansiveDenoiser(width=6, layers=4, averaging=1.0, padding=padding))
    x = torch.rand(1, 1, *size, dtype=torch.float64)
    noise = torch.full_like(x, 0.1)
    worst = stretch(lambda image: net(image, noise), x)
    assert 0.3 < worst <= 1 + 1e-9  # a bound far above the truth would certify a denoiser that does nothing


def test_every_convolution_of_it_has_norm_at_most_one_and_not_much_less() -> None:
    net = loud(NonExpansiveDenoiser(width=6, layers=4))
    for weight in net.certified_weights():
        assert all(0.93 < circular_conv_norm(weight, size) <= 1 + 1e-9 for size in (24, 37))


def test_the_spectral_norm_of_the_reshaped_weight_certifies_nothing() -> None:
    conv = nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular", bias=False).double()
    nn.init.constant_(conv.weight, 0.7)
    conv = spectral_norm(conv, n_power_iterations=50)
    x = torch.rand(1, 4, 12, 12, dtype=torch.float64)
    for _ in range(3):
        conv(x)
    conv.eval()
    assert torch.linalg.matrix_norm(conv.weight.flatten(1), 2) < 1 + 1e-6  # as it promises
    assert stretch(conv, x) > 2.9


def test_the_certified_denoiser_can_learn_to_remove_noise() -> None:
    torch.manual_seed(0)
    net = NonExpansiveDenoiser(width=8, layers=3)
    clean = torch.nn.functional.interpolate(torch.rand(4, 1, 5, 5), size=(24, 24), mode="bilinear")
    noisy = clean + 0.1 * torch.randn_like(clean)
    level = torch.full_like(noisy, 0.1)
    optimiser = torch.optim.Adam(net.parameters(), 3e-2)
    before = (noisy - clean).square().mean()
    for _ in range(200):
        loss = (net(noisy, level) - clean).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 0.4 * before


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 2, got 1"):
        Denoiser(layers=1)
    with pytest.raises(ValueError, match=r"averaging in \(0, 1\], got 4 and 1.5"):
        NonExpansiveDenoiser(layers=4, averaging=1.5)
