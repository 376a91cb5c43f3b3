"""Pictures in and out: every format, depth and kind; what must survive; what must be refused."""

from __future__ import annotations

import errno
import io
import os
import struct
import zlib
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageCms, ImageOps

from twofold import images
from twofold.contracts import ImageError, TwofoldError
from twofold.images import SUFFIXES, Picture, find, from_any, read, to_kind_of, write

LOSSLESS = (".png", ".webp", ".tif", ".tiff", ".bmp")
DEEP = (".png", ".tif", ".tiff")
WITHOUT_ALPHA = (".jpg", ".jpeg", ".bmp")


def noise(channels: int, *, dtype: type = np.uint8, height: int = 5, width: int = 7) -> np.ndarray:
    return np.random.default_rng(channels).integers(
        0, np.iinfo(dtype).max, (height, width, channels), dtype, endpoint=True
    )


def smooth(height: int = 32, width: int = 48) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack((x * 5, y * 7, x + y), -1).astype(np.uint8))


def camera_notes(orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[271] = "Maker"
    exif[274] = orientation
    exif.get_ifd(34665)[36867] = "2020:02:03 04:05:06"
    exif.get_ifd(34853)[1] = "N"
    return exif.tobytes()


@cache  # a profile holds the time of its making
def srgb() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.mark.parametrize("suffix", LOSSLESS)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_lossless_formats_return_every_sample(tmp_path: Path, suffix: str, dtype: type, channels: int) -> None:
    picture = from_any(noise(channels, dtype=dtype))
    write(tmp_path / f"a{suffix}", picture)
    back = read(tmp_path / f"a{suffix}")
    bits = 16 if dtype is np.uint16 and suffix in DEEP else 8
    tolerance = 0.5 / 255 + 1e-6 if bits < picture.bits else 0.0
    expected = picture.pixels.expand(-1, 3, -1, -1) if suffix == ".webp" else picture.pixels  # WebP knows no grey
    assert back.bits == bits
    assert back.pixels.shape == expected.shape
    assert (back.pixels - expected).abs().max() <= tolerance
    assert (back.alpha is None) == (picture.alpha is None or suffix in WITHOUT_ALPHA)
    if back.alpha is not None and picture.alpha is not None:
        assert (back.alpha - picture.alpha).abs().max() <= tolerance


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_stays_within_a_few_grey_levels_and_keeps_grey_grey(tmp_path: Path, channels: int) -> None:
    picture = from_any(np.asarray(smooth())[..., :channels])
    write(tmp_path / "a.jpg", picture)
    back = read(tmp_path / "a.jpg")
    assert back.pixels.shape == picture.pixels.shape
    assert (back.pixels - picture.pixels).abs().mean() < 2 / 255


@settings(max_examples=25, deadline=None)
@given(height=st.integers(1, 9), width=st.integers(1, 9), channels=st.integers(1, 4), suffix=st.sampled_from(DEEP))
def test_sixteen_bits_survive_at_every_size(height: int, width: int, channels: int, suffix: str) -> None:
    samples = noise(channels, dtype=np.uint16, height=height, width=width)
    content = images.encoded(from_any(samples), suffix)
    if suffix == ".png":
        assert _decoded_by_hand(content).tolist() == samples.tolist()
    else:
        assert tifffile.imread(io.BytesIO(content)).reshape(samples.shape).tolist() == samples.tolist()


def _decoded_by_hand(content: bytes) -> np.ndarray:
    """A slow reader for one kind of PNG: 16 bits, every row filtered as differences to the left."""
    at, chunks = 8, {}
    while at < len(content):
        (length,) = struct.unpack_from(">I", content, at)
        kind, body = content[at + 4 : at + 8], content[at + 8 : at + 8 + length]
        assert struct.unpack_from(">I", content, at + 8 + length)[0] == zlib.crc32(kind + body)
        chunks[kind] = body
        at += 12 + length
    width, height, bits, colour_type = struct.unpack_from(">IIBB", chunks[b"IHDR"])
    assert bits == 16
    channels = {0: 1, 4: 2, 2: 3, 6: 4}[colour_type]
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, -1).copy()
    assert (rows[:, 0] == 1).all()
    for x in range(1 + 2 * channels, rows.shape[1]):
        rows[:, x] += rows[:, x - 2 * channels]
    return rows[:, 1:].copy().view(">u2").reshape(height, width, channels).astype(np.uint16)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_foreign_sixteen_bit_tiff_is_read_exactly(
    tmp_path: Path, order: str, compression: str | None, channels: int
) -> None:
    samples = noise(channels, dtype=np.uint16)
    extra = {2: ["unassalpha"], 4: ["unassalpha"]}.get(channels)
    tifffile.imwrite(
        tmp_path / "a.tif",
        samples if channels > 1 else samples[..., 0],
        byteorder=order,
        compression=compression,
        photometric="rgb" if channels > 2 else "minisblack",
        extrasamples=extra,
        planarconfig="contig" if channels > 1 else None,
    )
    assert to_kind_of(read(tmp_path / "a.tif"), samples).tolist() == samples.tolist()


def test_planar_sixteen_bit_tiff_is_read_exactly(tmp_path: Path) -> None:
    samples = noise(3, dtype=np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", np.moveaxis(samples, -1, 0), photometric="rgb", planarconfig="separate")
    assert to_kind_of(read(tmp_path / "a.tif"), samples).tolist() == samples.tolist()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_tiff_whose_white_is_zero_is_no_negative(tmp_path: Path, dtype: type) -> None:
    samples = noise(1, dtype=dtype)[..., 0]
    tifffile.imwrite(tmp_path / "a.tif", np.iinfo(dtype).max - samples, photometric="miniswhite")
    assert to_kind_of(read(tmp_path / "a.tif"), samples).tolist() == samples.tolist()
    with Image.open(tmp_path / "a.tif") as image:
        assert to_kind_of(from_any(image), samples).tolist() == samples.tolist()


def test_where_white_is_zero_alpha_is_still_alpha(tmp_path: Path) -> None:
    samples = noise(2, dtype=np.uint16)
    negative = np.stack((65535 - samples[..., 0], samples[..., 1]), -1)
    options = {"photometric": "miniswhite", "planarconfig": "contig", "extrasamples": ["unassalpha"]}
    tifffile.imwrite(tmp_path / "a.tif", negative, **options)
    assert to_kind_of(read(tmp_path / "a.tif"), samples).tolist() == samples.tolist()


@pytest.mark.parametrize(
    ("photometric", "channels", "extra"),
    [("separated", 4, None), ("cielab", 3, None), ("rgb", 4, "assocalpha"), ("minisblack", 2, "assocalpha")],
)
def test_sixteen_bit_samples_that_would_need_converting_are_refused(
    tmp_path: Path, photometric: str, channels: int, extra: str | None
) -> None:
    planes = np.moveaxis(noise(channels, dtype=np.uint16), -1, 0)
    options = {"photometric": photometric, "extrasamples": extra and [extra], "planarconfig": "separate"}
    tifffile.imwrite(tmp_path / "a.tif", planes, **options)
    assert "convert it to RGB first" in refused(tmp_path / "a.tif")


def test_interlaced_sixteen_bit_png_with_a_transparent_colour_is_read_exactly(tmp_path: Path) -> None:
    # One pixel is the same interlaced or not, so the seven passes can be written by hand: only the first holds it.
    pixel = np.array([300, 70, 65000], ">u2")

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 1))
    content += chunk(b"tRNS", pixel.tobytes()) + chunk(b"IDAT", zlib.compress(b"\0" + pixel.tobytes()))
    (tmp_path / "a.png").write_bytes(content + chunk(b"IEND", b""))
    picture = read(tmp_path / "a.png")
    assert (picture.pixels.flatten() * 65535).round().tolist() == [300, 70, 65000]
    assert picture.alpha is not None
    assert picture.alpha.item() == 0


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_orientation_is_applied_as_pillow_does_and_then_reset(tmp_path: Path, suffix: str, orientation: int) -> None:
    path = tmp_path / f"a{suffix}"
    options = {".jpg": {"quality": 95}, ".webp": {"lossless": True}}.get(suffix, {})
    smooth().save(path, exif=camera_notes(orientation), **options)
    with Image.open(path) as file:
        expected = np.asarray(ImageOps.exif_transpose(file))
    picture = read(path)
    assert np.array_equal(to_kind_of(picture, expected), expected)
    write(tmp_path / "b.png", picture)
    with Image.open(tmp_path / "b.png") as again:
        assert again.getexif().get(274, 1) == 1
    assert torch.equal(read(tmp_path / "b.png").pixels, picture.pixels)


@pytest.mark.parametrize("source", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("target", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("bits", [8, 16])
def test_camera_notes_and_colour_profile_reach_the_output(tmp_path: Path, source: str, target: str, bits: int) -> None:
    smooth().save(tmp_path / f"a{source}", exif=camera_notes(6), icc_profile=srgb())
    write(tmp_path / f"b{target}", replace(read(tmp_path / f"a{source}"), bits=bits))
    back = read(tmp_path / f"b{target}")
    exif = Image.Exif()
    exif.load(back.exif)
    assert exif[271] == "Maker"
    assert exif.get(274, 1) == 1
    assert exif.get_ifd(34665)[36867] == "2020:02:03 04:05:06"
    assert exif.get_ifd(34853)[1] == "N"
    assert back.profile == srgb()
    assert back.bits == (bits if target in DEEP else 8)


def test_the_thumbnail_of_the_unrestored_picture_is_not_carried(tmp_path: Path) -> None:
    block = camera_notes()[6:]
    order = "<" if block[:2] == b"II" else ">"
    (directory,) = struct.unpack_from(order + "I", block, 4)
    (count,) = struct.unpack_from(order + "H", block, directory)
    link = directory + 2 + 12 * count
    second = struct.pack(order + "HHHII", 1, 513, 4, 1, 1234) + b"\0\0\0\0"
    with_thumbnail = block[:link] + struct.pack(order + "I", len(block)) + block[link + 4 :] + second
    smooth().save(tmp_path / "a.jpg", exif=b"Exif\0\0" + with_thumbnail)
    before = Image.Exif()
    before.load(with_thumbnail)
    assert before.get_ifd(ExifTags.IFD.IFD1)[513] == 1234
    exif = Image.Exif()
    exif.load(read(tmp_path / "a.jpg").exif)
    assert exif[271] == "Maker"
    assert not exif.get_ifd(ExifTags.IFD.IFD1)


def test_a_damaged_exif_block_costs_only_the_notes(tmp_path: Path) -> None:
    smooth().save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\0\0")
    assert read(tmp_path / "a.jpg").exif == b""


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_an_exif_block_without_a_header_costs_neither_the_picture_nor_the_run(tmp_path: Path, suffix: str) -> None:
    smooth().save(tmp_path / f"a{suffix}", exif=b"Exif\0\0M\1\0*" + camera_notes()[10:])
    picture = read(tmp_path / f"a{suffix}")
    for target in (".jpg", ".png", ".webp", ".tif"):
        write(tmp_path / f"b{target}", picture)
        assert read(tmp_path / f"b{target}").pixels.shape == picture.pixels.shape


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 255)), max_size=8))
def test_whatever_happened_to_an_exif_block_a_tiff_is_written(changes: list[tuple[int, int]]) -> None:
    block = bytearray(camera_notes()[6:])
    for at, value in changes:
        block[at % len(block)] = value
    samples = noise(3)
    content = images.encoded(replace(from_any(samples), exif=bytes(block)), ".tif")
    assert np.array_equal(tifffile.imread(io.BytesIO(content)), samples)


@pytest.mark.parametrize("tag", [254, 259, 262, 266, 273, 317, 320, 322, 324, 330, 338, 339, 347, 513, 34675])
@pytest.mark.parametrize("channels", [1, 3])
def test_what_exif_says_about_the_pixels_of_another_file_is_not_written(channels: int, tag: int) -> None:
    samples = noise(channels)
    notes = struct.pack("<HHHII", 1, tag, 3, 1, 3)
    content = images.encoded(replace(from_any(samples), exif=b"II*\0\x08\0\0\0" + notes + bytes(4)), ".tif")
    assert np.array_equal(tifffile.imread(io.BytesIO(content)).reshape(samples.shape), samples)
    with Image.open(io.BytesIO(content)) as image:
        assert np.array_equal(np.asarray(image).reshape(samples.shape), samples)


@pytest.mark.parametrize("target", [".png", ".tif"])
def test_titles_and_the_directory_inside_a_directory_reach_the_output(tmp_path: Path, target: str) -> None:
    exif = Image.Exif()
    exif[40091] = "Title".encode("utf-16-le")
    exif.get_ifd(34665)[40965] = {1: "R98"}
    smooth().save(tmp_path / "a.jpg", exif=exif)
    write(tmp_path / "a.tif", read(tmp_path / "a.jpg"))
    write(tmp_path / f"b{target}", read(tmp_path / "a.tif"))
    back = Image.Exif()
    back.load(read(tmp_path / f"b{target}").exif)
    assert back[40091] == "Title".encode("utf-16-le")
    assert back.get_ifd(40965) == {1: "R98"}


@pytest.mark.parametrize("tag", [271, 272, 282, 283, 296, 306, 34665, 34853])
@pytest.mark.parametrize("kind", [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13])
@pytest.mark.parametrize("channels", [2, 3])
def test_a_tag_of_the_wrong_kind_costs_at_most_itself(tmp_path: Path, channels: int, kind: int, tag: int) -> None:
    exif = Image.Exif()
    exif.update({271: "maker", 272: "model", 306: "2020:02:03 04:05:06", 282: 72.0, 283: 72.0, 296: 2, 315: "artist"})
    exif.get_ifd(34665)[36867] = exif.get_ifd(34853)[29] = "2020:02:03 04:05:06"
    whole = replace(from_any(noise(channels, dtype=np.uint16)), exif=exif.tobytes()[6:])
    content = bytearray(images.encoded(whole, ".tif"))
    (directory,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, directory)
    entries = range(directory + 2, directory + 2 + 12 * count, 12)
    (entry,) = (at for at in entries if struct.unpack_from("<H", content, at) == (tag,))
    struct.pack_into("<HI", content, entry + 2, kind, 1)
    (tmp_path / "a.tif").write_bytes(content)
    picture = read(tmp_path / "a.tif")
    assert torch.equal(picture.pixels, whole.pixels)
    back = Image.Exif()
    back.load(picture.exif)
    assert back[315] == "artist"


@pytest.mark.parametrize("transparent", [False, True])
def test_a_palette_becomes_rgb_with_its_transparency(tmp_path: Path, transparent: bool) -> None:
    picture = smooth().quantize(16)
    picture.save(tmp_path / "a.png", **({"transparency": 3} if transparent else {}))
    expected = np.asarray(picture.convert("RGB"))
    back = read(tmp_path / "a.png")
    assert np.array_equal(to_kind_of(replace(back, alpha=None), expected), expected)
    if transparent:
        assert back.alpha is not None
        assert np.array_equal(back.alpha[0, 0].numpy() == 0, np.asarray(picture) == 3)
    else:
        assert back.alpha is None


def test_black_and_white_becomes_grey(tmp_path: Path) -> None:
    smooth().convert("1").save(tmp_path / "a.png")
    picture = read(tmp_path / "a.png")
    assert picture.pixels.shape[1] == 1
    assert set(picture.pixels.unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("suffix", [".jpg", ".tif"])
def test_cmyk_without_a_profile_becomes_rgb(tmp_path: Path, suffix: str) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / f"a{suffix}")
    red = read(tmp_path / f"a{suffix}").pixels.mean((0, 2, 3))
    assert torch.allclose(red, torch.tensor([1.0, 0.0, 0.0]), atol=0.02)


def test_cmyk_goes_through_its_profile_and_leaves_it_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # No CMYK profile may be shipped here, so the conversion itself is watched: with the file's own profile, to sRGB.
    seen = []

    def converted(image: Image.Image, source: object, target: object, **options: object) -> Image.Image:
        seen.append((image.mode, source, options["outputMode"]))
        return Image.new("RGB", image.size, (1, 2, 3))

    monkeypatch.setattr(ImageCms, "profileToProfile", converted)
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg", icc_profile=srgb())
    picture = read(tmp_path / "a.jpg")
    assert [(mode, output) for mode, _, output in seen] == [("CMYK", "RGB")]
    assert (picture.pixels * 255).round().flatten(2)[0, :, 0].tolist() == [1, 2, 3]
    assert picture.profile == b""


def test_a_profile_of_the_wrong_kind_converts_as_if_there_were_none(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg", icc_profile=srgb())
    assert read(tmp_path / "a.jpg").pixels[0, 0].mean() > 0.98


@pytest.mark.parametrize("channels", [2, 3, 4])
@pytest.mark.parametrize(("kind", "value"), [("H", 7), ("d", 1.5), ("s", "profile")])
def test_a_profile_that_is_no_block_of_bytes_is_none(tmp_path: Path, channels: int, kind: str, value: object) -> None:
    samples = noise(channels, dtype=np.uint16 if channels == 2 else np.uint8)
    photometric = {2: "minisblack", 3: "rgb", 4: "separated"}[channels]
    extra = {"extrasamples": ["unassalpha"] if channels == 2 else None, "extratags": [(34675, kind, 1, value, True)]}
    tifffile.imwrite(tmp_path / "a.tif", samples, photometric=photometric, planarconfig="contig", **extra)
    picture = read(tmp_path / "a.tif")
    assert picture.profile == b""
    write(tmp_path / "b.png", picture)


def test_a_colour_profile_is_not_put_into_a_grey_file(tmp_path: Path) -> None:
    write(tmp_path / "a.png", Picture(torch.rand(1, 1, 4, 4), profile=srgb()))
    assert read(tmp_path / "a.png").profile == b""


def test_values_are_clamped_and_rounded_to_nearest_once_at_writing(tmp_path: Path) -> None:
    write(tmp_path / "a.png", Picture(torch.tensor([-0.2, 0.4 / 255, 0.6 / 255, 1.3]).view(1, 1, 2, 2)))
    assert (read(tmp_path / "a.png").pixels.flatten() * 255).tolist() == [0, 0, 1, 255]


def test_an_animation_gives_its_first_frame_and_says_so(tmp_path: Path) -> None:
    first = Image.new("RGB", (6, 4), (255, 0, 0))
    first.save(tmp_path / "a.webp", save_all=True, append_images=[Image.new("RGB", (6, 4), (0, 0, 255))], lossless=True)
    picture = read(tmp_path / "a.webp")
    assert picture.frames == 2
    assert picture.pixels[0, :, 0, 0].tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("big", [False, True])
def test_a_document_of_several_pages_gives_its_first_and_says_so(tmp_path: Path, channels: int, big: bool) -> None:
    pages = np.stack([noise(channels, dtype=np.uint16)] * 3)
    options = {"photometric": "rgb"} if channels > 2 else {"photometric": "minisblack"}
    options |= {"extrasamples": ["unassalpha"]} if channels in (2, 4) else {}
    with tifffile.TiffWriter(tmp_path / "a.tif", bigtiff=big) as file:
        for page in pages:
            file.write(page.squeeze(), planarconfig="contig" if channels > 1 else None, metadata=None, **options)
    picture = read(tmp_path / "a.tif")
    assert picture.frames == 3
    assert to_kind_of(picture, pages[0]).tolist() == pages[0].tolist()


@pytest.mark.parametrize("channels", [2, 3])
def test_a_damaged_directory_is_read_without_a_word(
    tmp_path: Path, channels: int, caplog: pytest.LogCaptureFixture
) -> None:
    content = bytearray(images.encoded(from_any(noise(channels, dtype=np.uint16)), ".tif"))
    (directory,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, directory)
    entries = content[directory + 2 : directory + 2 + 12 * count]
    lost = struct.pack("<HHII", 305, 2, 100, 2**31)  # the name of the software, beyond the end of the file
    at = next(i for i in range(0, len(entries), 12) if struct.unpack_from("<H", entries, i)[0] > 305)
    entries[at:at] = lost
    tail = b"\xff\xff\xff\x7f"  # a second page there as well
    block = struct.pack("<H", count + 1) + bytes(entries) + tail
    struct.pack_into("<I", content, 4, len(content))
    (tmp_path / "a.tif").write_bytes(bytes(content) + block)
    picture = read(tmp_path / "a.tif")
    assert torch.equal(picture.pixels, from_any(noise(channels, dtype=np.uint16)).pixels)
    assert not caplog.records


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1)])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_one_pixel_and_one_row_go_in_and_out(tmp_path: Path, suffix: str, shape: tuple[int, int]) -> None:
    write(tmp_path / f"a{suffix}", Picture(torch.rand(1, 3, *shape)))
    assert read(tmp_path / f"a{suffix}").pixels.shape == (1, 3, *shape)


def refused(path: Path) -> str:
    with pytest.raises(ImageError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message


def test_what_is_not_a_picture_is_refused_in_one_line(tmp_path: Path) -> None:
    assert "no such file" in refused(tmp_path / "missing.png")
    assert "folder" in refused(tmp_path)
    (tmp_path / "empty.png").touch()
    assert "0 bytes" in refused(tmp_path / "empty.png")
    (tmp_path / "text.png").write_text("dear diary")
    assert "not a JPEG, PNG" in refused(tmp_path / "text.png")
    (tmp_path / "film.webp").write_bytes(b"RIFF\0\0\0\0AVI LIST")
    assert "not a JPEG, PNG" in refused(tmp_path / "film.webp")


def test_a_path_that_may_not_be_looked_at_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", denied)
        with pytest.raises(ImageError, match=r"a\.png: cannot be looked at \(Permission denied\)"):
            find([tmp_path / "a.png"])
    with pytest.raises(ImageError, match="too long"):
        find([tmp_path / ("a" * 300 + ".png")])


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kept", [0.02, 0.3, 0.7])
def test_a_truncated_file_is_refused(tmp_path: Path, suffix: str, kept: float) -> None:
    content = images.encoded(from_any(noise(3, height=60, width=80)), suffix)
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content[: int(len(content) * kept)])
    refused(path)


@pytest.mark.parametrize("kept", [0.3, 0.7])
@pytest.mark.parametrize("suffix", DEEP)
def test_a_truncated_sixteen_bit_file_is_refused(tmp_path: Path, suffix: str, kept: float) -> None:
    for channels in (1, 2, 3, 4):
        content = images.encoded(from_any(noise(channels, dtype=np.uint16, height=60, width=80)), suffix)
        path = tmp_path / f"a{suffix}"
        path.write_bytes(content[: int(len(content) * kept)])
        refused(path)


@pytest.mark.parametrize(("side", "reason"), [(10_000, "bytes"), (20_000, "limit"), (60_000, "limit")])
def test_a_header_bomb_is_refused_before_decoding(tmp_path: Path, side: int, reason: str) -> None:
    small = images.encoded(from_any(noise(3)), ".png")
    header = b"IHDR" + struct.pack(">II", side, side) + small[24:29]
    (tmp_path / "a.png").write_bytes(small[:12] + header + struct.pack(">I", zlib.crc32(header)) + small[33:])
    message = refused(tmp_path / "a.png")
    assert f"{side} x {side}" in message
    assert reason in message


def test_a_header_bomb_in_webp_is_refused_with_its_limit(tmp_path: Path) -> None:
    side = 20_000 - 1
    canvas = b"VP8X" + struct.pack("<II", 10, 0) + 2 * side.to_bytes(3, "little")
    content = b"WEBP" + canvas + images.encoded(from_any(noise(3)), ".webp")[12:]
    (tmp_path / "a.webp").write_bytes(b"RIFF" + struct.pack("<I", len(content)) + content)
    message = refused(tmp_path / "a.webp")
    # Pillow before 13 finds that the frame does not fit the canvas before it looks at its limit.
    assert "limit" in message or "cannot be decoded" in message


def test_the_size_limit_can_be_lowered(tmp_path: Path) -> None:
    smooth().save(tmp_path / "a.png")
    with pytest.raises(ImageError, match=r"limit is 0\.001"):
        read(tmp_path / "a.png", largest=1000)


def test_floating_point_files_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "a.tif")
    assert "floating-point" in refused(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (torch.full((1, 3, 4, 4), float("nan")), "NaN"),
        (torch.zeros(3, 4, 4, dtype=torch.uint8), "floating-point"),
        (torch.zeros(1, 2, 4, 4), "channels"),
        (torch.zeros(2, 3, 4, 4), "one picture"),
        (np.full((4, 4), np.inf), "NaN or infinite"),
        (np.stack((np.ones((4, 4)), np.full((4, 4), np.nan)), -1), "alpha of the array: holds NaN"),
        (np.full((4, 4, 3), 200.0), r"array: values from 200 to 200 .* look like grey levels; divide by 255$"),
        (np.full((4, 4, 3), 40000.0), "divide by 65535"),
        (torch.full((3, 4, 4), 200.0), "image: .* divide by 255"),
        (torch.full((3, 4, 4), -200.0), "image: .* divide by 255"),
        (np.zeros((4, 4), np.int64), "int64"),
        (np.zeros((4, 4, 5), np.uint8), "array"),
        (np.zeros((0, 4, 3), np.uint8), "array"),
        (np.zeros(4, np.uint8), "array"),
        (7, "int"),
        (Image.new("F", (4, 4)), "floating-point"),
        (Image.fromarray(np.array([[70000]], np.int32)), "16 bits"),
    ],
)
def test_arrays_tensors_and_images_that_are_no_pictures_are_refused(source: object, reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        from_any(source)  # type: ignore[arg-type]


def test_slight_over_and_undershoot_is_taken_as_it_is() -> None:
    samples = np.array([[-0.2, 1.5]], np.float32)
    assert to_kind_of(from_any(samples), samples).tolist() == samples.tolist()
    assert from_any(torch.from_numpy(samples)[None]).pixels.flatten().tolist() == samples.flatten().tolist()


@pytest.mark.parametrize(
    "source",
    [
        noise(1)[..., 0],
        noise(2, dtype=np.uint16),
        noise(4),
        noise(3) / 255,
        noise(3).astype(np.float16) / 255,
        torch.rand(3, 4, 5),
        torch.rand(1, 1, 4, 5, dtype=torch.float64),
    ],
    ids=str,
)
def test_arrays_and_tensors_come_back_as_they_went_in(source: np.ndarray | torch.Tensor) -> None:
    back = to_kind_of(from_any(source), source)
    assert type(back) is type(source)
    assert back.dtype == source.dtype
    assert back.shape == source.shape
    assert np.allclose(np.asarray(back), np.asarray(source), atol=1e-7)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "I;16"])
def test_pil_images_come_back_as_they_went_in(mode: str) -> None:
    if mode == "I;16":
        source = Image.fromarray(noise(1, dtype=np.uint16)[..., 0])
    else:
        source = smooth().convert(mode)
    source.info["icc_profile"] = srgb()
    back = to_kind_of(from_any(source), source)
    assert isinstance(back, Image.Image)
    assert back.mode == mode
    assert np.array_equal(np.asarray(back), np.asarray(source))
    assert back.info["icc_profile"] == srgb()


def test_a_path_comes_back_as_a_pil_image(tmp_path: Path) -> None:
    smooth().save(tmp_path / "a.png")
    back = to_kind_of(from_any(tmp_path / "a.png"), tmp_path / "a.png")
    assert np.array_equal(np.asarray(back), np.asarray(smooth()))


def test_an_output_that_cannot_be_written_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    picture = Picture(torch.rand(1, 3, 4, 4))
    with pytest.raises(TwofoldError, match=r"there is no folder .*missing"):
        write(tmp_path / "missing" / "a.png", picture)
    (tmp_path / "a.png").mkdir()
    with pytest.raises(TwofoldError, match=r"cannot write .*a\.png: Is a directory; choose another place"):
        write(tmp_path / "a.png", picture)
    with pytest.raises(ImageError, match=r"use one of \.jpg"):
        write(tmp_path / "a.gif", picture)
    with pytest.raises(ImageError, match="NaN"):
        write(tmp_path / "b.png", Picture(torch.full((1, 3, 4, 4), float("nan"))))
    assert os.listdir(tmp_path) == ["a.png"]


def test_a_full_disk_is_one_line_and_the_older_file_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.png", Picture(torch.zeros(1, 1, 2, 2)))
    before = (tmp_path / "a.png").read_bytes()

    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(TwofoldError, match="No space left"):
        write(tmp_path / "a.png", Picture(torch.rand(1, 3, 64, 64)))
    assert (tmp_path / "a.png").read_bytes() == before
    assert os.listdir(tmp_path) == ["a.png"]


def test_an_interrupt_while_writing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "a.png", Picture(torch.rand(1, 3, 4, 4)))
    assert os.listdir(tmp_path) == []


def test_a_picture_too_wide_for_its_format_names_the_format() -> None:
    with pytest.raises(ImageError, match=r"\.webp"):
        images.encoded(Picture(torch.zeros(1, 3, 1, 16_384)), ".webp")


def test_folders_are_listed_sorted_without_hidden_files(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpg", ".hidden.png", "notes.txt", "sub/c.tif", ".git/d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert find([tmp_path]) == [tmp_path / "a.jpg", tmp_path / "b.PNG", tmp_path / "sub/c.tif"]
    assert find([tmp_path], recursive=False) == [tmp_path / "a.jpg", tmp_path / "b.PNG"]
    assert find([tmp_path / "notes.txt"]) == [tmp_path / "notes.txt"]
    with pytest.raises(ImageError, match="no such file or folder"):
        find([tmp_path / "nowhere"])
