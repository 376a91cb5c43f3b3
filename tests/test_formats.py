"""Formats that are only read, metadata beside EXIF and ICC, damaged files, and inputs that are not paths."""

from __future__ import annotations

import io
import os
import struct
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from twofold import images
from twofold.contracts import ImageError
from twofold.images import Metadata, Picture, decoded, encoded, from_any, not_kept, read, write

XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6" dc:title="Rain"/></x:xmpmeta>'
UPRIGHT_XMP = XMP.replace(b'"6"', b'"1"')
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64)


def gradient(height: int = 64, width: int = 96) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack((x * 2, y * 3, x + y), -1).astype(np.uint8))


def saved(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def message_of(content: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        decoded(content, name="a")
    text = str(caught.value)
    assert text.startswith("a: ")
    assert "\n" not in text
    return text


def test_gif_gives_its_first_frame_with_transparency(tmp_path: Path) -> None:
    frames = [Image.new("RGBA", (8, 6), (shade, 0, 0, 255)) for shade in (255, 100)]
    frames[0].putpixel((0, 0), (0, 0, 0, 0))
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], disposal=2)
    picture = read(tmp_path / "a.gif")
    assert picture.frames == 2
    assert picture.pixels[0, :, 3, 3].tolist() == [1.0, 0.0, 0.0]
    assert picture.alpha is not None
    assert picture.alpha[0, 0, 0, 0] == 0


def test_avif_is_read_with_its_metadata(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[271] = "Maker"
    gradient().save(tmp_path / "a.avif", quality=95, exif=exif, xmp=UPRIGHT_XMP)
    picture = read(tmp_path / "a.avif")
    expected = from_any(gradient())
    assert (picture.pixels - expected.pixels).abs().mean() < 3 / 255
    assert b"Maker" in picture.exif
    assert picture.metadata.xmp == UPRIGHT_XMP


def test_heic_without_its_package_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    assert "pip install 'twofold[heic]'" in message_of(HEIC)


def test_heic_is_read_where_its_package_is_installed() -> None:
    heif = pytest.importorskip("pillow_heif", reason="pillow-heif, of the extra heic, is not installed")
    heif.register_heif_opener()
    picture = decoded(saved(gradient(), "HEIF", quality=95))
    assert (picture.pixels - from_any(gradient()).pixels).abs().mean() < 3 / 255
    assert "cannot be decoded" in message_of(saved(gradient(), "HEIF")[:400])


def test_a_video_with_the_container_of_heic_is_refused() -> None:
    assert "not a JPEG" in message_of(b"\0\0\0\x18ftypisom\0\0\x02\0isomiso2" + bytes(64))


def test_folders_list_every_format_that_is_read(tmp_path: Path) -> None:
    for name in ("a.avif", "b.GIF", "c.heic", "d.HEIF", "e.nef", "f.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in images.find([tmp_path])] == ["a.avif", "b.GIF", "c.heic", "d.HEIF"]


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, io.BytesIO])
def test_bytes_and_streams_are_read_as_files_are(kind: type, tmp_path: Path) -> None:
    content = saved(gradient(), "PNG")
    (tmp_path / "a.png").write_bytes(content)
    assert torch.equal(from_any(kind(content)).pixels, read(tmp_path / "a.png").pixels)
    with (tmp_path / "a.png").open("rb") as file:
        assert torch.equal(from_any(file).pixels, read(tmp_path / "a.png").pixels)
    assert isinstance(images.to_kind_of(from_any(kind(content)), kind(content)), Image.Image)


def test_streams_that_give_no_image_are_refused_in_one_line() -> None:
    for source, reason in (
        (io.BytesIO(), "0 bytes"),
        (io.StringIO("text"), "stream of bytes"),
        (b"text", "not a JPEG"),
    ):
        with pytest.raises(ImageError, match=reason):
            from_any(source)  # type: ignore[arg-type]
    closed = io.BytesIO(b"x")
    closed.close()
    with pytest.raises(ImageError, match="cannot be read"):
        from_any(closed)


def test_a_pipe_is_refused_instead_of_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(ImageError, match="is a pipe or a device, not a file"):
        read(tmp_path / "a.png")
    with pytest.raises(ImageError, match="pipe or a device"):
        read("/dev/null")


FULL = Metadata(UPRIGHT_XMP, b"a comment", (300.0, 72.0), (("Title", "Rain Ω"), ("Author", "N. N.")))


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif", ".bmp"])
def test_metadata_is_kept_or_named_as_lost(suffix: str, bits: int) -> None:
    picture = replace(from_any(gradient()), bits=bits, metadata=FULL)
    back = decoded(encoded(picture, suffix)).metadata
    lost = not_kept(picture, suffix)
    assert ("XMP" in lost) == (back.xmp != FULL.xmp)
    assert ("text" in lost) == (not set(FULL.text) <= set(back.text))
    assert ("comment" in lost) == (back.comment != FULL.comment and ("Comment", "a comment") not in back.text)
    assert ("resolution" in lost) == (back.dpi is None)
    if back.dpi is not None:
        assert np.allclose(back.dpi, (300, 72), atol=0.02)
    assert (
        lost
        == {
            ".jpg": ["text"],
            ".png": [],
            ".webp": ["comment", "resolution", "text"],
            ".tif": ["comment", "text"],
            ".bmp": ["XMP", "comment", "text"],
        }[suffix]
    )


def test_metadata_of_files_by_other_programs_is_read(tmp_path: Path) -> None:
    info = PngInfo()
    info.add_text("Title", "Rain")
    info.add_text("Raw profile type exif", "0000")
    gradient().save(tmp_path / "a.png", pnginfo=info, dpi=(300, 300))
    gradient().save(tmp_path / "a.jpg", comment=b"hello", dpi=(72, 72), xmp=XMP)
    tifffile.imwrite(tmp_path / "a.tif", np.asarray(gradient()), photometric="rgb", resolution=(150, 150))
    png, jpeg, tiff = (read(tmp_path / f"a.{suffix}").metadata for suffix in ("png", "jpg", "tif"))
    assert png.text == (("Title", "Rain"),)
    assert np.allclose(png.dpi or 0, 300, atol=0.02)
    assert (jpeg.comment, jpeg.xmp) == (b"hello", UPRIGHT_XMP)
    assert tiff.dpi == (150, 150)


def test_the_orientation_in_xmp_is_applied_once() -> None:
    picture = decoded(saved(gradient(), "JPEG", xmp=XMP))
    assert picture.pixels.shape[-2:] == (96, 64)
    assert decoded(encoded(picture, ".jpg")).pixels.shape[-2:] == (96, 64)


@pytest.mark.parametrize("bits", [8, 16])
def test_the_colour_chunks_of_png_are_kept(bits: int) -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    chunks = {b"cICP": b"\x09\x10\0\x01", b"gAMA": struct.pack(">I", 100_000), b"cHRM": bytes(range(32))}
    plain = encoded(replace(from_any(gradient()), bits=bits), ".png")
    content = plain[:33] + b"".join(chunk(kind, body) for kind, body in chunks.items()) + plain[33:]
    picture = decoded(content)
    assert dict(picture.metadata.colour) == chunks
    assert dict(decoded(encoded(picture, ".png")).metadata.colour) == chunks
    assert "colour coding (cICP, gAMA)" in not_kept(picture, ".jpg")
    assert not_kept(decoded(plain[:33] + chunk(b"gAMA", struct.pack(">I", 45_455)) + plain[33:]), ".jpg") == []


def test_png_allows_no_srgb_chunk_beside_a_profile() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    picture = replace(from_any(gradient()), profile=profile, metadata=Metadata(colour=((b"sRGB", b"\0"),)))
    content = encoded(picture, ".png")
    assert b"sRGB\0" not in content[: content.index(b"IDAT")].replace(b"iCCP", b"")
    assert decoded(content).profile == profile


@pytest.mark.parametrize("suffix", [".jpg", ".bmp"])
def test_transparency_that_is_dropped_is_named(suffix: str) -> None:
    assert not_kept(Picture(torch.zeros(1, 3, 2, 2), alpha=torch.ones(1, 1, 2, 2)), suffix) == ["transparency"]
    assert not_kept(Picture(torch.zeros(1, 3, 2, 2), alpha=torch.ones(1, 1, 2, 2)), ".png") == []


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("kept", [0.5, 0.8])
def test_a_jpeg_that_ends_early_is_read_as_far_as_it_goes_when_asked(progressive: bool, kept: float) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 120, 3), np.uint8))
    content = saved(noise, "JPEG", quality=90, progressive=progressive)
    part = content[: int(len(content) * kept)]
    assert "cannot be decoded" in message_of(part)
    picture = decoded(part, partial=True)
    whole = decoded(content)
    assert whole.damage == ""
    if progressive:
        assert picture.damage == "the file ends early, detail is missing"
        assert picture.pixels.shape == whole.pixels.shape
    else:
        assert picture.damage.startswith("the file ends early, ")
        rows = int(picture.damage.split()[4])
        assert 200 * (1 - kept) - 24 < rows < 200 * (1 - kept) + 24
        good = 200 - rows - 32
        assert torch.equal(picture.pixels[..., :good, :], whole.pixels[..., :good, :])


def test_a_jpeg_without_one_row_is_refused_even_then() -> None:
    content = saved(gradient(), "JPEG")
    for length in (3, 30, content.index(b"\xff\xda") + 14):
        with pytest.raises(ImageError):
            decoded(content[:length], partial=True)


def png_header(width: int, height: int, colour_type: int = 2) -> bytes:
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


@pytest.mark.parametrize("colour_type", [2, 6])
def test_the_limit_counts_bytes_and_not_pixels(colour_type: int) -> None:
    bomb = png_header(15_000, 15_000, colour_type) + b"\0\0\0\0IDAT" + bytes(660_000)
    assert "the limit is 2147.48 MB" in message_of(bomb)
    assert "no photograph compresses so far" in message_of(
        png_header(10_000, 10_000) + b"\0\0\0\0IDAT" + bytes(660_000)
    )
    assert "limit" not in message_of(png_header(15_000, 15_000, 0) + b"\0\0\0\0IDAT" + bytes(660_000))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_real_bomb_is_refused_within_little_memory(tmp_path: Path) -> None:
    import subprocess

    row = bytes(1 + 3 * 15_000)
    packer = zlib.compressobj(9)
    body = b"".join([*(packer.compress(row) for _ in range(15_000)), packer.flush()])
    chunk = struct.pack(">I", len(body)) + b"IDAT" + body + struct.pack(">I", zlib.crc32(b"IDAT" + body))
    (tmp_path / "a.png").write_bytes(png_header(15_000, 15_000) + chunk + b"\0\0\0\0IEND\xaeB`\x82")
    code = (
        "import sys; from twofold import images\n"
        "try: images.read(sys.argv[1])\n"
        "except images.reading.ImageError as e: print(e)\n"
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "a.png")]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert "limit" in out[0]
    assert int(out[1]) < 1_000_000  # kB; nearly all of it is torch


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_floating_point_tiff_is_refused_with_its_reason(dtype: type, channels: int, tmp_path: Path) -> None:
    samples = np.zeros((6, 5, channels), dtype)
    options = {"photometric": "rgb"} if channels > 2 else {"photometric": "minisblack"}
    tifffile.imwrite(tmp_path / "a.tif", samples.squeeze(), **options)
    with pytest.raises(ImageError, match=r"a\.tif: holds floating-point samples, .*; convert it to 16-bit"):
        read(tmp_path / "a.tif")


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_quality_sets_the_size_of_the_file(suffix: str, tmp_path: Path) -> None:
    noise = from_any(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    sizes = [len(encoded(noise, suffix, quality=quality)) for quality in (10, 50, 90)]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) == 3
    write(tmp_path / f"a{suffix}", noise, quality=10)
    assert (tmp_path / f"a{suffix}").stat().st_size == sizes[0]
    for quality in (0, 101):
        with pytest.raises(ImageError, match="quality goes from 1 to 100"):
            encoded(noise, suffix, quality=quality)


def test_reading_a_large_image_takes_one_copy_as_floating_point() -> None:
    import tracemalloc

    content = encoded(from_any(np.zeros((1500, 1500, 3), np.uint8)), ".bmp")
    tracemalloc.start()
    picture = decoded(content)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2.2 * picture.pixels.numel() * 4  # the samples as bytes and as floating-point numbers


def _preview(**tags: object) -> bytes:
    """A TIFF file as cameras write them: its first page is a small finished image."""
    buffer = io.BytesIO()
    extra = [(50706, "B", 4, (1, 4, 0, 0), True)] if tags.get("dng") else []
    tifffile.imwrite(buffer, np.full((6, 8, 3), 200, np.uint8), extratags=extra)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.CR2", b"II*\0\x10\0\0\0CR\x02\0" + bytes(100)),
        ("a.cr3", b"\0\0\0\x18ftypcrx \0\0\0\1" + bytes(100)),
        ("a.raf", b"FUJIFILMCCD-RAW 0201" + bytes(100)),
        ("a.rw2", b"IIU\0\x18\0\0\0" + bytes(100)),
        ("a.orf", b"IIRO\x08\0\0\0" + bytes(100)),
        ("a.nef", _preview()),
        ("a.tif", _preview(dng=True)),
    ],
)
def test_raw_files_of_cameras_are_refused_with_the_way_out(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ImageError) as caught:
        read(tmp_path / name)
    assert str(caught.value).startswith(f"{tmp_path / name}: is a RAW file of a camera, which is not read; convert it")
    assert "darktable-cli" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_jpeg_that_is_called_as_a_raw_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.nef").write_bytes(saved(gradient(), "JPEG"))
    assert read(tmp_path / "a.nef").pixels.shape == (1, 3, 64, 96)


@pytest.mark.parametrize("format", ["GIF", "TIFF", "PNG", "WEBP"])
def test_of_several_frames_or_pages_the_first_is_read_and_they_are_counted(format: str) -> None:
    pages = [Image.new("RGB", (8, 6), (shade, shade, shade)) for shade in (255, 100, 0)]
    picture = decoded(saved(pages[0], format, save_all=True, append_images=pages[1:]))
    assert picture.frames == 3
    assert picture.pixels.min() > 0.98
