"""The guide, PReNet and the U-Net: published sizes, honest halos, guidance that is looked at."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from twofold.contracts import DEPTH, NOISE_LEVEL, RAIN_REGION, GuidanceKind, ImageError
from twofold.nets.guide import Guide
from twofold.nets.prenet import PReNet, from_published
from twofold.nets.unet import UNet
from twofold.restorers.guided import Guided, Plain


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def shaken(module: nn.Module) -> nn.Module:
    """Every parameter random: no path through the network is switched off by its initial zeros."""
    generator = torch.Generator().manual_seed(0)
    for p in module.parameters():
        p.data = torch.randn(p.shape, generator=generator) * 0.05
    return module


def reach(module: nn.Module, inputs: int, middle: int, size: int) -> int:
    """How far a pixel of the result looks, measured by its gradient."""
    x = torch.rand(1, inputs, size, size, generator=torch.Generator().manual_seed(1)).requires_grad_()
    parts = (x[:, :3],) if inputs == 3 else (x[:, :3], x[:, 3:])
    module(*parts)[0, :, middle, middle].sum().backward()
    assert x.grad is not None
    rows = x.grad.abs().sum((0, 1, 2)).nonzero().flatten()
    return int((rows - middle).abs().max())


def test_a_guide_starts_from_the_weights_of_he_without_biases() -> None:
    guide = Guide(RAIN_REGION, width=64)
    for layer in guide.layers:
        if isinstance(layer, nn.Conv2d):
            fan_in = layer.weight[0].numel()
            assert layer.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.15)
            assert layer.bias is not None
            assert layer.bias.abs().max() == 0


def test_prenet_has_the_published_number_of_parameters() -> None:
    assert count(PReNet()) == 168_963
    assert count(PReNet(guidance=1)) == 169_251


def test_the_guide_has_four_convolutions_and_the_expected_size() -> None:
    assert count(Guide(NOISE_LEVEL, channels=1)) == 19_105
    assert count(Guide(RAIN_REGION)) == 19_681


@pytest.mark.parametrize("kind", [NOISE_LEVEL, RAIN_REGION, DEPTH], ids=lambda kind: kind.name)
def test_a_guide_stays_inside_the_range_of_its_kind(kind: GuidanceKind) -> None:
    drawn = shaken(Guide(kind))(torch.rand(2, 3, 9, 7) * 50 - 25)
    assert drawn.shape == (2, 1, 9, 7)
    assert drawn.min() >= kind.low
    assert kind.high is None or drawn.max() <= kind.high


@pytest.mark.parametrize(
    ("network", "inputs", "size"),
    [
        (PReNet(recurrences=2), 3, 81),
        (PReNet(guidance=1, recurrences=1), 4, 61),
        (UNet(blocks=(1, 1, 2), widths=(8, 8, 8)), 3, 128),
        (UNet(guidance=1, blocks=(2, 1), widths=(8, 8)), 4, 128),
        (UNet(guidance=1, blocks=(2, 1), widths=(8, 8), gated=True), 4, 128),
        (Guide(RAIN_REGION), 3, 21),
    ],
    ids=["prenet", "guided-prenet", "unet", "guided-unet", "gated-unet", "guide"],
)
def test_no_pixel_looks_further_than_the_halo(network: nn.Module, inputs: int, size: int) -> None:
    seen = max(reach(shaken(network), inputs, middle, size) for middle in range(size // 2 - 2, size // 2 + 2))
    assert 0 < seen <= network.halo
    assert network.halo <= seen + 6, "a halo much wider than needed wastes work"


def test_a_stage_guide_widens_the_halo_at_every_stage() -> None:
    restorer = shaken(Guided(Guide(RAIN_REGION, width=4, stage=True), PReNet(guidance=1, recurrences=2, width=4)))
    size, middle = 121, 60
    x = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(1)).requires_grad_()
    restored = restorer(x)
    (restored.image[0, :, middle, middle].sum() + restored.guidance[0, :, middle, middle].sum()).backward()
    assert x.grad is not None
    seen = int((x.grad.abs().sum((0, 1, 2)).nonzero().flatten() - middle).abs().max())
    assert restorer.halo - 6 <= seen <= restorer.halo


def test_prenet_equals_the_published_network_with_separate_gates() -> None:
    generator = torch.Generator().manual_seed(3)
    net = PReNet(recurrences=2).double()
    state: dict[str, torch.Tensor] = {}
    for ours, value in net.state_dict().items():
        value.copy_(torch.randn(value.shape, generator=generator, dtype=torch.float64) * 0.1)
        part = ours.rsplit(".", 1)[1]
        if ours.startswith("gates"):
            for gate, block in zip("ifgo", value.chunk(4), strict=True):
                state[f"conv_{gate}.0.{part}"] = block.clone()
        elif ours.startswith("blocks"):
            _, block_number, which, _ = ours.split(".")
            state[f"res_conv{int(block_number) + 1}.{2 * int(which)}.{part}"] = value.clone()
        else:
            state[{"head": "conv0.0", "tail": "conv"}[ours.split(".")[0]] + f".{part}"] = value.clone()

    def conv(name: str, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], padding=1)

    observed = torch.rand(1, 3, 12, 10, generator=generator, dtype=torch.float64)
    x, h, c = observed, torch.zeros(1, 32, 12, 10).double(), torch.zeros(1, 32, 12, 10).double()
    for _ in range(2):
        x = conv("conv0.0", torch.cat([observed, x], 1)).relu()
        x = torch.cat([x, h], 1)
        i, f, o = (conv(f"conv_{gate}.0", x).sigmoid() for gate in "ifo")
        c = f * c + i * conv("conv_g.0", x).tanh()
        h = o * c.tanh()
        x = h
        for block in range(1, 6):
            y = conv(f"res_conv{block}.0", x).relu()
            x = (conv(f"res_conv{block}.2", y).relu() + x).relu()
        x = conv("conv", x) + observed
    torch.testing.assert_close(net(observed), x)
    fresh = PReNet(recurrences=2).double()
    fresh.load_state_dict(from_published(state))
    torch.testing.assert_close(fresh(observed), x)


def test_a_network_built_for_guidance_refuses_to_run_without() -> None:
    for network in (PReNet(guidance=1), UNet(guidance=1)):
        with pytest.raises(TypeError, match="guidance"):
            network(torch.zeros(1, 3, 8, 8))


def test_a_given_map_replaces_the_estimated_one() -> None:
    restorer = Guided(Guide(RAIN_REGION), shaken(UNet(guidance=1, widths=(8, 8), blocks=(1, 1))))
    observed = torch.rand(1, 3, 8, 8)
    estimated = restorer(observed)
    given = torch.rand(1, 1, 8, 8)
    steered = restorer(observed, guidance=given)
    assert steered.guidance is given
    assert not torch.allclose(steered.image, estimated.image)
    torch.testing.assert_close(restorer(observed, guidance=estimated.guidance).image, estimated.image)


def test_a_stage_guide_draws_a_new_map_at_every_recurrence() -> None:
    seen: list[torch.Tensor] = []
    guide = Guide(RAIN_REGION, stage=True)
    guide.register_forward_hook(lambda module, inputs, output: seen.append(inputs[1]))
    observed = torch.rand(1, 3, 8, 8)
    result = Guided(guide, shaken(PReNet(guidance=1, recurrences=3)))(observed)
    assert len(seen) == 4, "one map a recurrence, and the one that is returned"
    assert seen[0] is observed
    assert seen[3] is result.image


def test_a_plain_restorer_takes_no_guidance() -> None:
    with pytest.raises(ImageError, match="takes no guidance map"):
        Plain(UNet())(torch.zeros(1, 3, 8, 8), guidance=torch.zeros(1, 1, 8, 8))
