"""Random files, tensors, options and recipes: each works, or is refused by one line that says why.

TWOFOLD_FUZZ is the number of cases of each test; 100 without it. `make fuzz` tries 2,000.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from tiny_models import untrained
from twofold import images, specs, zoo
from twofold.cli.app import run_command_line
from twofold.contracts import ConfigError, ImageError, TwofoldError, WeightsError
from twofold.data.manifest import read_manifest
from twofold.settings import to_yaml
from twofold.train import reading

CASES = int(os.environ.get("TWOFOLD_FUZZ", 100))
fuzz = settings(max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)

Changes = list[tuple[int, int, int]]
changes = st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255), st.integers(0, 3)), max_size=12)
"""(place, value, what: replace a byte, flip a bit, remove a stretch, insert a stretch)."""


def mutated(content: bytes, steps: Changes) -> bytes:
    block = bytearray(content)
    for place, value, what in steps:
        at = place % max(len(block), 1)
        if what == 0 and block:
            block[at] = value
        elif what == 1 and block:
            block[at] ^= 1 << value % 8
        elif what == 2:
            del block[at : at + value]
        else:
            block[at:at] = bytes([value]) * (value % 9)
    return bytes(block)


def one_line(error: BaseException) -> str:
    text = str(error)
    assert text, type(error)
    assert "\n" not in text, text
    return text


@cache
def samples(channels: int, deep: bool, height: int = 9, width: int = 11) -> np.ndarray:
    dtype = np.uint16 if deep else np.uint8
    drawn = np.random.default_rng(channels).integers(0, np.iinfo(dtype).max, (height, width, channels), dtype)
    return drawn


@cache
def files() -> dict[str, bytes]:
    """Small files of every format, depth and compression, with metadata."""
    exif = Image.Exif()
    exif.update({271: "Maker", 274: 6, 305: "Software"})
    exif.get_ifd(34665)[36867] = "2020:02:03 04:05:06"
    metadata = images.Metadata(b"<x:xmpmeta tiff:Orientation='3'/>", b"comment", (300.0, 300.0), (("Title", "x"),))
    found = {}
    for suffix in images.SUFFIXES:
        for channels in (1, 2, 3, 4):
            for deep in (False, True):
                picture = images.from_any(samples(channels, deep))
                picture = images.Picture(
                    picture.pixels, picture.alpha, picture.bits, exif.tobytes()[6:], metadata=metadata
                )
                found[f"{channels}-{deep}{suffix}"] = images.encoded(picture, suffix)

    def saved(name: str, image: Image.Image, **options: Any) -> None:
        buffer = io.BytesIO()
        image.save(buffer, name.split("-")[0], **options)
        found[name] = buffer.getvalue()

    colour = Image.fromarray(samples(3, False, 33, 40))
    saved("GIF", colour, save_all=True, append_images=[colour.rotate(90)])
    saved("AVIF", colour, exif=exif)
    saved("JPEG-progressive", colour, progressive=True, exif=exif)
    saved("JPEG-cmyk", colour.convert("CMYK"))
    saved("PNG-palette", colour.quantize(8), transparency=3)
    saved("PNG-bit", colour.convert("1"))
    saved("WEBP-animated", colour, save_all=True, append_images=[colour.rotate(90)])
    saved("TIFF-lzw", colour, compression="tiff_lzw")
    saved("TIFF-jpeg", colour, compression="jpeg")
    saved("TIFF-fax", colour.convert("1"), compression="group4")
    for order in "<>":
        buffer = io.BytesIO()
        tifffile.imwrite(buffer, np.moveaxis(samples(3, True), -1, 0), photometric="rgb", byteorder=order)
        found[f"planar{order}"] = buffer.getvalue()
    return found


@fuzz
@given(
    name=st.sampled_from(sorted(files())), steps=changes, partial=st.booleans(), target=st.sampled_from(images.SUFFIXES)
)
def test_a_damaged_file_is_read_or_refused(name: str, steps: Changes, partial: bool, target: str) -> None:
    content = mutated(files()[name], steps)
    try:
        picture = images.decoded(content, partial=partial, largest=1 << 26)
    except ImageError as error:
        one_line(error)
        return
    assert picture.pixels.ndim == 4
    assert picture.pixels.shape[1] in (1, 3)
    assert torch.isfinite(picture.pixels).all()
    assert 0 <= picture.pixels.min() <= picture.pixels.max() <= 1
    assert picture.alpha is None or picture.alpha.shape[-2:] == picture.pixels.shape[-2:]
    assert picture.frames >= 1
    if max(picture.pixels.shape[-2:]) >= 16_384:  # more than WebP can hold
        target = ".png"
    back = images.decoded(images.encoded(picture, target))
    assert back.pixels.shape[-2:] == picture.pixels.shape[-2:]
    images.not_kept(picture, target)


@fuzz
@given(start=st.sampled_from(sorted(files())), rest=st.binary(max_size=300))
def test_a_header_before_anything_is_read_or_refused(start: str, rest: bytes) -> None:
    with contextlib.suppress(ImageError):
        images.decoded(files()[start][:33] + rest, largest=1 << 26)


shapes = st.lists(st.integers(0, 5), max_size=5).map(tuple)
kinds = st.sampled_from(
    ["uint8", "int8", "uint16", "int32", "int64", "float16", "float32", "float64", "bool", "complex64", "object", "U3"]
)


@fuzz
@given(shape=shapes, kind=kinds, fill=st.sampled_from([0, 0.5, 1, 200, -1, float("nan"), float("inf"), 1e300]))
def test_any_array_is_an_image_or_refused(shape: tuple[int, ...], kind: str, fill: float) -> None:
    with np.errstate(all="ignore"):
        try:
            array = np.full(shape, fill, kind)
        except (ValueError, OverflowError):
            return
    try:
        picture = images.from_any(array)
    except ImageError as error:
        one_line(error)
        return
    back = images.to_kind_of(picture, array)
    assert isinstance(back, np.ndarray)
    assert back.shape == array.shape
    assert back.dtype == array.dtype


@fuzz
@given(
    shape=shapes,
    kind=st.sampled_from([torch.uint8, torch.bool, torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    fill=st.sampled_from([0.0, 0.5, 1.0, 200.0, float("nan")]),
    wide=st.booleans(),
)
def test_any_tensor_is_an_image_or_refused(shape: tuple[int, ...], kind: torch.dtype, fill: float, wide: bool) -> None:
    tensor = torch.full(shape, fill if kind.is_floating_point else 1, dtype=kind)
    try:
        picture = images.from_any(tensor, any_range=wide)
    except ImageError as error:
        one_line(error)
        return
    back = images.to_kind_of(picture, tensor)
    assert isinstance(back, torch.Tensor)
    assert (back.shape, back.dtype) == (tensor.shape, tensor.dtype)


@cache
def playground() -> Path:
    """A folder with images, a model, and things that are neither."""
    folder = Path(tempfile.mkdtemp())
    (folder / "in" / "deep").mkdir(parents=True)
    for name, content in (("a.png", "3-False.png"), ("deep/b.jpg", "JPEG-progressive"), ("c.tif", "4-True.tif")):
        (folder / "in" / name).write_bytes(files()[content])
    (folder / "in" / "bad.png").write_bytes(files()["3-False.png"][:60])
    (folder / "in" / "empty.webp").touch()
    (folder / "notes.txt").write_text("[1, 2")
    (folder / "k.txt").write_text("0 1 0\n1 2 1\n0 1 0\n")
    untrained(specs.PlainSpec(net=specs.UNetSpec(widths=[8, 8], blocks=[1, 1])), folder / "model.safetensors")
    return folder


INPUTS = ("in", "in/a.png", "in/deep/b.jpg", "in/c.tif", "in/bad.png", "in/empty.webp", "in/*.png", "in/**/*.jpg")
OUTPUTS = ("out", "out/", "out.png", "out.JPG", "out.gif", "out/x/y.webp", "notes.txt", "model.safetensors", "k.txt")
ODD = ("nowhere", "nowhere.png", "[", "*", "", " ", ".", "a\x1b.png", "x" * 300, "\udcff.png", "-")
paths = st.sampled_from((*INPUTS, *OUTPUTS, *ODD))
numbers = st.sampled_from(["0", "1", "0.5", "-1", "1e400", "nan", "0.02:0.1", "seven", "", "99999999999999999999"])
PLACES = ("-o", "--guidance-out", "--kernel-out", "--clean-out", "--sheet", "--guidance")
NUMBERS = ("--level", "--seed", "--quality", "--jobs", "--strength", "--tile", "--noise-level")
KERNELS = ("shake", "gaussian", "k.txt", "notes.txt", "estimate", "in/a.png", "")
FLAGS = ("--json", "--quiet", "--dry-run", "--no-recursive", "--skip-existing", "--wrong")
options = st.one_of(
    st.tuples(st.sampled_from(PLACES), paths),
    st.tuples(st.sampled_from(NUMBERS), numbers),
    st.tuples(st.just("--kernel"), st.sampled_from(KERNELS)),
    st.tuples(st.just("--layout"), st.sampled_from(["uniform", "smooth", "round", ""])),
    st.tuples(st.just("--format"), st.sampled_from(["png", "JPG", "webp", "tiff", "gif", ""])),
    st.tuples(st.sampled_from(FLAGS)),
)
CommandLine = tuple[str, list[str], str, list[tuple[str, ...]]]
command_lines = st.tuples(
    st.sampled_from(["degrade", "restore"]),
    st.lists(paths, max_size=3),
    st.sampled_from(["noise", "rain", "blur", "haze", "low-light", "underwater", "x"]),
    st.lists(options, max_size=4),
)


@fuzz
@given(line=command_lines)
def test_any_command_line_ends_with_a_code_and_no_traceback(
    line: tuple[str, list[str], str, list[tuple[str, ...]]],
) -> None:
    verb, inputs, kind, chosen = line
    words = [verb, *inputs, *(["-k", kind] if verb == "degrade" else ["-m", "model.safetensors"])]
    words += [word for option in chosen for word in option]
    with tempfile.TemporaryDirectory() as place:
        shutil.copytree(playground(), place, dirs_exist_ok=True)
        before = {path: path.read_bytes() for path in Path(place).rglob("*") if path.is_file()}
        out, err = io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace"), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            patch.chdir(place)
            patch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(files()["3-False.png"])))
            code = run_command_line(words)
        out.flush()
        printed = out.buffer.getvalue()
        assert code in (0, 1, 2), words
        assert code == 0 or err.getvalue(), words
        assert "Traceback" not in err.getvalue()
        if "--json" in words:
            json.loads(printed)
        # An output may replace a file that lies in its place, if that is no input.
        asked = {Path(place, option[1]).resolve() for option in chosen if option[0] in PLACES and len(option) > 1}
        for path, content in before.items():
            if not asked & {path.resolve(), *path.resolve().parents}:
                assert path.read_bytes() == content, f"{words} changed {path}"
        after = [path.name for path in Path(place).rglob("*") if path.is_file()]
        assert not [name for name in after if name.endswith(".part")], words


@cache
def weights() -> bytes:
    return (playground() / "model.safetensors").read_bytes()


@fuzz
@given(steps=changes)
def test_a_damaged_weights_file_is_loaded_or_refused(steps: Changes) -> None:
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "model.safetensors"
        # Most of the file is numbers, of which any will do; the header is where damage matters.
        header = int.from_bytes(weights()[:8], "little") + 8
        path.write_bytes(mutated(weights()[:header], steps) + weights()[header:])
        try:
            zoo.load_restorer(path)
        except WeightsError as error:
            one_line(error)


words = st.text(st.characters(codec="utf-8"), max_size=8)
trees = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), words, st.just(10**23), st.just("1e-3")),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(words, inner, max_size=3)),
    max_leaves=8,
)
MODEL_KEYS = ("model", "model.net", "model.net.widths", "scheme", "scheme.kind", "loss", "loss.l1", "optimizer.betas")
DATA_KEYS = ("data", "data.crop", "data.train", "data.train.0", "data.train.0.degradation", "data.train.9")
OTHER_KEYS = ("name", "seed", "steps", "schedule", "", ".", "a.b.c", "data..crop", "precision", "average")
keys = st.sampled_from((*MODEL_KEYS, *DATA_KEYS, *OTHER_KEYS))


@fuzz
@given(key=keys, value=trees)
@example(key="seed", value=10**23)
@example(key="model.net.widths", value=[0, 0])
def test_any_setting_of_a_recipe_is_taken_or_refused(key: str, value: Any) -> None:
    text = json.dumps(value)
    try:
        tree = reading.tree_of("derain", [f"{key}={text}"])
        to_yaml(reading.parse(tree))
    except ConfigError as error:
        one_line(error)


@fuzz
@given(steps=changes)
def test_a_damaged_recipe_is_read_or_refused(steps: Changes) -> None:
    text = to_yaml(reading.read_recipe("lowlight")).encode()
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "a.yaml"
        path.write_bytes(mutated(text, steps))
        try:
            reading.read_recipe(path)
        except TwofoldError as error:
            one_line(error)


@fuzz
@given(content=st.one_of(trees.map(json.dumps), st.just("[" * 100_000), st.text(max_size=40)))
def test_any_manifest_is_read_or_refused(content: str) -> None:
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "manifest.json"
        path.write_text(content, encoding="utf-8", errors="replace")
        with contextlib.suppress(TwofoldError):
            read_manifest(path, root=Path(place))
