"""Deblurring by the library and the command line: kernels in any form, estimated or given, and what is no kernel."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import twofold
from tiny_models import untrained
from twofold import api, images, specs, zoo
from twofold.cli.app import run_command_line
from twofold.cli.pictures import twin_of
from twofold.contracts import ImageError, TwofoldError
from twofold.degrade.additive import GaussianNoise
from twofold.degrade.blur import Blur, Given
from twofold.restorers.blind import KernelSearch

Maker = Callable[..., Path]


@pytest.fixture(scope="module")
def deblurring(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Never trained: a fresh denoiser is the identity, so its linear steps restore by themselves."""
    net = specs.DeconvolutionSpec(stages=2, layers=3, width=4)
    spec = specs.GuidedSpec(guidance="noise_level", channels=1, guide=specs.GuideSpec(width=4), net=net)
    path = tmp_path_factory.mktemp("models") / "deblurring.safetensors"
    torch.manual_seed(0)
    zoo.save_restorer(path, spec.build(), spec)
    return path


@pytest.fixture
def model(deblurring: Path) -> api.Model:
    return twofold.load(deblurring, precision="exact")


def line(length: int = 7) -> torch.Tensor:
    return torch.full((1, 1, 1, length), 1 / length)


def shaken(height: int = 60, width: int = 70, channels: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    cells = torch.rand(1, channels, height // 6 + 3, width // 6 + 3, generator=torch.Generator().manual_seed(2))
    clean = torch.nn.functional.interpolate(cells, scale_factor=6)[..., : height + 6, : width + 6]
    sample = Blur(Given((line(),)), GaussianNoise((0.002, 0.002)))(clean, torch.Generator().manual_seed(3))
    return sample.observed, sample.clean


def test_a_kernel_undoes_its_blur_in_every_colour(model: api.Model) -> None:
    observed, clean = shaken()
    restored = model(observed, kernel=line())
    assert restored.image.shape == clean.shape
    assert restored.guidance is not None
    assert restored.guidance.shape == (1, 1, *clean.shape[-2:])
    inner = (..., slice(8, -8), slice(8, -8))
    assert (restored.image - clean)[inner].square().mean() < 0.5 * (observed - clean)[inner].square().mean()
    one = model(observed[:, 1:2], kernel=line()).image
    assert torch.allclose(restored.image[:, 1:2], one, atol=1e-5)


def test_a_kernel_is_a_file_a_tensor_or_found(model: api.Model, tmp_path: Path) -> None:
    observed, _ = shaken(128, 128, 1)
    np.save(tmp_path / "k.npy", line()[0, 0].numpy())
    Image.fromarray(np.full((1, 7), 200, np.uint8)).save(tmp_path / "k.png")
    expected = model(observed, kernel=line())
    assert expected.report is None
    for kernel in (tmp_path / "k.npy", str(tmp_path / "k.png"), line()[0, 0]):
        assert torch.allclose(model(observed, kernel=kernel).image, expected.image, atol=1e-5)
    found = model(observed, kernel=KernelSearch(size=9))
    assert found.report.kernel.shape == (1, 1, 9, 9)
    assert torch.allclose(model(observed, kernel=found.report.kernel).image, found.image, atol=1e-5)


def test_the_noise_level_can_be_given_and_grey_levels_are_noticed(model: api.Model) -> None:
    observed, _ = shaken()
    given = model(observed, kernel=line(), guidance=0.03)
    assert given.guidance is not None
    assert torch.equal(given.guidance, torch.full_like(given.guidance, 0.03))
    with pytest.raises(ImageError, match="looks like grey levels"):
        model(observed, kernel=line(), guidance=15.0)
    with pytest.raises(ImageError, match="negative"):
        model(observed, kernel=line(), guidance=-0.1)


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (torch.zeros(3, 3), "all its weights are zero"),
        (torch.full((3, 3), float("nan")), "NaN"),
        (-torch.ones(3, 3), "negative"),
        (torch.rand(40, 40), "looks like a photograph"),
        (torch.ones(1, 90), "not smaller than the picture"),
        (torch.rand(1, 3, 5, 5), "three channels differ"),
        (torch.rand(2, 1, 5, 5), "one picture has one kernel"),
        ("nowhere.png", "nowhere.png"),
    ],
)
def test_what_is_no_kernel_is_one_line(model: api.Model, kernel: torch.Tensor | str, message: str) -> None:
    with pytest.raises(ImageError, match=message) as caught:
        model(shaken()[0], kernel=kernel)
    assert "\n" not in str(caught.value)


def test_an_even_kernel_and_one_that_does_not_sum_to_one_are_taken(model: api.Model) -> None:
    observed, _ = shaken()
    assert torch.allclose(model(observed, kernel=5 * line()).image, model(observed, kernel=line()).image, atol=1e-5)
    assert model(observed, kernel=torch.ones(2, 4)).image.shape == observed.shape


def test_a_model_says_whether_it_wants_a_kernel(model: api.Model, plain_model: Path) -> None:
    with pytest.raises(TwofoldError, match="needs the kernel"):
        model(shaken()[0])
    with pytest.raises(TwofoldError, match="takes no kernel"):
        twofold.restore(shaken()[0], plain_model, kernel=line())


@pytest.mark.parametrize("mode", ["L", "RGBA", "I;16"])
def test_grey_alpha_and_sixteen_bits_are_kept(deblurring: Path, tmp_path: Path, mode: str) -> None:
    values = np.random.default_rng(0).integers(0, 256, (60, 64, 4), np.uint8)
    shape = {"L": values[..., 0], "RGBA": values, "I;16": values[..., 0].astype(np.uint16) * 257}[mode]
    Image.fromarray(shape).save(tmp_path / "photo.png")
    np.savetxt(tmp_path / "k.txt", np.eye(5))
    arguments = ["restore", tmp_path / "photo.png", "-m", deblurring, "--kernel", tmp_path / "k.txt"]
    assert run_command_line([*map(str, arguments), "-o", str(tmp_path / "out.png")]) == 0
    with Image.open(tmp_path / "out.png") as restored:
        assert restored.mode == mode
        if mode == "RGBA":
            assert np.array_equal(np.asarray(restored)[..., 3], values[..., 3])


def test_the_command_finds_a_kernel_and_keeps_it(
    deblurring: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images.write(tmp_path / "a.png", images.Picture(shaken(128, 128)[0]))
    arguments = ["restore", str(tmp_path / "a.png"), "-m", str(deblurring), "-o", str(tmp_path / "b.png")]
    kept = ["--kernel-out", str(tmp_path / "k.png"), "--kernel-size", "11", "--json"]
    assert run_command_line([*arguments, "--kernel", "estimate", *kept]) == 0
    facts = json.loads(capsys.readouterr().out)["done"][0]
    assert facts["kernel"] == "estimated"
    assert 0 <= facts["kernel_confidence"] <= 1
    assert images.read(tmp_path / "k.png").pixels.shape[-2:] == (11, 11)
    assert run_command_line([*arguments, "--kernel", str(tmp_path / "k.png"), "--noise-level", "0.01", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["done"][0]["guidance_mean"] == 0.01


def test_a_folder_of_kernels_goes_by_name(
    deblurring: Path, picture: Maker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture("in/a.png", 40, 40), picture("in/b.png", 40, 40)
    (tmp_path / "kernels").mkdir()
    np.savetxt(tmp_path / "kernels" / "a.txt", np.eye(5))
    arguments = ["restore", str(tmp_path / "in"), "-m", str(deblurring), "--kernel", str(tmp_path / "kernels")]
    assert run_command_line([*arguments, "--skip-existing"]) == 1  # b has none, and costs only itself
    assert [path.name for path in images.find([tmp_path / "in-restored"])] == ["a.png"]
    np.savetxt(tmp_path / "kernels" / "b.txt", np.eye(3))
    assert run_command_line(arguments) == 0
    np.savetxt(tmp_path / "kernels" / "b.csv", np.eye(3))
    assert run_command_line(arguments) == 1
    assert "several files called b: b.csv, b.txt; keep one" in capsys.readouterr().err


def test_a_kernel_is_called_exactly_like_its_picture(tmp_path: Path) -> None:
    for name in ("ok.alt.png", "ok.png", "br[1].npy", "deep/ok.txt", "okay.png", "alone.alt.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    asked = {"ok.jpg": "ok.png", "br[1].png": "br[1].npy", "ok.alt.jpg": "ok.alt.png", "deep/ok.jpg": "deep/ok.txt"}
    assert {name: twin_of(tmp_path, Path(name)) for name in asked} == {a: tmp_path / b for a, b in asked.items()}
    assert twin_of(tmp_path, Path("deep/okay.jpg")) == tmp_path / "okay.png"
    with pytest.raises(TwofoldError, match="no file called alone"):
        twin_of(tmp_path, Path("alone.jpg"))


def test_kernels_that_were_kept_serve_the_next_run(deblurring: Path, picture: Maker, tmp_path: Path) -> None:
    picture("in/a.png", 40, 40), picture("in/deep/a.png", 40, 40)
    np.savetxt(tmp_path / "k.txt", np.eye(5))
    arguments = ["restore", str(tmp_path / "in"), "-m", str(deblurring), "--kernel"]
    assert run_command_line([*arguments, str(tmp_path / "k.txt"), "--kernel-out", str(tmp_path / "kept")]) == 0
    (tmp_path / "kept" / "a.png").unlink()
    assert run_command_line([*arguments, str(tmp_path / "kept"), "-o", str(tmp_path / "out")]) == 1
    assert [path.relative_to(tmp_path / "out").as_posix() for path in images.find([tmp_path / "out"])] == ["deep/a.png"]


def test_a_kernel_that_is_given_is_not_replaced(
    deblurring: Path, picture: Maker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo, kernel = picture("a.png", 40, 40), picture("kernels/a.png", 5, 5, 1)
    before = kernel.read_bytes()
    for given in (kernel, kernel.parent):
        for output in ("-o", "--kernel-out"):
            assert (
                run_command_line(
                    ["restore", str(photo), "-m", str(deblurring), "--kernel", str(given), output, str(kernel)]
                )
                == 2
            )
            assert f"{kernel} would replace an input" in capsys.readouterr().err
    assert kernel.read_bytes() == before


@pytest.mark.parametrize(
    ("more", "message", "code"),
    [
        ([], "needs --kernel FILE, or --kernel estimate", 2),
        (["--kernel", "nowhere.png"], "nowhere.png", 1),
        (["--kernel", "estimate", "--kernel-size", "30"], "odd", 2),
        (["--kernel", "estimate", "--noise-level", "7"], "looks like grey levels", 1),
    ],
)
def test_a_mistake_is_one_line(
    deblurring: Path, picture: Maker, more: list[str], message: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command_line(["restore", str(picture("a.png", 130, 130)), "-m", str(deblurring), *more]) == code
    assert message in capsys.readouterr().err.replace("\n", " ")


def test_other_models_take_no_kernel_and_no_noise_level(
    guided_model: Path, picture: Maker, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["restore", str(picture("a.png")), "-m", str(guided_model)]
    assert run_command_line([*arguments, "--kernel", "estimate"]) == 2
    assert run_command_line([*arguments, "--noise-level", "0.02"]) == 2
    error = capsys.readouterr().err
    assert "removes no blur" in error
    assert "steered by it" in error


def test_blurred_pairs_are_measured_with_their_kernels(
    deblurring: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], guided_model: Path
) -> None:
    observed, clean = shaken(channels=1)
    for side, pixels in (("blurred", observed), ("sharp", clean)):
        (tmp_path / side).mkdir()
        images.write(tmp_path / side / "a.png", images.Picture(pixels))
    np.save(tmp_path / "k.npy", line()[0, 0].numpy())
    sides = ["--observed", "blurred", "--clean", "sharp", "--protocol", "grey", "--data", str(tmp_path)]
    table = ["-o", str(tmp_path / "result.json")]
    assert (
        run_command_line(["evaluate", "-m", str(deblurring), *sides, "--kernels", str(tmp_path / "k.npy"), *table]) == 0
    )
    summary = json.loads((tmp_path / "result.json").read_text())["summary"]
    assert summary["psnr"] > summary["input_psnr"]
    assert run_command_line(["evaluate", "-m", str(deblurring), *sides]) == 2
    assert "needs --kernels" in capsys.readouterr().err


def test_an_untrained_network_of_random_weights_is_finite(tmp_path: Path) -> None:
    spec = specs.PlainSpec(channels=1, net=specs.DeconvolutionSpec(stages=1, layers=2, width=2))
    path = untrained(spec, tmp_path / "plain.safetensors")
    assert torch.isfinite(twofold.restore(shaken()[0], path, kernel=line()).image).all()
