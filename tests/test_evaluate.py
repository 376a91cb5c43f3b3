"""Evaluation: tables, intervals, the papers' rows, and everything that can be wrong with a folder of pairs."""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from skimage import data
from torch import Tensor

from twofold.contracts import DataError, ImageError, Restored, Sample, TwofoldError
from twofold.evaluate import Evaluation, evaluate, interval, paper_datasets, paper_rows
from twofold.metrics import PROTOCOLS
from twofold.nets.perceptual import DISTANCES, DirectionDistance, FeatureNetwork

RGB = PROTOCOLS["rgb"]


@dataclass(frozen=True)
class Pair:
    observed: Path
    clean: Path
    name: str


def tensors(count: int = 3, size: int = 24) -> list[tuple[str, Sample]]:
    generator = torch.Generator().manual_seed(0)
    clean = torch.randint(256, (count, 1, 3, size, size), generator=generator) / 255
    return [(f"{i}", Sample(image, (image - 0.1 * (i + 1)).clamp(0, 1))) for i, image in enumerate(clean)]


def brighter(observed: Tensor) -> Restored:
    return Restored(observed + 0.05)


def files(folder: Path, count: int = 3) -> list[Pair]:
    photo = data.astronaut()
    pairs = []
    for i in range(count):
        clean = photo[32 * i : 32 * i + 32, :40]
        pair = Pair(folder / f"{i}-observed.png", folder / f"{i}-clean.png", f"scene {i}")
        Image.fromarray(clean // 2).save(pair.observed)
        Image.fromarray(clean).save(pair.clean)
        pairs.append(pair)
    return pairs


def test_every_picture_has_its_score_and_the_inputs() -> None:
    pairs = tensors()
    result = evaluate(brighter, pairs, RGB)
    for row, (name, (clean, observed, *_)) in zip(result.rows, pairs, strict=True):
        after, before = RGB.score(observed + 0.05, clean), RGB.score(observed, clean)
        assert (row.name, row.psnr, row.ssim) == (name, after.psnr.item(), after.ssim.item())
        assert (row.input_psnr, row.input_ssim) == (before.psnr.item(), before.ssim.item())
        assert row.seconds > 0
    assert result.failures == ()


def test_the_kernel_of_a_sample_is_passed_to_the_restorer() -> None:
    def moved(observed: Tensor, *, kernel: Tensor) -> Restored:
        return Restored(observed + kernel)

    cases = [(name, sample._replace(kernel=sample.clean - sample.observed)) for name, sample in tensors()]
    assert all(row.psnr > 100 for row in evaluate(moved, cases, RGB).rows)


def test_means_are_over_pictures() -> None:
    result = evaluate(brighter, tensors(), RGB)
    summary = result.summary()
    assert summary.psnr == pytest.approx(sum(row.psnr for row in result.rows) / 3)
    assert summary.gain == pytest.approx(summary.psnr - summary.input_psnr)
    assert summary.pictures == 3


def test_the_untouched_input_gains_nothing() -> None:
    summary = evaluate(Restored, tensors(), RGB).summary()
    assert (summary.psnr, summary.ssim) == (summary.input_psnr, summary.input_ssim)
    assert (summary.gain, summary.gain_interval) == (0, (0, 0))


def test_the_interval_is_students() -> None:
    values = [30.1, 31.7, 28.4, 33.0, 29.9]
    expected = stats.t.interval(0.95, len(values) - 1, loc=sum(values) / 5, scale=stats.sem(values))
    assert interval(values) == pytest.approx(expected)
    assert interval([30.0]) is None
    assert interval([30.0, math.inf]) is None


def test_the_interval_holds_the_mean_as_often_as_it_says() -> None:
    draws = torch.randn(2000, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    held = [low < 0 < high for low, high in (interval(row) or (1.0, -1.0) for row in draws.tolist())]
    assert sum(held) / len(held) == pytest.approx(0.95, abs=0.02)


def test_files_are_read_and_a_broken_one_costs_only_itself(tmp_path: Path) -> None:
    pairs = files(tmp_path, 5)
    pairs[0].observed.write_bytes(b"")
    pairs[1].clean.unlink()
    Image.fromarray(data.astronaut()[:31, :40]).save(pairs[3].clean)
    result = evaluate(brighter, pairs, RGB)
    assert [row.name for row in result.rows] == ["scene 2", "scene 4"]
    assert [failure.name for failure in result.failures] == ["scene 0", "scene 1", "scene 3"]
    assert "is 40x31 where its observed picture is 40x32" in result.failures[2].error
    assert result.summary().failed == 3
    assert "scene 1" in result.to_markdown()


def test_a_restored_picture_with_nan_is_a_failure_and_never_a_number() -> None:
    def spoils_the_second(observed: Tensor) -> Restored:
        return Restored(observed * math.nan if torch.equal(observed, tensors()[1][1].observed) else observed)

    result = evaluate(spoils_the_second, tensors(), RGB)
    assert [row.name for row in result.rows] == ["0", "2"]
    assert "NaN" in result.failures[0].error


def test_a_restored_picture_of_another_size_is_a_failure() -> None:
    with pytest.raises(DataError, match="one shape"):
        evaluate(lambda observed: Restored(observed[..., 1:]), tensors(), RGB)


def test_a_restorer_that_refuses_a_picture_is_reported() -> None:
    def refuses(observed: Tensor) -> Restored:
        raise ImageError("too dark")

    with pytest.raises(DataError, match="the first of 3: 0: too dark"):
        evaluate(refuses, tensors(), RGB)


def test_a_bug_in_a_restorer_is_not_hidden() -> None:
    def buggy(observed: Tensor) -> Restored:
        raise TypeError("a bug")

    with pytest.raises(TypeError):
        evaluate(buggy, tensors(), RGB)


def test_no_pairs_are_an_error() -> None:
    with pytest.raises(DataError, match="no pairs were given"):
        evaluate(brighter, [], RGB)


def test_restoring_keeps_no_graph() -> None:
    weight = torch.ones((), requires_grad=True)
    seen = []

    def learned(observed: Tensor) -> Restored:
        seen.append(observed * weight)
        return Restored(seen[-1])

    evaluate(learned, tensors(1), RGB)
    assert not seen[0].requires_grad


def channels_apart(seen: list[Tensor]) -> DirectionDistance:
    """Compares the directions of colours; keeps what it was shown."""
    layer = torch.nn.Conv2d(3, 3, 1, bias=False)
    torch.nn.init.dirac_(layer.weight)
    network = FeatureNetwork(torch.nn.Sequential(layer), mean=(0, 0, 0), deviation=(1, 1, 1), smallest=1)
    network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    return DirectionDistance(network, (0,), heads=[torch.ones(3)], name="colours")


def test_a_distance_is_of_rgb_pictures_as_the_protocol_writes_them() -> None:
    seen: list[Tensor] = []
    cases = tensors(2)
    result = evaluate(brighter, cases, PROTOCOLS["y-matlab"], distance=channels_apart(seen))
    assert len(seen) == 8  # both pictures of two comparisons of two pairs
    for picture in seen:
        assert picture.shape == (1, 3, 24, 24)
        assert torch.equal((picture * 255).round(), picture * 255)
        assert 0 <= picture.min() <= picture.max() <= 1
    summary, row = result.summary(), result.rows[0]
    assert result.perceptual == "colours"
    assert row.perceptual is not None
    assert summary.perceptual == pytest.approx(sum(r.perceptual or 0 for r in result.rows) / 2)
    assert summary.input_perceptual is not None
    assert 0 < row.perceptual != row.input_perceptual
    assert "| `colours`, less is nearer |" in result.to_markdown()
    assert json.loads(result.to_json())["summary"]["perceptual"] == summary.perceptual


def test_without_a_network_no_distance_is_reported() -> None:
    result = evaluate(brighter, tensors(2), RGB)
    assert (result.perceptual, result.rows[0].perceptual, result.summary().perceptual) == ("", None, None)
    assert "less is nearer" not in result.to_markdown()


def test_every_protocol_names_a_known_distance() -> None:
    assert {protocol.perceptual for protocol in PROTOCOLS.values()} <= set(DISTANCES)


def test_progress_is_reported_after_every_image() -> None:
    calls: list[tuple[int, int | None]] = []
    evaluate(brighter, tensors(), RGB, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 3), (2, 3), (3, 3)]
    calls.clear()
    evaluate(brighter, iter(tensors(2)), RGB, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, None), (2, None)]


def test_json_has_summary_and_protocol_and_survives_a_perfect_picture() -> None:
    pairs = tensors()
    pairs.append(("same", Sample(pairs[0][1].clean, pairs[0][1].clean)))
    text = evaluate(Restored, pairs, RGB, model="identity", dataset="rain100l").to_json()

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    content = json.loads(text, parse_constant=refuse)
    assert next(iter(content)) == "model"
    assert content["protocol"]["name"] == "rgb"
    assert content["summary"]["pictures"] == 4
    assert float(content["images"][3]["psnr"]) == math.inf
    assert content["summary"]["psnr_interval"] is None
    assert [row["method"] for row in content["papers"]][-1] == "IRHG"


def test_markdown_shows_the_floor_and_the_papers_rows() -> None:
    text = evaluate(brighter, tensors(), PROTOCOLS["lol-rgb-gtmean"], model="brighter", dataset="LOL").to_markdown()
    assert "| untouched input |" in text
    assert "scaled to the mean of the clean one" in text
    assert "| RetinexNet | 16.3076 | 0.4362 | 0.4997 |" in text
    assert "not stated" in text
    assert "comparable only on the same" in text
    assert "scaled to" not in evaluate(brighter, tensors(), PROTOCOLS["lol-rgb"]).to_markdown()


def test_a_clean_file_that_is_a_little_larger_counts_by_its_middle(tmp_path: Path) -> None:
    (pair,) = files(tmp_path, 1)
    with Image.open(pair.clean) as clean:
        expected = evaluate(brighter, [pair], RGB).rows[0].psnr
        larger = np.pad(np.asarray(clean), ((1, 1), (2, 2), (0, 0)))
    Image.fromarray(larger).save(pair.clean)
    assert evaluate(brighter, [pair], RGB).rows[0].psnr == pytest.approx(expected)


@pytest.mark.parametrize("name", ["result.json", "result.md"])
def test_a_result_is_written_whole_or_not_at_all(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    result = evaluate(brighter, tensors(), RGB)
    path = tmp_path / name
    path.write_text("before")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(TwofoldError, match=f"cannot write .*{name}: No space left"):
            result.write(path)
    assert [entry.name for entry in tmp_path.iterdir()] == [name]
    assert path.read_text() == "before"
    result.write(path)
    assert path.read_text() == (result.to_markdown() if name.endswith("md") else result.to_json())


def test_the_papers_numbers_are_as_printed() -> None:
    assert len(paper_datasets()) == 13
    assert sum(len(paper_rows(dataset)) for dataset in paper_datasets()) == 204
    hyper = {row.setting: row.psnr for row in paper_rows("Levin") if row.method == "hyper-training"}
    assert hyper["noise 0.6 %"] == 33.74
    best = next(row for row in paper_rows("UIEB") if row.method == "HBLALS")
    assert (best.psnr, best.ssim, best.lpips) == (23.0009, 0.8630, 0.0822)
    assert all(row.protocol in ("", *PROTOCOLS) for dataset in paper_datasets() for row in paper_rows(dataset))


def test_an_unknown_data_set_names_the_nearest() -> None:
    with pytest.raises(DataError, match="did you mean 'Rain100H'"):
        paper_rows("rain200h")
    with pytest.raises(DataError, match="known: "):
        evaluate(brighter, tensors(), RGB, dataset="zzz")


def test_one_picture_has_no_interval() -> None:
    result: Evaluation = evaluate(brighter, tensors(1), RGB)
    assert result.summary().psnr_interval is None
    assert json.loads(result.to_json())["summary"]["psnr_interval"] is None
    assert " … " not in result.to_markdown()
