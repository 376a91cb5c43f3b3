"""`load` and `restore`: any kind of picture, any size, any tile; and guidance that can be seen, given and scaled."""

from __future__ import annotations

import dataclasses
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import twofold
from tiny_models import TINY, untrained
from twofold import api, images, specs, tiling, zoo
from twofold.contracts import ImageError, TwofoldError, WeightsError
from twofold.restorers.blind import KernelSearch


@pytest.fixture(scope="module")
def model(guided_model: Path) -> api.Model:
    return twofold.load(guided_model, precision="exact")


def colours(height: int = 12, width: int = 17, *, channels: int = 3) -> torch.Tensor:
    return torch.rand(1, channels, height, width, generator=torch.Generator().manual_seed(height * width))


def directly(model: api.Model, observed: torch.Tensor, guidance: torch.Tensor | None = None) -> torch.Tensor:
    """The slow obvious twin: the network on the padded picture."""
    height, width = observed.shape[-2:]
    multiple: Any = model.restorer.multiple
    given = None if guidance is None else tiling.padded(guidance, multiple)
    with torch.no_grad():
        image: torch.Tensor = model.restorer(tiling.padded(observed, multiple), guidance=given).image
    return image[..., :height, :width]


def test_what_goes_in_comes_back_as_the_same_kind_of_thing(model: api.Model, tmp_path: Path) -> None:
    samples = (colours()[0].permute(1, 2, 0) * 255).round().byte().numpy()
    pixels = torch.from_numpy(samples).permute(2, 0, 1)[None].float() / 255
    expected = directly(model, pixels)
    bytes_expected = (expected[0].permute(1, 2, 0).clamp(0, 1) * 255).round().byte().numpy()
    Image.fromarray(samples).save(tmp_path / "photo.png")
    for photo in (tmp_path / "photo.png", str(tmp_path / "photo.png"), Image.fromarray(samples)):
        restored = model(photo).image
        assert isinstance(restored, Image.Image)
        assert np.abs(np.asarray(restored).astype(int) - bytes_expected).max() <= 1
    array: Any = model(samples).image
    assert array.dtype == np.uint8
    assert np.abs(array.astype(int) - bytes_expected).max() <= 1
    floats: Any = model(samples.astype(np.float32) / 255).image
    assert floats.dtype == np.float32
    assert np.allclose(floats, expected[0].permute(1, 2, 0).numpy(), atol=1e-5)
    assert torch.allclose(model(pixels).image, expected, atol=1e-5)
    assert torch.allclose(model(pixels[0]).image, expected[0], atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 3)])
def test_the_smallest_pictures_are_restored_rightly(model: api.Model, size: tuple[int, int]) -> None:
    restored = model(colours(*size))
    assert restored.image.shape == (1, 3, *size)
    assert restored.guidance is not None
    assert restored.guidance.shape == (1, 1, *size)
    assert torch.allclose(restored.image, directly(model, colours(*size)), atol=1e-6)


@pytest.mark.parametrize("tile", [1, 16, 33, "auto"])
@pytest.mark.parametrize("strength", [1.0, 0.5])
@pytest.mark.parametrize("given", [True, False])
def test_a_tiled_picture_equals_the_whole(model: api.Model, tile: api.Tile, strength: float, given: bool) -> None:
    if tile == 1 and given:
        pytest.skip("one case of single-pixel tiles is enough")
    observed = colours(37, 53)
    guidance = colours(37, 53, channels=1) if given else None
    whole = model(observed, guidance=guidance, strength=strength, tile=None)
    parts = model(observed, guidance=guidance, strength=strength, tile=tile)
    assert torch.allclose(parts.image, whole.image, atol=1e-5)
    assert torch.allclose(parts.guidance, whole.guidance, atol=1e-5)  # type: ignore[arg-type]


def test_the_map_that_came_back_gives_the_same_picture_when_it_is_given(model: api.Model) -> None:
    first = model(colours(12, 18))
    again = model(colours(12, 18), guidance=first.guidance)
    assert torch.allclose(again.image, first.image, atol=1e-6)
    assert torch.equal(again.guidance, first.guidance)  # type: ignore[arg-type]
    # of an odd side the network also sees a mirrored rim, in which a given map is mirrored and its own is drawn
    first = model(colours())
    assert (model(colours(), guidance=first.guidance).image - first.image).abs().max() < 1 / 255


def test_strength_scales_the_map_that_is_used_and_returned(model: api.Model) -> None:
    observed = colours(12, 18)
    drawn = model(observed).guidance
    assert drawn is not None
    half = model(observed, strength=0.5)
    assert torch.allclose(half.guidance, drawn / 2, atol=1e-6)  # type: ignore[arg-type]
    assert torch.allclose(half.image, directly(model, observed, drawn / 2), atol=1e-5)
    assert torch.allclose(model(observed, guidance=drawn, strength=0.5).image, half.image, atol=1e-6)
    assert (model(observed, strength=1.5).image - half.image).abs().max() > 1e-4


def test_strengths_share_one_copy_of_the_network(guided_model: Path) -> None:
    model, exact = twofold.load(guided_model, precision="bf16"), twofold.load(guided_model, precision="exact")
    for strength in (1.0, 0.9, 0.8):
        restored, expected = (each(colours(12, 18), strength=strength) for each in (model, exact))
        assert (restored.image - expected.image).square().mean().sqrt() < 0.01
        assert torch.allclose(restored.guidance, expected.guidance, atol=0.01)
    assert len(model._runners) == 1


@pytest.mark.parametrize("precision", ["exact", "float32", "bf16"])
def test_strength_0_returns_the_image_bit_for_bit(guided_model: Path, plain_model: Path, precision: Any) -> None:
    for file in (guided_model, plain_model):
        model = twofold.load(file, precision=precision)
        assert torch.equal(model(colours(), strength=0).image, colours())
        assert (model(colours(), strength=1e-3).image - colours()).abs().max() < 0.05  # and gets there continuously


def test_a_self_ensemble_turns_with_the_picture(model: api.Model) -> None:
    image, guidance = torch.rand(1, 3, 20, 28), torch.rand(1, 1, 20, 28)
    one = model(image, self_ensemble=True)
    transposed = model(image.mT, self_ensemble=True)
    assert torch.allclose(transposed.image.mT, one.image, atol=1e-5)
    assert torch.allclose(transposed.guidance.mT, one.guidance, atol=1e-5)
    given = model(image, guidance=guidance, self_ensemble=True)
    flipped = model(image.flip(-1), guidance=guidance.flip(-1), self_ensemble=True)
    assert torch.allclose(flipped.image.flip(-1), given.image, atol=1e-5)
    assert torch.allclose(given.guidance, guidance, atol=1e-6)


def test_the_blur_kernel_turns_with_the_picture_in_a_self_ensemble(deblurring: api.Model) -> None:
    image, kernel = torch.rand(1, 1, 24, 32), torch.rand(5, 7)
    kernel = kernel / kernel.sum()
    one = deblurring(image, kernel=kernel, self_ensemble=True).image
    transposed = deblurring(image.mT, kernel=kernel.T.contiguous(), self_ensemble=True).image
    assert torch.allclose(transposed.mT, one, atol=1e-4)


def test_a_self_ensemble_at_strength_0_is_the_picture_and_progress_runs_to_the_end(model: api.Model) -> None:
    image, seen = torch.rand(1, 3, 20, 28), []
    assert torch.equal(model(image, strength=0, self_ensemble=True).image, image)
    model(image, self_ensemble=True, progress=lambda done, total: seen.append(done / total))
    assert seen == sorted(seen)
    assert seen[-1] == 1


def test_a_batch_is_restored_image_by_image(model: api.Model) -> None:
    batch = torch.rand(2, 3, 12, 16)
    restored = model(batch)
    for one, image, guidance in zip(batch, restored.image, restored.guidance, strict=True):
        alone = model(one)
        assert torch.equal(alone.image, image)
        assert torch.equal(alone.guidance[0], guidance)


def test_the_same_call_gives_the_same_image_bit_for_bit(guided_model: Path) -> None:
    first, second = (twofold.load(guided_model)(colours(40, 50)).image for _ in range(2))
    assert torch.equal(first, second)
    model = twofold.load(guided_model)
    model(colours())
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(again(colours(40, 50)).image, first)


def test_half_precision_is_chosen_only_where_the_card_allows_it(guided_model: Path) -> None:
    assert not twofold.load(guided_model).plan.bfloat16  # no card
    with pytest.raises(TwofoldError, match="precision: expected"):
        twofold.load(guided_model, precision="half")  # type: ignore[arg-type]


def test_a_named_model_is_loaded_once(guided_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    api._kept.cache_clear()
    original = zoo.load_restorer
    monkeypatch.setattr(zoo, "load_restorer", lambda *a, **k: calls.append(a) or original(*a, **k))
    for _ in range(3):
        twofold.restore(colours(), guided_model)
    assert len(calls) == 1


def test_a_guide_that_looks_at_every_stage_is_steered_too(tmp_path: Path) -> None:
    spec = specs.GuidedSpec(
        guidance="rain_region", guide=specs.GuideSpec(width=4, stage=True), net=specs.PReNetSpec(recurrences=2, width=4)
    )
    model = twofold.load(untrained(spec, tmp_path / "stage.safetensors"), precision="exact")
    assert torch.equal(model(colours(), strength=0).guidance, torch.zeros(1, 1, 12, 17))  # type: ignore[arg-type]
    zeros = model(colours(), guidance=0.0)
    assert (model(colours()).image - zeros.image).abs().max() > 1e-4


def test_one_number_stands_for_a_map(model: api.Model) -> None:
    expected = model(colours(), guidance=torch.full((1, 1, 12, 17), 0.25))
    restored = model(colours(), guidance=0.25)
    assert torch.equal(restored.image, expected.image)
    assert torch.equal(model(colours(), guidance=np.float32(0.25)).image, expected.image)
    assert torch.equal(model(colours(), guidance=np.full((12, 17), 0.25, np.float32)).image, expected.image)


def test_white_in_a_picture_of_a_map_is_what_the_kind_says(tmp_path: Path) -> None:
    spec = specs.GuidedSpec(guidance="noise_level", guide=specs.GuideSpec(width=4), net=TINY)
    model = twofold.load(untrained(spec, tmp_path / "noise.safetensors"))
    white = Image.new("L", (17, 12), 255)
    images.write(tmp_path / "white.png", images.from_any(white))
    for guidance in (white, np.asarray(white), tmp_path / "white.png"):
        used = model(colours(), guidance=guidance).guidance
        assert used is not None
        assert used.unique().tolist() == [0.25]


@pytest.mark.parametrize(
    ("guidance", "reason"),
    [
        (torch.zeros(1, 1, 12, 16), "16 x 12 pixels, the picture 17 x 12"),
        (torch.full((1, 1, 12, 17), 1.01), "from 0 to 1"),
        (torch.full((1, 1, 12, 17), -0.01), "from 0 to 1"),
        (torch.full((1, 1, 12, 17), torch.nan), "NaN"),
        (torch.zeros(1, 1, 12, 17, dtype=torch.long), "floating-point"),
        (np.zeros((12, 17, 5), np.float32), "1 to 4"),
        (float("nan"), "from 0 to 1"),
        (2.0, "from 0 to 1"),
        (True, "got bool"),
    ],
)
def test_a_map_of_the_wrong_size_or_range_is_refused(model: api.Model, guidance: Any, reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        model(colours(), guidance=guidance)


def test_an_infinite_depth_is_refused(tmp_path: Path) -> None:
    spec = specs.GuidedSpec(guidance="depth", guide=specs.GuideSpec(width=4), net=TINY)
    model = twofold.load(untrained(spec, tmp_path / "depth.safetensors"))
    with pytest.raises(ImageError, match="at least 0"):
        model(colours(), guidance=float("inf"))
    assert model(colours(), guidance=100.0).guidance is not None
    assert model(colours(), guidance=np.full((12, 17), 100.0)).guidance is not None
    assert model(colours(), guidance=torch.full((1, 12, 17), 100.0)).guidance is not None


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (torch.full((1, 3, 4, 4), torch.nan), "NaN"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), "floating-point"),
        (torch.zeros(3, 4, 4, dtype=torch.long), "floating-point"),
        (torch.zeros(2, 4, 4), "channels, got 2"),
        (torch.zeros(1, 4, 4, 4), "channels, got 4"),
        (torch.zeros(4, 4), r"\(B, C, H, W\)"),
        ("nowhere.png", "no such file"),
        (np.full((4, 4, 3), 200.0), "grey levels; divide by 255"),
    ],
)
def test_what_is_no_picture_is_refused(model: api.Model, image: Any, reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        twofold.restore(image, model)


@pytest.mark.parametrize("strength", [-0.1, 1.6, float("nan")])
def test_a_strength_out_of_range_is_refused(model: api.Model, strength: float) -> None:
    with pytest.raises(TwofoldError, match=r"0 to 1\.5"):
        model(colours(), strength=strength)


@pytest.mark.parametrize("tile", [0, -8, 2.5, "512", True])
def test_a_tile_that_is_no_side_is_refused(model: api.Model, tile: Any) -> None:
    with pytest.raises(TwofoldError, match="side in pixels"):
        model(colours(), tile=tile)


def test_a_tile_may_be_an_integer_of_numpy(model: api.Model) -> None:
    expected = model(colours(37, 53), tile=16).image
    assert torch.equal(model(colours(37, 53), tile=np.int64(16)).image, expected)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def deblurring(tmp_path_factory: pytest.TempPathFactory) -> api.Model:
    net = specs.DeconvolutionSpec(stages=1, layers=2, width=4)
    spec = specs.GuidedSpec(guidance="noise_level", channels=1, guide=specs.GuideSpec(width=4), net=net)
    return twofold.load(untrained(spec, tmp_path_factory.mktemp("models") / "deblur.safetensors"), precision="exact")


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8, np.uint16, bool])
def test_a_kernel_may_be_an_array_of_any_numbers(deblurring: api.Model, dtype: type) -> None:
    kernel = np.triu(np.ones((5, 3)))
    expected = deblurring(colours(), kernel=torch.from_numpy(kernel)).image
    assert torch.allclose(deblurring(colours(), kernel=kernel.astype(dtype)).image, expected, atol=1e-6)
    assert torch.allclose(deblurring(colours(), kernel=kernel[::-1].astype(dtype)[::-1]).image, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("kernel", "reason"),
    [
        (np.ones((5, 5), complex), "got an array of complex128"),
        (np.array(["a"]), "got an array of <U1"),
        (np.ones(5), r"expected \(h, w\)"),
        (np.full((5, 5), np.nan), "NaN"),
        ([[1.0]], "got list"),
        (5, "got int"),
        (Image.new("L", (3, 3)), "got Image"),
    ],
)
def test_what_is_no_kernel_is_refused_in_one_line(deblurring: api.Model, kernel: Any, reason: str) -> None:
    with pytest.raises(ImageError, match=f"kernel: .*{reason}") as caught:
        deblurring(colours(), kernel=kernel)
    assert "\n" not in str(caught.value)


def test_a_model_without_a_map_returns_none_and_takes_none(plain_model: Path) -> None:
    model = twofold.load(plain_model)
    restored = model(colours())
    assert restored.guidance is None
    assert torch.allclose(restored.image, directly(model, colours()), atol=1e-6)
    half = model(colours(), strength=0.5).image
    assert torch.allclose(half, (colours() + restored.image) / 2, atol=1e-6)  # without a map, strength blends
    with pytest.raises(TwofoldError, match="takes no guidance"):
        model(colours(), guidance=0.5)


def test_grey_stays_grey_and_alpha_stays_as_it_was(model: api.Model) -> None:
    grey = colours(channels=1)
    restored: Any = model(grey).image
    expected = directly(model, grey.expand(-1, 3, -1, -1)).mean(1, keepdim=True)
    assert torch.allclose(restored, expected, atol=1e-5)
    samples = np.random.default_rng(0).integers(0, 256, (12, 17, 4), np.uint8)
    array: Any = model(samples).image
    assert np.array_equal(array[..., 3], samples[..., 3])


def test_an_image_keeps_the_metadata_of_its_file(model: api.Model) -> None:
    picture = images.Picture(colours(), bits=16, exif=b"notes", profile=b"profile")
    restored, _ = model.restore(picture)
    assert dataclasses.replace(restored, pixels=picture.pixels).exif == b"notes"
    assert (restored.bits, restored.profile) == (16, b"profile")


def test_progress_goes_from_nothing_to_all(model: api.Model) -> None:
    told: list[tuple[int, int]] = []
    model(colours(32, 32), tile=16, progress=lambda done, total: told.append((done, total)))
    assert told == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]


def test_neither_the_input_nor_autograd_is_harmed(model: api.Model) -> None:
    observed = colours()
    before = observed.clone()
    restored = model(observed.requires_grad_())
    assert torch.equal(observed.detach(), before)
    assert not restored.image.requires_grad
    (restored.image * torch.ones((), requires_grad=True)).sum().backward()  # an inference tensor would raise here


@pytest.mark.parametrize("device", ["kuda", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(guided_model: Path, device: str) -> None:
    with pytest.raises(TwofoldError, match=rf"device '{device}' cannot be used here") as caught:
        twofold.load(guided_model, device=device)
    assert "\n" not in str(caught.value)


def test_a_loaded_model_stays_where_it_is(model: api.Model) -> None:
    assert twofold.restore(colours(), model, device="cpu").guidance is not None
    with pytest.raises(TwofoldError, match="loaded on cpu, so device='meta' comes too late; load it there"):
        twofold.restore(colours(), model, device="meta")


def test_a_model_may_be_named_at_once(guided_model: Path, model: api.Model) -> None:
    restored = twofold.restore(colours(), guided_model).image
    assert (restored - model(colours()).image).square().mean().sqrt() < 0.5 / 255  # type: ignore[operator]
    with pytest.raises(WeightsError, match="unknown model"):
        twofold.restore(colours(), "rain-be-gone")


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, twofold; print([m for m in ('torch', 'numpy', 'PIL', 'pydantic', 'typer') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_public_names_are_found_and_others_are_not() -> None:
    found: dict[str, Callable[..., object]] = {name: getattr(twofold, name) for name in twofold.__all__}
    assert found["load"] is api.load
    with pytest.raises(AttributeError, match="restoer"):
        twofold.restoer  # noqa: B018


def test_a_search_for_the_kernel_is_four_fifths_of_the_progress() -> None:
    picture = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    seen: list[tuple[int, int]] = []
    api.restore(picture, "wiener", kernel=KernelSearch(size=7), progress=lambda *done: seen.append(done))
    assert {total for _, total in seen} == {1000}
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[0] == (0, 1000)
    assert 800 in [done for done, _ in seen]
    assert seen[-1] == (1000, 1000)
    tiles: list[tuple[int, int]] = []
    api.restore(picture, "wiener", kernel=torch.ones(3, 3) / 9, progress=lambda *done: tiles.append(done))
    assert tiles == [(0, 1), (1, 1)]
