"""The audit finds what is wrong, and only that."""

import io

import pytest
import torch
from PIL import Image, ImageEnhance
from skimage import data

from twofold.contracts import DataError
from twofold.data.audit import Finding, audit, faults, fingerprint, leaks, shift
from twofold.data.digests import copies
from twofold.data.pairs import Pair, find_pairs
from twofold.degrade.additive import RainStreaks
from twofold.images import from_any


@pytest.fixture(scope="module")
def scenes():
    """Four photographs that come with scikit-image."""
    return [
        Image.fromarray(make()[:300, :400, :3]) for make in (data.coffee, data.chelsea, data.astronaut, data.rocket)
    ]


@pytest.fixture
def pair(tmp_path, scenes):
    """`pair("1", observed, clean)` writes both below input/ and target/."""

    def write(name, observed, clean):
        for side, picture in (("input", observed), ("target", clean)):
            (tmp_path / side).mkdir(exist_ok=True)
            picture.save(tmp_path / side / f"{name}.png")
        return Pair(tmp_path / "input" / f"{name}.png", tmp_path / "target" / f"{name}.png", name)

    return write


def jpeg(picture):
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=40)
    return Image.open(file)


def like(one, two):
    return (fingerprint(from_any(one).pixels) * fingerprint(from_any(two).pixels)).sum().item()


CHANGES = {
    "saved anew": jpeg,
    "half as large": lambda p: p.resize((p.width // 2, p.height // 2)),
    "brighter": lambda p: ImageEnhance.Brightness(p).enhance(1.4),
    "grey": lambda p: p.convert("L"),
    "cropped a little": lambda p: p.crop((4, 3, p.width - 4, p.height - 3)),
}


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_a_changed_copy_of_a_scene_is_still_that_scene(scenes, change):
    assert all(like(scene, CHANGES[change](scene)) > 0.85 for scene in scenes)


def test_different_scenes_have_little_in_common(scenes):
    assert all(abs(like(a, b)) < 0.5 for i, a in enumerate(scenes) for b in scenes[:i])


def test_scenes_of_the_test_set_are_found_in_the_training_set_also_when_mirrored(tmp_path, scenes):
    files = {}
    for name, picture in {
        "train0": scenes[0],
        "train1": scenes[1],
        "test0": jpeg(scenes[0]),
        "test1": scenes[1].transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        "test2": scenes[2],
    }.items():
        files[name] = tmp_path / f"{name}.png"
        picture.save(files[name])
    found = leaks([files["train0"], files["train1"]], [files["test0"], files["test1"], files["test2"]])
    assert [(f.kind, f.files) for f in found] == [
        ("same scene", (files["train0"], files["test0"])),
        ("mirrored scene", (files["train1"], files["test1"])),
    ]


def test_good_pairs_have_no_faults_however_hard_it_rains(pair, scenes):
    rain = RainStreaks(density=(1.0, 1.0))
    pairs = []
    for i, scene in enumerate(scenes):
        observed = rain(from_any(scene).pixels, torch.Generator().manual_seed(i)).observed
        wet = Image.fromarray((observed[0].permute(1, 2, 0) * 255).round().byte().numpy())
        pairs.append(pair(str(i), wet, scene))
    assert faults(pairs) == []


def test_swapped_shifted_resized_and_broken_pairs_are_found(pair, scenes):
    pairs = [
        pair("0", scenes[1], scenes[0]),
        pair("1", scenes[0], scenes[1]),
        pair("2", scenes[2].crop((0, 0, 390, 290)), scenes[2].crop((3, 5, 393, 295))),
        pair("3", scenes[3].resize((200, 150)), scenes[3]),
        pair("4", scenes[3], scenes[3]),
    ]
    pairs[4].observed.write_text("no picture")
    kinds = {(finding.kind, finding.files[0].stem) for finding in faults(pairs)}
    assert kinds >= {("partner", "0"), ("partner", "1"), ("shifted", "2"), ("size", "3"), ("unreadable", "4")}
    assert {stem for _, stem in kinds} == {"0", "1", "2", "3", "4"}


@pytest.mark.parametrize(("down", "right"), [(0, 0), (3, -5), (-12, 7)])
def test_a_shift_is_measured_to_the_pixel(scenes, down, right):
    picture = from_any(scenes[0]).pixels
    clean = picture[..., 20:-20, 20:-20]
    observed = picture.roll((down, right), (-2, -1))[..., 20:-20, 20:-20]
    found = shift(observed * 0.3, clean)  # light does not matter
    assert found[:2] == (down, right)
    assert (found[2] > 2) == ((down, right) != (0, 0))


def test_an_audit_counts_and_finds_one_scene_under_two_names_and_on_both_sides(pair, scenes):
    train = [pair("0", scenes[0], scenes[0]), pair("1", scenes[1], scenes[1]), pair("2", scenes[1], scenes[1])]
    test = [pair("3", scenes[0], scenes[0])]
    steps = []
    found = audit(train, test, progress=lambda done, total: steps.append((done, total)))
    assert [(f.kind, f.files[0].stem, f.files[1].stem) for f in found] == [
        ("same scene", "1", "2"),
        ("same scene", "0", "3"),
    ]
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert str(found[0]).startswith("same scene: ")


def test_pictures_of_any_size_can_be_audited(pair):
    tiny = pair("1", Image.new("RGB", (1, 1)), Image.new("RGB", (1, 1)))
    line = pair("2", Image.new("L", (1, 90), 3), Image.new("L", (1, 90), 3))
    assert audit([tiny], [line]) == []


def test_copies_are_files_of_the_same_bytes(tmp_path):
    for name, text in (("a", "one"), ("b", "two"), ("c", "one"), ("d", "longer")):
        (tmp_path / name).write_text(text)
    a, b, c, d = (tmp_path / name for name in "abcd")
    assert copies([b, c, d], [a]) == {c}
    with pytest.raises(DataError, match="cannot be read"):
        copies([tmp_path / "nothing"], [a])


def test_the_twins_of_the_real_rain_set_are_found(shared_data):
    pairs = find_pairs(shared_data / "rain/Rain100", observed="light", clean="clean")
    wanted = [pair for pair in pairs if pair.name in {"008", "047", "010", "069", "001"}]
    found: list[Finding] = faults(wanted)
    assert [tuple(f.stem for f in finding.files) for finding in found] == [("008", "047"), ("010", "069")]
