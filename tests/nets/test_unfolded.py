import warnings

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from twofold.contracts import ImageError
from twofold.nets.fourier import Circular, EdgeTaper, convolve, crop, psf2otf
from twofold.nets.unet import UNet
from twofold.nets.unfolded import UnfoldedDeconvolution

SMALL = {"width": 8, "layers": 3}


def a_kernel(batch: int = 1, size: int = 7) -> Tensor:
    kernel = torch.rand(batch, 1, size, size, generator=torch.Generator().manual_seed(5))
    return kernel / kernel.sum((2, 3), keepdim=True)


def awake(net: UnfoldedDeconvolution) -> UnfoldedDeconvolution:
    """A fresh denoiser is the identity; this one is not."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for denoiser in net.denoisers:
            last = denoiser.layers[-1].weight
            last.copy_(0.05 * torch.randn(last.shape, generator=generator))
    return net


def level(like: Tensor, value: float = 0.02) -> Tensor:
    return torch.full((len(like), 1, *like.shape[-2:]), value)


def test_the_denoisers_have_the_parameters_of_the_plain_stacks() -> None:
    def count(net: UnfoldedDeconvolution) -> int:
        return sum(p.numel() for p in net.denoisers.parameters())

    assert count(UnfoldedDeconvolution(layers=9)) == 260_289
    assert count(UnfoldedDeconvolution(layers=6)) == 149_505
    assert count(UnfoldedDeconvolution(layers=6, guided=False)) == 149_505 - 576
    assert count(UnfoldedDeconvolution(layers=6, stages=2, shared=False)) == 2 * 149_505


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(16, 16), (23, 31)])
def test_the_picture_keeps_its_size(channels: int, size: tuple[int, int]) -> None:
    y = torch.rand(2, channels, *size)
    assert UnfoldedDeconvolution(**SMALL)(y, level(y), a_kernel(2)).shape == y.shape


def test_colour_is_restored_channel_by_channel_and_pictures_of_a_batch_alone() -> None:
    net, y, k = awake(UnfoldedDeconvolution(**SMALL)), torch.rand(2, 3, 24, 20), a_kernel(2)
    together = net(y, level(y), k)
    for i in range(2):
        for c in range(3):
            part = y[i : i + 1, c : c + 1]
            alone = net(part, level(part), k[i : i + 1])
            assert torch.allclose(together[i : i + 1, c : c + 1], alone, atol=1e-5)


def test_one_kernel_serves_a_whole_batch() -> None:
    net, y, k = awake(UnfoldedDeconvolution(**SMALL)), torch.rand(2, 1, 24, 20), a_kernel(1)
    assert torch.allclose(net(y, level(y), k), net(y, level(y), k.expand(2, -1, -1, -1)), atol=1e-5)


def test_more_noise_means_more_trust_in_the_prior_and_rho_never_vanishes() -> None:
    net, y = UnfoldedDeconvolution(stages=3), torch.rand(1, 1, 8, 8)
    rhos = torch.cat([net.rho(level(y, value), y) for value in (0.0, 0.006, 0.02, 0.07)])
    assert (rhos[1:] > rhos[:-1]).all()
    assert (rhos[:, 1:] > rhos[:, :-1]).all()
    assert rhos.min() >= 1e-6
    net.prior_weight.out.bias.data.fill_(-100.0)
    assert net.rho(level(y), y).min() >= 1e-6


def test_without_noise_a_circular_blur_is_undone() -> None:
    sharp = F.interpolate(torch.rand(1, 1, 8, 8), size=(48, 48), mode="bicubic")
    k = torch.tensor([[[[0.1, 0.1, 0.1], [0.1, 0.2, 0.1], [0.1, 0.1, 0.1]]]])
    blurred = convolve(sharp, psf2otf(k, (48, 48)))
    restored = UnfoldedDeconvolution(border=Circular(), **SMALL)(blurred, level(blurred, 1e-4), k)
    assert (restored - sharp).abs().max() < 0.1 * (blurred - sharp).abs().max()


def test_tiles_at_inference_change_nothing() -> None:
    net, y = awake(UnfoldedDeconvolution(**SMALL)), torch.rand(1, 3, 50, 40)
    noise = 0.05 * torch.rand(1, 1, 50, 40)
    whole = net(y, noise, a_kernel())
    for tile in (1, 5, 17):
        net.tile = tile
        with torch.no_grad():
            assert torch.allclose(net(y, noise, a_kernel()), whole, atol=1e-5)  # rounding of values up to 6


def test_the_linear_step_stays_in_float32_under_autocast() -> None:
    net, y = UnfoldedDeconvolution(**SMALL), torch.rand(1, 1, 24, 24)
    full = net(y, level(y), a_kernel())
    with torch.autocast("cpu", torch.bfloat16):
        mixed = net(y, level(y), a_kernel())  # the fresh denoiser is the identity in bfloat16 too
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed, full)
    assert net(y.bfloat16(), level(y), a_kernel()).dtype == torch.float32


def test_the_map_may_be_a_function_that_is_asked_at_every_stage() -> None:
    net, y, seen = awake(UnfoldedDeconvolution(stages=3, **SMALL)), torch.rand(1, 1, 24, 24), []

    def guide(observed: Tensor, current: Tensor) -> Tensor:
        seen.append((observed, current))
        return level(observed)

    assert torch.equal(net(y, guide, a_kernel()), net(y, level(y), a_kernel()))
    assert len(seen) == 3
    assert torch.equal(seen[0][1], y)
    assert all(observed is y or torch.equal(observed, y) for observed, _ in seen)
    assert all(current.shape == y.shape for _, current in seen)


def test_missing_inputs_are_errors() -> None:
    net, y = UnfoldedDeconvolution(**SMALL), torch.rand(1, 1, 16, 16)
    with pytest.raises(ImageError, match="needs a blur kernel"):
        net(y, level(y))
    with pytest.raises(ImageError, match="needs a noise map"):
        net(y, None, a_kernel())
    with pytest.raises(ImageError, match="without a noise map"):
        UnfoldedDeconvolution(guided=False, **SMALL)(y, level(y), a_kernel())


def test_all_parameters_learn_and_kernel_and_map_are_differentiable() -> None:
    net, y, k = awake(UnfoldedDeconvolution(shared=False, **SMALL)), torch.rand(1, 1, 20, 20), a_kernel()
    noise = level(y).requires_grad_()
    k.requires_grad_()
    net(y, noise, k).square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())
    assert noise.grad is not None
    assert noise.grad.abs().sum() > 0
    assert k.grad is not None
    assert torch.isfinite(k.grad).all()


def test_it_learns_to_deblur_one_picture() -> None:
    torch.manual_seed(0)
    sharp, k = F.interpolate(torch.rand(1, 1, 10, 10), size=(44, 44)), a_kernel()
    y = crop(convolve(sharp, psf2otf(k, (44, 44))), 6, 6)
    y, clean = y + 0.02 * torch.randn_like(y), crop(sharp, 6, 6)
    net = UnfoldedDeconvolution(stages=2, width=16, layers=4)
    optimiser = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(150):
        loss = (net(y, level(y), k) - clean).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert -10 * torch.log10(loss) > 22 > 18 > -10 * torch.log10((y - clean).square().mean())


@pytest.mark.slow
@pytest.mark.parametrize("border", [EdgeTaper(), None])
def test_it_exports_to_onnx(border, tmp_path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    net = awake(UnfoldedDeconvolution(**SMALL) if border is None else UnfoldedDeconvolution(**SMALL, border=border))
    y, k = F.interpolate(torch.rand(1, 3, 5, 5), size=(33, 40), mode="bilinear"), a_kernel()
    arguments = (y, level(y, 0.05), k)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net.eval(), arguments, dynamo=True, verbose=False).save(tmp_path / "net.onnx")
        expected = net(*arguments)
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    names = [entry.name for entry in session.get_inputs()]
    (got,) = session.run(None, {name: value.numpy() for name, value in zip(names, arguments, strict=True)})
    assert (
        torch.from_numpy(got) - expected
    ).abs().max() < 2e-4  # onnxruntime's Fourier transform is good to about 1e-5


def test_another_denoiser_can_stand_in_the_papers_and_tiles_of_it_are_exact() -> None:
    def unet() -> UNet:
        return UNet(channels=1, guidance=1, widths=(4, 8), blocks=(1, 1))

    net = UnfoldedDeconvolution(denoiser=unet, shared=False, tile=24)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    y, k = torch.rand(1, 3, 101, 33, generator=torch.Generator().manual_seed(1)), a_kernel()
    whole = net(y, level(y), k)  # gradients are kept, so nothing is done in tiles
    with torch.no_grad():
        tiled = net(y, level(y), k)
    assert tiled.shape == y.shape
    assert torch.allclose(tiled, whole, atol=1e-5)
