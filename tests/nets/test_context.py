"""Global context: one vector for the whole image, whose tiles then equal the whole; U-Nets of every output form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import twofold
from tiny_models import untrained
from twofold import specs
from twofold.contracts import DEPTH, EXPOSURE, RAIN_REGION
from twofold.fusion import fused
from twofold.nets.context import GlobalContext, Modulation
from twofold.nets.guide import Guide, UNetGuide
from twofold.nets.prenet import PReNet
from twofold.nets.unet import UNet
from twofold.restorers.guided import Guided, Plain
from twofold.runtime import ExecutionPlan, runner


def image(height: int = 40, width: int = 56, seed: int = 0) -> torch.Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed))


def shaken(module: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.05
    return module.eval()


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (3, 200), (300, 300)])
def test_context_is_one_finite_vector_for_images_of_any_size(size: tuple[int, int]) -> None:
    context = GlobalContext(features=7)(image(*size))
    assert context.shape == (1, 7)
    assert torch.isfinite(context).all()


def test_context_sees_brightness_and_colour_of_the_whole_image() -> None:
    net = shaken(GlobalContext(features=8))
    grey = torch.full((1, 3, 32, 32), 0.5)
    tinted = grey.clone()
    tinted[:, 0] = 0.8
    assert (net(grey) - net(0.5 * grey)).abs().max() > 1e-4
    assert (net(grey) - net(tinted)).abs().max() > 1e-4


def test_modulation_starts_as_the_identity() -> None:
    features = torch.rand(2, 6, 5, 5)
    assert torch.equal(Modulation(4, 6)(features, torch.rand(2, 4)), features)


@pytest.mark.parametrize("output", ["hadamard", "exposure"])
def test_a_hadamard_output_starts_as_the_identity(output: Any) -> None:
    guided = output == "exposure"
    net = UNet(guidance=int(guided), widths=[8, 8], blocks=[1, 1], context=4, output=output)
    guidance = (torch.zeros(1, 1, 40, 56),) if guided else ()
    assert torch.allclose(net(image(), *guidance), image())


def test_an_exposure_output_brightens_by_the_stops_of_its_guidance() -> None:
    net = UNet(guidance=1, widths=[8, 8], blocks=[1, 1], output="exposure")
    assert torch.allclose(net(image() / 4, torch.full((1, 1, 40, 56), 2.0)), image())
    with pytest.raises(ValueError, match="needs one guidance channel"):
        UNet(output="exposure")


@pytest.mark.parametrize("unshuffle", [1, 2, 4])
def test_no_pixel_looks_further_than_the_halo(unshuffle: int) -> None:
    net = shaken(UNet(widths=[4, 4], blocks=[1, 1], unshuffle=unshuffle, context=3))
    size = 2 * net.multiple * (net.halo // net.multiple + 2)
    x = image(size, size).requires_grad_()
    middle = size // 2
    net(x, None, torch.zeros(1, 3))[0, :, middle, middle].sum().backward()
    assert x.grad is not None
    rows = x.grad.abs().sum((0, 1, 2)).nonzero().flatten()
    assert (rows - middle).abs().max() <= net.halo


SPECS = {
    "hadamard": specs.GuidedSpec(
        guidance="depth",
        guide=specs.GuideSpec(unet=specs.UNetSpec(widths=[4, 4], blocks=[1, 1], unshuffle=2, context=3, output="map")),
        net=specs.UNetSpec(widths=[6, 6], blocks=[1, 1], unshuffle=2, context=5, output="hadamard"),
    ),
    "exposure": specs.GuidedSpec(
        guidance="exposure",
        guide=specs.GuideSpec(unet=specs.UNetSpec(widths=[4, 4], blocks=[1, 1], unshuffle=2, context=3, output="map")),
        net=specs.UNetSpec(widths=[6, 6], blocks=[1, 1], context=5, output="exposure"),
    ),
    "plain": specs.PlainSpec(net=specs.UNetSpec(widths=[6, 6], blocks=[1, 1], context=5)),
}


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("given", [False, True])
def test_tiles_of_a_network_with_context_equal_the_whole(name: str, given: bool, tmp_path: Path) -> None:
    spec = SPECS[name]
    if given and isinstance(spec, specs.PlainSpec):
        pytest.skip("takes no guidance")
    model = twofold.load(untrained(spec, tmp_path / "model.safetensors"), precision="exact")
    observed = image(70, 93)
    guidance = torch.rand(1, 1, 70, 93) if given else None
    whole = model(observed, guidance=guidance, tile=None)
    parts = model(observed, guidance=guidance, tile=16)
    assert torch.allclose(parts.image, whole.image, atol=1e-5)
    half = model(observed[..., :35, :], guidance=None if guidance is None else guidance[..., :35, :])
    # a part restored by itself has another context: it really is used
    assert (half.image - whole.image[..., :35, :]).abs().max() > 1e-4


@pytest.mark.parametrize("name", SPECS)
def test_a_network_with_context_is_fused_without_changing_the_image(name: str, tmp_path: Path) -> None:
    file = untrained(SPECS[name], tmp_path / "model.safetensors")
    exact, fast = (twofold.load(file, precision=precision) for precision in ("exact", "float32"))
    assert torch.allclose(exact(image()).image, fast(image()).image, atol=1e-4)
    half = twofold.load(file, precision="bf16")(image()).image
    assert (half - exact(image()).image).square().mean().sqrt() < 0.02


def test_layers_that_ask_for_full_precision_keep_it_when_fused() -> None:
    net = shaken(UNet(widths=[8, 8], blocks=[1, 1], context=4, output="hadamard"))
    traced = fused(net, dtype=torch.bfloat16, inputs=1)
    kept = {type(layer).__name__ for layer in traced.modules()}
    assert {"GlobalContext", "Modulation", "Output"} <= kept
    plan = ExecutionPlan(channels_last=True, bfloat16=True, fused=True)
    assert torch.allclose(runner(net, plan)(image()), net(image()), atol=0.05)


def test_guide_and_network_each_get_their_own_part_of_the_context() -> None:
    guide = UNetGuide(DEPTH, UNet(widths=[4, 4], blocks=[1, 1], context=3, output="map"))
    net = UNet(guidance=1, widths=[4, 4], blocks=[1, 1], context=5)
    restorer = shaken(Guided(guide, net))
    context = restorer.context(image())
    assert context.shape == (1, 8)
    assert torch.equal(context[:, :3], guide.context(image()))
    assert torch.equal(context[:, 3:], net.context(image()))
    assert torch.equal(restorer(image(), context=context).image, restorer(image()).image)
    assert (restorer(image(), context=context + 1).image - restorer(image()).image).abs().max() > 1e-4


def test_a_restorer_that_is_local_has_no_context() -> None:
    assert Guided(Guide(RAIN_REGION, width=4), PReNet(guidance=1, recurrences=1, width=4)).context(image()) is None
    assert Plain(UNet(widths=[4, 4], blocks=[1, 1])).context(image()) is None


def test_a_stage_guide_is_refused_by_a_network_that_asks_for_one_map() -> None:
    with pytest.raises(ValueError, match=r"guide.stage: UNet takes one map at the start"):
        Guided(Guide(RAIN_REGION, width=4, stage=True), UNet(guidance=1))


def test_the_guide_with_a_receptive_field_stays_inside_the_range_of_its_kind() -> None:
    for kind in (DEPTH, RAIN_REGION, EXPOSURE):
        guide = shaken(UNetGuide(kind, UNet(widths=[4, 4], blocks=[1, 1], context=3, output="map")))
        drawn = guide(50 * image() - 25)
        assert drawn.shape == (1, 1, 40, 56)
        assert drawn.min() >= kind.low
        assert kind.high is None or drawn.max() <= kind.high
