"""Official checkpoints, deepinv's interfaces and spandrel's state dicts: the arithmetic survives the move."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tiny_models import TINY, untrained
from twofold import interchange, specs, zoo
from twofold.cli.app import run_command_line
from twofold.contracts import TwofoldError, WeightsError
from twofold.nets.fourier import convolve, psf2otf


def published_prenet() -> dict[str, Tensor]:
    """The names and shapes of the official files `net_latest.pth`: 32 entries, 168,963 numbers."""
    shapes: dict[str, tuple[int, ...]] = {"conv0.0": (32, 6, 3, 3), "conv.0": (3, 32, 3, 3)}
    shapes |= {f"res_conv{block}.{layer}": (32, 32, 3, 3) for block in range(1, 6) for layer in (0, 2)}
    shapes |= {f"conv_{gate}.0": (32, 64, 3, 3) for gate in "ifgo"}
    return filled(shapes)


def published_griddehazenet(
    width: int = 16, rows: int = 3, columns: int = 6, dense: int = 4, growth: int = 16
) -> dict[str, Tensor]:
    """The names and shapes of the official files `indoor_haze_best_3_6`, saved from several graphics cards."""
    shapes: dict[str, tuple[int, ...]] = {"conv_in": (width, 3, 3, 3), "conv_out": (3, width, 3, 3)}
    blocks = {"rdb_in": width, "rdb_out": width}
    for row in range(rows):
        wide = width * 2**row
        blocks |= {f"rdb_module.{row}_{column}": wide for column in range(columns - 1)}
        for column in range(columns // 2 if row < rows - 1 else 0):
            shapes[f"downsample_module.{row}_{column}.conv1"] = (wide, wide, 3, 3)
            shapes[f"downsample_module.{row}_{column}.conv2"] = (2 * wide, wide, 3, 3)
            up = f"upsample_module.{row}_{columns // 2 + column}"
            shapes |= {f"{up}.deconv": (2 * wide, 2 * wide, 3, 3), f"{up}.conv": (wide, 2 * wide, 3, 3)}
    for block, wide in blocks.items():
        for layer in range(dense):
            shapes[f"{block}.residual_dense_layers.{layer}.conv"] = (growth, wide + layer * growth, 3, 3)
        shapes[f"{block}.conv_1x1"] = (wide, wide + dense * growth, 1, 1)
    state = filled(shapes)
    state["coefficient"] = 1 + 0.1 * torch.randn(rows, columns, 2, width * 2 ** (rows - 1))
    return {f"module.{name}": value for name, value in state.items()}


def filled(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    torch.manual_seed(0)
    state = {}
    for name, shape in shapes.items():
        state[f"{name}.weight"] = torch.randn(shape) / (shape[1] * shape[2] * shape[3]) ** 0.5
        state[f"{name}.bias"] = 0.1 * torch.randn(shape[1] if "deconv" in name else shape[0])
    return state


def prenet(state: dict[str, Tensor], observed: Tensor) -> Tensor:
    """PReNet as published (Ren et al. 2019, §3), six times, written from the names of its layers."""

    def layer(name: str, x: Tensor) -> Tensor:
        return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], padding=1)

    x = observed
    hidden = cell = observed.new_zeros(1, 32, *observed.shape[-2:])
    for _ in range(6):
        both = torch.cat([layer("conv0.0", torch.cat([observed, x], 1)).relu(), hidden], 1)
        gate_in, forget, new, out = (layer(f"conv_{gate}.0", both) for gate in "ifgo")
        cell = forget.sigmoid() * cell + gate_in.sigmoid() * new.tanh()
        x = hidden = out.sigmoid() * cell.tanh()
        for block in range(1, 6):
            inner = layer(f"res_conv{block}.2", layer(f"res_conv{block}.0", x).relu()).relu()
            x = (inner + x).relu()
        x = layer("conv.0", x) + observed
    return x


def griddehazenet(state: dict[str, Tensor], observed: Tensor, rows: int, columns: int) -> Tensor:
    """GridDehazeNet as published (Liu et al. 2019, §3), node by node of its grid, from the names of its layers."""

    def layer(name: str, x: Tensor, **how: Any) -> Tensor:
        side = state[f"{name}.weight"].shape[-1]
        return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], padding=side // 2, **how)

    def block(name: str, x: Tensor) -> Tensor:
        features, number = x, 0
        while f"{name}.residual_dense_layers.{number}.conv.weight" in state:
            new = layer(f"{name}.residual_dense_layers.{number}.conv", features).relu()
            features, number = torch.cat([features, new], 1), number + 1
        return x + layer(f"{name}.conv_1x1", features)

    def down(name: str, x: Tensor) -> Tensor:
        return layer(f"{name}.conv2", layer(f"{name}.conv1", x, stride=2).relu()).relu()

    def up(name: str, x: Tensor, like: Tensor) -> Tensor:
        weight, bias = state[f"{name}.deconv.weight"], state[f"{name}.deconv.bias"]
        extra = [want - (2 * have - 1) for want, have in zip(like.shape[-2:], x.shape[-2:], strict=True)]
        grown = F.conv_transpose2d(x, weight, bias, stride=2, padding=1, output_padding=extra).relu()
        return layer(f"{name}.conv", grown).relu()

    def joined(row: int, column: int, along: Tensor, across: Tensor) -> Tensor:
        first, second = state["coefficient"][row, column, :, : along.shape[1], None, None]
        return first * along + second * across

    node: dict[tuple[int, int], Tensor] = {(0, 0): block("rdb_in", layer("conv_in", (observed - 0.5) / 0.5))}
    for row in range(1, rows):
        node[row, 0] = down(f"downsample_module.{row - 1}_0", node[row - 1, 0])
    for column in range(1, columns):
        left = column < columns // 2
        for row in range(rows) if left else reversed(range(rows)):
            along = block(f"rdb_module.{row}_{column - 1}", node[row, column - 1])
            if left and row:
                along = joined(row, column, along, down(f"downsample_module.{row - 1}_{column}", node[row - 1, column]))
            if not left and row < rows - 1:
                name = f"upsample_module.{row}_{column}"
                along = joined(row, column, along, up(name, node[row + 1, column], along))
            node[row, column] = along
    return layer("conv_out", block("rdb_out", node[0, columns - 1])).relu()


def test_the_official_prenet_is_imported_and_restores_the_same(tmp_path: Path) -> None:
    state = published_prenet()
    assert len(state) == 32
    assert sum(value.numel() for value in state.values()) == 168_963
    torch.save(state, tmp_path / "net_latest.pth")
    assert run_command_line(["import", str(tmp_path / "net_latest.pth"), str(tmp_path / "mine.safetensors")]) == 0
    observed = torch.rand(1, 3, 20, 17)
    with torch.no_grad():
        restored = zoo.load_restorer(tmp_path / "mine.safetensors")(observed).image
    torch.testing.assert_close(restored, prenet(state, observed), rtol=1e-4, atol=1e-4)


def test_the_official_griddehazenet_is_imported_and_restores_the_same(tmp_path: Path) -> None:
    state = published_griddehazenet()
    assert sum(value.numel() for value in state.values()) == 958_051
    torch.save(state, tmp_path / "indoor_haze_best_3_6")
    spec = interchange.import_weights(tmp_path / "indoor_haze_best_3_6", tmp_path / "mine.safetensors")
    assert spec.net == specs.GridDehazeSpec()
    observed = torch.rand(1, 3, 21, 34)
    with torch.no_grad():
        restored = zoo.load_restorer(tmp_path / "mine.safetensors")(observed).image
    bare = {name.removeprefix("module."): value for name, value in state.items()}
    torch.testing.assert_close(restored, griddehazenet(bare, observed, 3, 6), rtol=1e-4, atol=1e-4)


def test_settings_are_read_from_the_shapes() -> None:
    state = published_griddehazenet(width=8, rows=2, columns=4, dense=3, growth=6)
    spec, _ = interchange.published_network({name.removeprefix("module."): value for name, value in state.items()})
    assert spec.net == specs.GridDehazeSpec(width=8, rows=2, columns=4, dense=3, growth=6)


def test_a_checkpoint_in_a_wrapper_is_found(tmp_path: Path) -> None:
    torch.save({"params": {}, "params_ema": published_prenet(), "iteration": 7}, tmp_path / "wrapped.pth")
    assert len(interchange.read_checkpoint(tmp_path / "wrapped.pth")) == 32


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda s: s.pop("res_conv3.0.bias"), "lacks res_conv3.0.bias"),
        (lambda s: s.update({"conv_z.0.weight": torch.ones(1)}), "GRU variant"),
        (lambda s: [s.pop(k) for k in [*s] if k.startswith(("conv_i", "conv_f", "conv_g", "conv_o"))], "is a PRN"),
        (lambda s: [s.pop(k) for k in [*s] if k.startswith("res_conv") and not k.startswith("res_conv1")], "PReNet_r"),
        (lambda s: s.update({"conv0.0.weight": torch.ones(32, 3, 3, 3)}), r"should be \(32, 6, 3, 3\)"),
        (lambda s: s.update({"more.weight": torch.ones(1)}), "33 entries, 32 expected"),
        (lambda s: [s.pop(k) for k in [*s] if k != "conv.0.bias"], "unknown network"),
    ],
)
def test_another_network_is_refused_with_what_was_seen(change: Any, reason: str) -> None:
    state = published_prenet()
    change(state)
    with pytest.raises(WeightsError, match=reason):
        interchange.published_network(state)


class Harmful:
    def __reduce__(self) -> Any:
        return print, ("code of the file was run",)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"weight": Harmful()}, tmp_path / "harmful.pth")
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(Harmful()))
    for name in ("harmful.pth", "bare.pth"):
        assert run_command_line(["import", str(tmp_path / name), str(tmp_path / "out.safetensors")]) == 1
    printed = capsys.readouterr()
    assert "code of the file was run" not in printed.out
    assert "could run code, so it is not loaded" in printed.err
    assert not (tmp_path / "out.safetensors").exists()


def test_what_is_no_checkpoint_says_so(tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text("no weights")
    torch.save({"loss": 0.5}, tmp_path / "number.pth")
    for name, reason in (
        ("text.pth", "cannot be read|more than tensors"),
        ("number.pth", "no state dict"),
        ("a", "no file"),
    ):
        with pytest.raises(WeightsError, match=reason):
            interchange.read_checkpoint(tmp_path / name)


DEBLUR = specs.GuidedSpec(
    guidance="noise_level",
    channels=1,
    guide=specs.GuideSpec(width=8),
    net=specs.DeconvolutionSpec(stages=2, unet=specs.UNetSpec(widths=[4, 8], blocks=[1, 1])),
)


def physics(kernel: Tensor | None, sigma: float | None, grow: int = 0) -> Any:
    """What deepinv's blur physics offers: the filter, the noise, the adjoint, whose size is that of the picture."""
    noise = SimpleNamespace(**({} if sigma is None else {"sigma": sigma}))
    return SimpleNamespace(filter=kernel, noise_model=noise, A_adjoint=lambda y: F.pad(y, [grow] * 4))


def test_a_reconstructor_for_deepinv_takes_kernel_and_noise_from_the_physics(tmp_path: Path) -> None:
    restorer = zoo.load_restorer(untrained(DEBLUR, tmp_path / "deblur.safetensors"))
    model = interchange.as_deepinv(restorer)
    y, kernel = torch.rand(2, 3, 24, 28), torch.rand(1, 1, 5, 5)
    kernel /= kernel.sum()
    with torch.no_grad():
        restored = model(y, physics(kernel, 0.05))
        one = restorer(y[:, 1:2], kernel=kernel, guidance=torch.full((2, 1, 24, 28), 0.05)).image
    torch.testing.assert_close(restored[:, 1:2], one)
    assert model(y, physics(kernel, None, grow=2)).shape == (2, 3, 28, 32)
    with pytest.raises(TwofoldError, match="no filter"):
        model(y, SimpleNamespace())


def test_a_reconstructor_undoes_the_blur_of_the_shipped_model() -> None:
    generator = torch.Generator().manual_seed(0)
    clean = F.avg_pool2d(torch.rand(1, 1, 72, 72, generator=generator), 9, 1, 4).contiguous()
    clean = (clean > clean.median()).float() * 0.6 + 0.2
    kernel = torch.full((1, 1, 1, 5), 0.2)
    y = convolve(clean, psf2otf(kernel, (72, 72))) + 0.01 * torch.randn(clean.shape, generator=generator)
    with torch.no_grad():
        restored = interchange.as_deepinv("deblur")(y, physics(kernel, 0.01))
    inside = (..., slice(8, -8), slice(8, -8))
    assert (restored - clean)[inside].square().mean() < 0.5 * (y - clean)[inside].square().mean()


def test_a_denoiser_for_deepinv_is_steered_by_sigma_and_differentiable(tmp_path: Path) -> None:
    restorer = zoo.load_restorer(untrained(DEBLUR, tmp_path / "deblur.safetensors"))
    model = interchange.as_deepinv_denoiser(restorer)
    x = torch.rand(2, 3, 16, 20, requires_grad=True)
    number, vector = model(x, 0.1), model(x, torch.tensor([0.1, 0.1]))
    torch.testing.assert_close(number, vector)
    torch.testing.assert_close(number, model(x, torch.full((2, 1, 16, 20), 0.1)))
    assert not torch.allclose(number, model(x, torch.tensor([0.1, 0.3])))
    number.sum().backward()
    assert x.grad is not None
    assert x.grad.abs().min() > 0


def test_a_model_for_rain_is_no_denoiser(guided_model: Path) -> None:
    with pytest.raises(TwofoldError, match="no denoiser"):
        interchange.as_deepinv_denoiser(guided_model)
    y = torch.rand(1, 3, 9, 7)
    with torch.no_grad():
        assert interchange.as_deepinv(guided_model)(y, SimpleNamespace()).shape == y.shape


def test_deepinvs_own_classes_are_the_base_where_it_is_installed(guided_model: Path) -> None:
    models = pytest.importorskip("deepinv.models", reason="deepinv, or torchvision which it needs, is not installed")
    assert isinstance(interchange.as_deepinv(guided_model), models.Reconstructor)


def test_a_state_dict_says_which_model_it_is(tmp_path: Path, guided_model: Path) -> None:
    out = tmp_path / "for-spandrel.safetensors"
    assert run_command_line(["export", str(out), "--model", str(guided_model)]) == 0
    from safetensors.torch import load_file

    state = load_file(out)
    assert all(name == interchange.SPEC_ENTRY or name.startswith("twofold.") for name in state)
    observed = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        again, original = interchange.from_spandrel_state(state)(observed), zoo.load_restorer(guided_model)(observed)
    torch.testing.assert_close(again.image, original.image)
    with pytest.raises(WeightsError, match="does not say which model"):
        interchange.from_spandrel_state(published_prenet())
    with pytest.raises(WeightsError, match="do not fit"):
        interchange.from_spandrel_state({interchange.SPEC_ENTRY: state[interchange.SPEC_ENTRY]})


def test_spandrel_loads_it(tmp_path: Path, guided_model: Path) -> None:
    spandrel = pytest.importorskip("spandrel", reason="spandrel, or torchvision which it needs, is not installed")
    spec, restorer = interchange.specified_restorer(guided_model)
    interchange.register_with_spandrel()
    interchange.register_with_spandrel()  # twice is once
    found = spandrel.ModelLoader().load_from_state_dict(interchange.spandrel_state(restorer, spec))
    observed = torch.rand(1, 3, 17, 16)
    assert found.architecture.id == "twofold"
    assert found.scale == 1
    assert found(observed).shape == observed.shape
    assert TINY.kind == "unet"
