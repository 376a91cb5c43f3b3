"""Pairs on disk: every layout of the field is found, mismatches are named, splits keep scenes apart."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from twofold.contracts import DataError
from twofold.data.manifest import read_manifest, write_manifest
from twofold.data.pairs import Pair, every, find_pairs, middle, read_pair, recognised


def folder(root: Path, *names: str) -> Path:
    """Small pictures, no two alike."""
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 8), (number % 256, number // 256, 7)).save(path)
    return root


def names(pairs: list[Pair]) -> list[tuple[str, str]]:
    return [(pair.observed.name, pair.clean.name) for pair in pairs]


@pytest.mark.parametrize(
    ("layout", "observed", "clean"),
    [
        ("paired", "input/1.png", "target/1.png"),
        ("paired", "lq/1.png", "gt/1.png"),
        ("paired", "LQ/1.png", "GT/1.png"),
        ("paired", "observed/1.jpg", "clean/1.png"),
        ("LOL", "low/1.png", "high/1.png"),
        ("LOL-v2", "Low/low00001.png", "Normal/normal00001.png"),
        ("paired", "heavy/1.png", "clean/1.png"),
        ("Rain100", "rainy/rain-001.png", "norain/norain-001.png"),
        ("Rain100", "rain/rain-001.png", "norain/norain-001.png"),
        ("Rain100", "rain/rain-001.png", "gt/norain-001.png"),
        ("Rain100", "rainy/rain-001.png", "norain-001.png"),
        ("Rain100", "rain-001.png", "norain-001.png"),
        ("paired", "input/rain-001.png", "target/norain-001.png"),
        ("Rain1400", "rainy_image/901_14.jpg", "ground_truth/901.jpg"),
        ("RESIDE", "hazy/1400_1.png", "clear/1400.png"),
        ("RESIDE", "hazy/1400_1.png", "gt/1400.png"),
        ("RESIDE", "hazy/0025_0.8_0.04.jpg", "clear/0025.jpg"),
        ("RESIDE", "hazy/1_1_0.9.png", "GT/1_1_0.9.png"),
        ("RESIDE", "hazy/10_3.jpg", "clear/10.jpg"),
        ("RESIDE", "hazy/IMG_7_20.jpg", "clear/IMG_7_RGB.jpg"),
        ("RESIDE", "hazy/01_outdoor_hazy.jpg", "GT/01_outdoor_GT.jpg"),
        ("UIEB", "raw-890/12_img_.png", "reference-890/12_img_.png"),
        ("EUVP", "trainA/n01.jpg", "trainB/n01.jpg"),
    ],
)
def test_every_layout_of_the_field_is_recognised(tmp_path, layout, observed, clean):
    folder(tmp_path, observed, clean)
    assert recognised(tmp_path)[1].name == layout
    assert names(find_pairs(tmp_path)) == [(Path(observed).name, Path(clean).name)]


@pytest.mark.parametrize("below", ["our485", "Train", "Real_captured/Train", "test/Rain100H", "RESIDE-IN/train"])
def test_the_only_set_below_a_folder_is_found(tmp_path, below):
    folder(tmp_path, f"{below}/input/1.png", f"{below}/target/1.png")
    assert find_pairs(tmp_path) == find_pairs(tmp_path / below)


def test_training_and_test_halves_are_never_chosen_silently(tmp_path):
    folder(tmp_path, *(f"{half}/{side}/1.png" for half in ("our485", "eval15") for side in ("low", "high")))
    with pytest.raises(DataError, match=r"2 sets of pairs.*eval15: low \+ high.*our485: low \+ high"):
        find_pairs(tmp_path)


def test_two_kinds_of_rain_over_one_clean_folder_must_be_named(tmp_path):
    folder(tmp_path, "light/1.png", "heavy/1.png", "clean/1.png")
    with pytest.raises(DataError, match=r"light \+ clean.*heavy \+ clean"):
        find_pairs(tmp_path)
    assert find_pairs(tmp_path, observed="heavy", clean="clean")[0].observed == tmp_path / "heavy/1.png"


def test_one_clean_picture_serves_many_observed_ones_sorted_by_name(tmp_path):
    folder(tmp_path, *(f"rainy_image/{i}_{j}.jpg" for i in (901, 902) for j in (1, 2)))
    folder(tmp_path, "ground_truth/901.jpg", "ground_truth/902.jpg")
    assert names(find_pairs(tmp_path)) == [
        ("901_1.jpg", "901.jpg"),
        ("901_2.jpg", "901.jpg"),
        ("902_1.jpg", "902.jpg"),
        ("902_2.jpg", "902.jpg"),
    ]


def test_a_flat_folder_leaves_maps_and_streaks_out(tmp_path):
    flat = ("rain-1.png", "norain-1.png", "rainstreak-1.png", "rainregion-1.png")
    assert names(find_pairs(folder(tmp_path, *flat))) == [("rain-1.png", "norain-1.png")]


@pytest.mark.parametrize(
    ("stem", "facts"),
    [
        ("0025_0.85_0.04", {"airlight": 0.85, "beta": 0.04}),
        ("0025_1_0.2", {"airlight": 1.0, "beta": 0.2}),
        ("1400_1", {}),
        ("1_1_0.90179", {}),
        ("0025", {}),
    ],
)
def test_airlight_and_beta_come_from_the_names_of_outdoor_haze_alone(tmp_path, stem, facts):
    folder(tmp_path, f"hazy/{stem}.jpg", f"clear/{stem.split('_')[0]}.jpg")
    assert find_pairs(tmp_path)[0].facts == facts


def test_the_first_pictures_without_a_partner_are_named(tmp_path):
    folder(tmp_path, *(f"input/{i}.png" for i in range(6)), "target/0.png")
    with pytest.raises(
        DataError, match=r"5 of 6 pictures of input have no partner in target: 1\.png, 2\.png, 3\.png …"
    ):
        find_pairs(tmp_path)


def test_number_1_is_not_the_partner_of_number_10(tmp_path):
    folder(tmp_path, "input/10.png", "target/1.png")
    with pytest.raises(DataError, match="no partner"):
        find_pairs(tmp_path)


def test_empty_missing_and_unknown_folders_are_refused(tmp_path):
    (tmp_path / "input").mkdir()
    (tmp_path / "target").mkdir()
    with pytest.raises(DataError, match="no pictures in input"):
        find_pairs(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        find_pairs(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no such folder of pictures"):
        find_pairs(tmp_path, observed="wet", clean="dry")
    with pytest.raises(DataError, match="name both"):
        find_pairs(tmp_path, observed="input")
    with pytest.raises(DataError, match=r"there: holiday; known: .*input\+target"):
        find_pairs(folder(tmp_path / "other", "holiday/1.png").parent / "other")


def test_two_clean_pictures_of_one_name_are_refused(tmp_path):
    folder(tmp_path, "input/1.png", "target/1.png", "target/1.jpg")
    with pytest.raises(DataError, match=r"several clean pictures of one name in target: 1\.jpg"):
        find_pairs(tmp_path)


def test_hidden_and_foreign_files_are_left_out(tmp_path):
    folder(tmp_path, "input/1.png", "input/.2.png", "target/1.png")
    (tmp_path / "input/notes.txt").write_text("hello")
    assert len(find_pairs(tmp_path)) == 1


def test_a_larger_clean_picture_is_cropped_to_its_middle(tmp_path):
    clean = torch.arange(480 * 640.0).view(1, 1, 480, 640)
    assert torch.equal(middle(clean, (460, 620)), clean[..., 10:470, 10:630])
    Image.new("RGB", (100, 60)).save(tmp_path / "wet.png")
    Image.new("RGB", (104, 62)).save(tmp_path / "dry.png")
    observed, cropped = read_pair(Pair(tmp_path / "wet.png", tmp_path / "dry.png", "wet"))
    assert observed.shape == cropped.shape == (1, 3, 60, 100)


@pytest.mark.parametrize("size", [(59, 100), (60, 99), (67, 100), (120, 200), (100, 60)])
def test_a_clean_picture_of_another_size_is_refused_by_name(size):
    with pytest.raises(DataError, match=f"dry.png: is {size[1]}x{size[0]} where its observed picture is 100x60"):
        middle(torch.zeros(1, 3, *size), (60, 100), name="dry.png")


def test_a_split_takes_every_fifth_scene_and_keeps_all_pairs_of_a_scene_together(tmp_path):
    folder(tmp_path, *(f"rainy_image/{i}_{j}.jpg" for i in range(10, 21) for j in range(3)))
    folder(tmp_path, *(f"ground_truth/{i}.jpg" for i in range(10, 21)))
    pairs = find_pairs(tmp_path)
    held, kept = every(pairs, 5, picked=True), every(pairs, 5, picked=False)
    assert {pair.clean.stem for pair in held} == {"10", "15", "20"}
    assert len(held) == 9
    assert len(kept) == 24
    assert not {pair.clean for pair in held} & {pair.clean for pair in kept}
    assert every(pairs, 0, picked=True) == every(pairs, 0, picked=False) == pairs


def test_a_scene_that_is_there_twice_does_not_sit_on_both_sides_of_a_split(tmp_path):
    folder(tmp_path, *(f"input/{i}.png" for i in range(6)), *(f"target/{i}.png" for i in range(6)))
    (tmp_path / "target/3.png").write_bytes((tmp_path / "target/0.png").read_bytes())
    pairs = find_pairs(tmp_path)
    assert [pair.name for pair in every(pairs, 5, picked=True)] == ["0", "5"]
    assert [pair.name for pair in every(pairs, 5, picked=False)] == ["1", "2", "4"]


def test_a_manifest_gives_the_same_pairs_back_and_refuses_changed_pictures(tmp_path):
    root = folder(tmp_path / "set", "hazy/1_0.8_0.1.png", "hazy/2_0.9_0.1.png", "clear/1.png", "clear/2.png")
    pairs, file = find_pairs(root), tmp_path / "split.json"
    write_manifest(file, pairs, root=root)
    assert read_manifest(file, root=root) == pairs
    moved = root.rename(tmp_path / "moved")
    assert [pair.name for pair in read_manifest(file, root=moved)] == [pair.name for pair in pairs]
    folder(moved, "x.png", "clear/2.png")
    with pytest.raises(DataError, match=r"1 of 4 pictures are missing or differ.*clear/2\.png"):
        read_manifest(file, root=moved)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"pairs": [3]}', '{"pairs": [{"observed": []}]}'])
def test_a_file_that_is_no_manifest_is_refused(tmp_path, text):
    (tmp_path / "split.json").write_text(text)
    with pytest.raises(DataError, match="is not a manifest"):
        read_manifest(tmp_path / "split.json", root=tmp_path)


def test_a_manifest_holds_only_files_below_its_root(tmp_path):
    folder(tmp_path, "a.png", "sub/b.png")
    with pytest.raises(DataError, match="is not below"):
        write_manifest(tmp_path / "m", [Pair(tmp_path / "a.png", tmp_path / "sub/b.png", "a")], root=tmp_path / "sub")


def test_the_real_validation_scenes_are_those_that_are_written_down(shared_data):
    pairs = find_pairs(shared_data / "rain/Rain100", observed="light", clean="clean")
    held = ["001", "010", "022", "030", "038", "047", "056", "061", "071", "078", "083", "093"]
    assert [pair.name for pair in every(pairs, 5, picked=True)] == held
    kept = {pair.name for pair in every(pairs, 5, picked=False)}
    assert not kept & {*held, "008", "069"}  # the last two are copies of 047 and 010
