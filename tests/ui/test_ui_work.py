"""What the buttons do: photographs in, results, maps and kernels out, errors in plain words."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from ui_stubs import OFFERS, models, picture

import twofold
from twofold import images
from twofold.contracts import RAIN_REGION, TwofoldError
from twofold.guess import MODELS
from twofold.ui import html, work
from twofold.ui.restoring import Models, Offer, Wishes, offers
from twofold.ui.visits import Limits, Photo, Visit, Visits

LIMITS = Limits(megabytes=3, megapixels=1, photographs=3)


@pytest.fixture
def visit(tmp_path: Path) -> Visit:
    folder = tmp_path / "visit"
    folder.mkdir()
    return Visit("token", folder)


def added(visit: Visit, tmp_path: Path, name: str = "a.png", image: Image.Image | None = None, **options: Any) -> Photo:
    path = tmp_path / name
    (image or picture()).save(path, **options)
    return work.receive(visit, path, name, LIMITS)


def go(done: int, total: int) -> None:
    pass


def test_a_photograph_comes_back_in_its_format_with_exif_and_profile(visit: Visit, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010E] = "a wet day"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    photo = added(visit, tmp_path, "wet.jpg", exif=exif.tobytes(), icc_profile=profile)
    work.restore_photograph(photo, models(), "dry", Wishes(), progress=go)
    assert photo.restored is not None
    assert work.download_name(photo) == "wet-restored.jpg"
    with Image.open(photo.restored) as restored:
        assert restored.format == "JPEG"
        assert restored.getexif()[0x010E] == "a wet day"
        assert restored.info["icc_profile"] == profile
        assert restored.size == (32, 24)


def test_sixteen_bits_stay_sixteen_and_another_format_may_be_chosen(visit: Visit, tmp_path: Path) -> None:
    deep = np.random.default_rng(0).integers(0, 65536, (9, 11, 3), np.uint16)
    path = tmp_path / "deep.png"
    images.write(path, images.from_any(deep))
    photo = work.receive(visit, path, path.name, LIMITS)
    work.restore_photograph(photo, models(), "bright", Wishes(), progress=go)
    assert photo.restored is not None
    restored = images.read(photo.restored)
    assert restored.bits == 16
    assert torch.equal(
        restored.pixels,
        ((images.from_any(deep).pixels + (1 - images.from_any(deep).pixels) * 0.5) * 65535).round() / 65535,
    )
    work.restore_photograph(photo, models(), "bright", Wishes(), suffix=".webp", progress=go)
    assert [file.name for file in photo.folder.glob("restored*")] == ["restored.webp"]
    assert work.download_name(photo) == "deep-restored.webp"


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("broken.jpg", b"\xff\xd8\xff not a photograph", "broken.jpg: cannot be decoded"),
        ("empty.png", b"", "empty.png: the file is empty"),
        ("notes.txt", b"hello", "notes.txt: not a JPEG"),
        ("../../up.png", b"hello", "up.png: not a JPEG"),
        ("large.png", b"x" * 3_600_000, "large.png: 4 MB, the limit of this page is 3 MB"),
    ],
)
def test_what_is_no_photograph_is_named_and_leaves_nothing(
    visit: Visit, tmp_path: Path, name: str, content: bytes, reason: str
) -> None:
    path = tmp_path / "upload"
    path.write_bytes(content)
    with pytest.raises(TwofoldError) as caught:
        work.receive(visit, path, name, LIMITS)
    assert str(caught.value).startswith(reason)
    assert str(tmp_path) not in str(caught.value)
    assert not list(visit.folder.iterdir())
    assert not visit.photos


def test_too_many_pixels_and_too_many_photographs_are_refused(visit: Visit, tmp_path: Path) -> None:
    with pytest.raises(TwofoldError, match="megapixels, the limit of this page is 1"):
        added(visit, tmp_path, image=Image.new("RGB", (1200, 1000)))
    for number in range(LIMITS.photographs):
        added(visit, tmp_path, f"{number}.png")
    with pytest.raises(TwofoldError, match="holds 3 photographs at once"):
        added(visit, tmp_path)
    visit.remove(next(iter(visit.photos)))
    added(visit, tmp_path)


def test_removing_the_photograph_in_view_shows_another(visit: Visit, tmp_path: Path) -> None:
    first, second = (added(visit, tmp_path, name) for name in ("a.png", "b.png"))
    visit.current = first.number
    visit.remove(first.number)
    assert visit.current == second.number
    assert not first.folder.exists()
    visit.remove(second.number)
    assert visit.current == 0
    visit.remove(99)


def test_an_error_of_the_model_names_the_photograph_and_not_the_server(visit: Visit, tmp_path: Path) -> None:
    photo = added(visit, tmp_path)
    photo.upload.write_bytes(b"gone bad")
    with pytest.raises(TwofoldError, match=r"^a\.png: not a JPEG"):
        work.restore_photograph(photo, models(), "dry", Wishes(), progress=go)


def test_strokes_change_the_map_where_they_are_and_nowhere_else(visit: Visit, tmp_path: Path) -> None:
    photo = added(visit, tmp_path, image=picture(1200 // 8 * 8, 800))
    values = torch.rand(1, 1, photo.height, photo.width, generator=torch.Generator().manual_seed(0)) * 0.5
    work.keep_map(photo, values, RAIN_REGION, "dry")
    shown = work.shown_map(photo)
    assert max(shown.shape) == work.EDITOR, "as large as the editor shows, not as the photograph"
    assert torch.equal(work.painted_map(photo, shown), values)
    drawn = np.dstack([shown, np.full(shown.shape[:2], 255, np.uint8)])
    drawn[:200] = 255
    painted = work.painted_map(photo, drawn)
    scale = photo.height / shown.shape[0]
    edge = int(200 * scale)
    assert (painted[..., : edge - 4, :] == 1).all()
    assert torch.equal(painted[..., edge + 4 :, :], values[..., edge + 4 :, :])


def test_a_painted_map_is_what_the_model_gets(visit: Visit, tmp_path: Path) -> None:
    photo, made = added(visit, tmp_path), models()
    work.restore_photograph(photo, made, "dry", Wishes(strength=0.5), progress=go)
    drawn = work.shown_map(photo)
    assert np.abs(drawn / 255 - 0.125).max() < 1 / 255, "the map as it was used, strength included"
    drawn[:, :16] = 255
    guidance = work.painted_map(photo, drawn)
    work.restore_photograph(photo, made, "dry", Wishes(guidance=guidance), progress=go)
    assert torch.equal(made["dry"].calls[-1]["guidance"], guidance)  # type: ignore[attr-defined]
    assert photo.restored is not None
    left, right = images.read(photo.restored).pixels.split(16, 3)
    assert (left == 1).all(), "all white under white"
    assert right.mean() < 0.9
    assert photo.painted


def test_an_uploaded_map_is_resized_and_must_have_the_proportions(visit: Visit, tmp_path: Path) -> None:
    photo = added(visit, tmp_path)
    path = tmp_path / "map.png"
    Image.new("L", (64, 48), 51).save(path)
    work.uploaded_map(photo, path, "map.png", RAIN_REGION, "dry")
    values = torch.from_numpy(np.load(photo.folder / "map.npy"))
    assert values.shape == (24, 32)
    assert values.mean().item() == pytest.approx(0.2)
    Image.new("L", (48, 64)).save(path)
    with pytest.raises(TwofoldError, match=r"map\.png: 48 x 64 pixels do not have the proportions"):
        work.uploaded_map(photo, path, "map.png", RAIN_REGION, "dry")
    path.write_bytes(b"x")
    with pytest.raises(TwofoldError, match=r"^map\.png: not a JPEG"):
        work.uploaded_map(photo, path, "map.png", RAIN_REGION, "dry")


def test_a_kernel_is_searched_for_once_in_each_size(visit: Visit, tmp_path: Path) -> None:
    photo, made = added(visit, tmp_path), models()
    calls = made["sharp"].calls  # type: ignore[attr-defined]
    work.restore_photograph(photo, made, "sharp", Wishes(kernel=9), progress=go)
    assert calls[-1]["kernel"].size == 9
    assert photo.confidence == 0.8
    work.restore_photograph(photo, made, "sharp", Wishes(kernel=9, strength=0.5), progress=go)
    assert calls[-1]["kernel"] == photo.folder / "kernel.png"
    assert photo.confidence == 0.8
    work.restore_photograph(photo, made, "sharp", Wishes(kernel=11, noise_level=0.03), progress=go)
    assert calls[-1]["kernel"].size == 11
    assert calls[-1]["guidance"] == 0.03
    given = tmp_path / "kernel.txt"
    work.restore_photograph(photo, made, "sharp", Wishes(kernel=given), progress=go)
    assert calls[-1]["kernel"] == given


def test_the_zip_holds_what_was_restored_under_names_of_its_own(visit: Visit, tmp_path: Path) -> None:
    photos = [added(visit, tmp_path, "same.png") for _ in range(3)]
    for photo in photos[:2]:
        work.restore_photograph(photo, models(), "bright", Wishes(), progress=go)
    with zipfile.ZipFile(io.BytesIO(work.zip_of(visit.photos.values()))) as archive:
        assert archive.namelist() == ["same-restored.png", "same-restored-2.png"]
        assert archive.testzip() is None


def test_names_of_files_cannot_add_to_the_page(visit: Visit, tmp_path: Path) -> None:
    name = "<img src=x onerror=alert(1)>\"'.png"
    path = tmp_path / "a.png"
    picture().save(path)
    photo = work.receive(visit, path, name, LIMITS)
    work.restore_photograph(photo, models(), "dry", Wishes(), progress=go)
    whole = html.strip(visit, 1) + html.compare(visit, photo) + html.downloads(visit, photo) + html.status(name, [name])
    assert "<img src=x" not in whole
    assert whole.count("onerror=alert(1)") == whole.count("&lt;img src=x onerror=alert(1)&gt;&quot;&#x27;")


def test_the_shipped_models_are_offered_under_the_tasks_of_their_cards() -> None:
    made = Models()
    assert set(offers()) == {name for task in made.tasks() for name in made.of_task(task)}
    assert list(made.tasks())[:2] == ["rain", "haze"]
    assert made.of_task("rain")[0] == "derain"
    for task in made.tasks():
        trained = [made.shipped[name].trained for name in made.of_task(task)]
        assert made.of_task(task)[0] in MODELS.values() or trained == sorted(trained, reverse=True)


def test_a_task_that_the_page_does_not_know_is_called_by_its_name() -> None:
    made = Models({**OFFERS, "x": Offer("x", "snow", "snow")}, lambda name: models()["dry"])
    assert made.tasks()["snow"] == "Snow"
    assert made.of_task("snow") == ["x"]


def test_the_page_restores_as_the_library_does(visit: Visit, tmp_path: Path, guided_model: Path) -> None:
    photo = added(visit, tmp_path)
    model = twofold.load(guided_model)
    made = Models({"tiny": OFFERS["dry"]}, {"tiny": model}.__getitem__)
    work.restore_photograph(photo, made, "tiny", Wishes(strength=0.7), progress=go)
    assert photo.restored is not None
    expected = model(images.read(tmp_path / "a.png").pixels, strength=0.7)
    difference = images.read(photo.restored).pixels - expected.image.clamp(0, 1)
    assert difference.abs().max() <= 0.5 / 255 + 1e-6
    assert expected.guidance is not None
    kept = torch.from_numpy(np.load(photo.folder / "map.npy"))
    assert torch.equal(kept, expected.guidance[0, 0])


def test_visits_hold_no_pictures_in_memory(tmp_path: Path) -> None:
    visits = Visits(LIMITS)
    try:
        visit = visits.of("one")
        photo = added(visit, tmp_path)
        work.restore_photograph(photo, models(), "dry", Wishes(), progress=go)
        assert not [name for name, value in vars(photo).items() if isinstance(value, (torch.Tensor, np.ndarray))]
    finally:
        visits.close()
