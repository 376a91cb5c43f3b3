"""What the verbs that turn images into images share: where inputs come from and where outputs go."""

from __future__ import annotations

import glob
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from twofold import images
from twofold.cli.misuse import Misuse
from twofold.contracts import ImageError, TwofoldError

FORMATS = {"png": ".png", "jpg": ".jpg", "webp": ".webp", "tiff": ".tiff"}
_SAME_FORMAT = {".jpeg": ".jpg", ".tif": ".tiff"}
STREAM = Path("-")
"""As an input standard input, as an output standard output."""


@dataclass(frozen=True)
class Job:
    """One image: where it comes from, where its result goes, and its name below the folder it was found in.

    suffix: says the format of the output.
    """

    source: Path
    target: Path
    name: Path
    suffix: str


def jobs(
    inputs: Sequence[str],
    output: str | None,
    *,
    others: Sequence[Path | None] = (),
    format: str | None = None,
    marker: str,
    recursive: bool = True,
) -> list[Job]:
    """Pairs inputs with outputs.

    One image goes to `output` if that has a suffix, else into the folder `output`, as several do; so does a name that
    ends in a slash. Without an output, `photo.jpg` goes to `photo-MARKER.jpg` and a folder to `FOLDER-MARKER`.
    Sub-folders are kept, or left out if not recursive. Outputs of an earlier run that lie inside an input folder are no
    inputs. A pattern such as `photos/*.jpg` that names no file stands for the files it matches. `-` is standard input
    or output.

    others: where else the run writes: files, folders, or None for what is not asked for.

    Raises: TwofoldError where an input is missing, or an output would replace an input or another output.
    """
    suffix = suffix_of_format(format)
    if not all(text.strip() for text in inputs):  # as of a variable of the shell that is not set
        raise Misuse("an INPUT is empty; name a file or a folder (. is the current one)")
    if output is not None and not output.strip():
        raise Misuse("--output is empty; name a file or a folder (. is the current one), or leave it out")
    if "-" in inputs or output == "-":
        return [_stream_job(inputs, output, suffix)]
    paths = [path for text in dict.fromkeys(inputs) for path in _expanded(text)]
    place = None if output is None else Path(output)
    as_folder = place is not None and (os.path.isdir(place) or str(output).endswith(("/", os.sep)))
    if place is not None and len(paths) == 1 and place.suffix and not (as_folder or os.path.isdir(paths[0])):
        _check_name(place, suffix)
        (source,) = images.find(paths)
        found = [Job(source, place, Path(source.name), place.suffix)]
    else:
        if place is not None and (os.path.isfile(place) or (place.suffix.lower() in images.SUFFIXES and not as_folder)):
            raise Misuse(f"{place} names one file, but a folder is needed for a folder or several images")
        kept = [other.resolve() for other in others if other is not None]
        found = [job for path in paths for job in _jobs_of(path, place, kept, suffix, marker, recursive)]
    if not found:
        raise ImageError(f"no images in {', '.join(map(str, paths))}; known suffixes: {' '.join(images.READABLE)}")
    found = list({(job.source.resolve(), job.target.resolve()): job for job in found}.values())  # each image once
    check_places(found)
    return found


def run_of(
    inputs: Sequence[str],
    output: str | None,
    *,
    others: Sequence[Path | None],
    format: str | None,
    marker: str,
    recursive: bool,
    quality: int | None,
    as_json: bool,
) -> list[Job]:
    """`jobs`, with --quality and --json checked against where the results go, and a line on what is left out."""
    work = jobs(inputs, output, others=others, format=format, marker=marker, recursive=recursive)
    check_quality(quality, work)
    if as_json and work[0].target == STREAM:
        raise Misuse("--json and the image would both be printed; name a file with --output")
    if message := left_out(inputs, recursive=recursive):
        print(f"twofold: {message}", file=sys.stderr)
    return work


def suffix_of_format(format: str | None) -> str | None:
    """The suffix of what --format names, in any case and spelling. Raises: Misuse."""
    if format is None:
        return None
    suffix = "." + format.lower().removeprefix(".")
    suffix = _SAME_FORMAT.get(suffix, suffix)
    if suffix not in FORMATS.values():
        raise Misuse(f"unknown format {format!r}; known: {', '.join(FORMATS)}")
    return suffix


def _expanded(text: str) -> list[Path]:
    """The files that a pattern matches, or the path itself."""
    if glob.has_magic(text) and not os.path.lexists(text):
        found = sorted(glob.glob(text, recursive=True))
        if not found:
            raise ImageError(f"{text}: no file matches this pattern")
        return [Path(name) for name in found]
    return [Path(text)]


def _stream_job(inputs: Sequence[str], output: str | None, suffix: str | None) -> Job:
    if len(inputs) > 1 or (inputs[0] != "-" and os.path.isdir(Path(inputs[0]))):
        raise Misuse("- (standard input or output) is for one image; name the others in a second command")
    name = Path("standard-input.png" if inputs[0] == "-" else Path(inputs[0]).name)
    if inputs[0] != "-":
        images.find([inputs[0]])
    if output in (None, "-"):
        if sys.stdout.isatty():
            raise Misuse("the image would be printed on the terminal; name a file with --output, or use a pipe")
        return Job(Path(inputs[0]), STREAM, name, suffix or _ending(name, None).suffix)
    place = Path(output or "")
    if os.path.isdir(place) or not place.suffix or str(output).endswith(("/", os.sep)):
        place = _ending(place / name, suffix)
    _check_name(place, suffix)
    return Job(STREAM, place, name, place.suffix)


def left_out(inputs: Sequence[str], *, recursive: bool = True) -> str:
    """One line on the images in folders whose formats are not read; empty where there are none."""
    found: Counter[str] = Counter()
    for folder in (Path(text) for text in inputs if text != "-" and os.path.isdir(Path(text))):
        files = folder.rglob("*") if recursive else folder.glob("*")
        found.update(file.suffix.lower() for file in files if file.suffix.lower() in images.UNREADABLE)
    if not found:
        return ""
    listed = ", ".join(f"{count} {suffix}" for suffix, count in sorted(found.items()))
    return f"left out, as these formats are not read: {listed}; convert them to TIFF or PNG first"


def _jobs_of(
    path: Path, output: Path | None, others: Sequence[Path], suffix: str | None, marker: str, recursive: bool
) -> Iterator[Job]:
    if os.path.isdir(path):
        root = path.resolve()
        if output is None and not root.name:
            raise Misuse(f"{path} has no name to call a folder of outputs by; name one with -o")
        folder = output or (root if path.name in ("", "..") else path).with_name(f"{root.name}-{marker}")
        # At the folder itself or above it, a place leaves all in, so that replacing an input is noticed.
        inside = [place for place in (folder.resolve(), *others) if root in place.parents]
        for source in images.find([path], recursive=recursive):
            if not any(source.resolve().is_relative_to(place) for place in inside):
                name = source.relative_to(path)
                target = _ending(folder / name, suffix)
                yield Job(source, target, name, target.suffix)
    else:
        (source,) = images.find([path])
        target = output / source.name if output else source.with_name(f"{source.stem}-{marker}{source.suffix}")
        target = _ending(target, suffix)
        yield Job(source, target, Path(source.name), target.suffix)


def _ending(path: Path, suffix: str | None) -> Path:
    own = path.suffix if path.suffix.lower() in images.SUFFIXES else ".png"
    return path.with_suffix(suffix or own)


def _check_name(output: Path, suffix: str | None) -> None:
    check_suffix(output, folder=True)
    own = output.suffix.lower()
    if suffix and _SAME_FORMAT.get(own, own) != suffix:
        raise Misuse(f"{output} and --format {suffix[1:]} disagree; leave one of them out")


def beside(work: Sequence[Job], place: Path | None, *, option: str, deep: bool = False) -> dict[Job, Path]:
    """Where something that belongs to each picture lies: in the file `place` for one, as a PNG of the same name in the
    folder `place` for several. Empty without a place.

    deep: it needs 16 bits.
    """
    if place is None:
        return {}
    if os.path.isfile(place) and place.suffix.lower() not in images.SUFFIXES:
        raise Misuse(f"{option} {place} is a file, but no picture; name another place")
    if len(work) == 1 and place.suffix and not os.path.isdir(place):  # as for the result of one picture
        check_suffix(place, folder=True)
    if place.suffix.lower() not in images.SUFFIXES or os.path.isdir(place):
        return {job: (place / job.name).with_suffix(".png") for job in work}
    if len(work) > 1:
        raise Misuse(f"{option} {place} is one file, but there are {len(work)} pictures; name a folder")
    if deep and place.suffix.lower() not in (".png", ".tif", ".tiff"):
        raise Misuse(f"{option} {place}: a map needs 16 bits; name a .png or .tiff file")
    return {work[0]: place}


def twin_of(folder: Path, name: Path) -> Path:
    """The file of `folder` that is called like the picture `name`, whatever its suffix: in the same sub-folder, or else
    in the folder itself.

    Raises: TwofoldError where there is none, or more than one.
    """
    for place in (folder / name.parent, folder):
        # The pattern finds `photo.alt.png` for `photo.jpg` too; only a whole stem is a twin.
        found = sorted(
            file for file in place.glob(f"{glob.escape(name.stem)}*") if file.stem == name.stem and os.path.isfile(file)
        )
        if len(found) > 1:
            raise TwofoldError(f"{place} has several files called {name.stem}: {_listed(found)}; keep one")
        if found:
            return found[0]
    raise TwofoldError(f"{folder} has no file called {name.stem}; put it there, or name one file for all pictures")


def twins(work: Sequence[Job], place: Path) -> dict[Job, Path]:
    """The file `place` for every picture, or each one's twin in the folder `place`, where it has one."""
    if not os.path.isdir(place):
        return dict.fromkeys(work, place)
    found = {}
    for job in work:
        with suppress(TwofoldError):
            found[job] = twin_of(place, job.name)
    return found


def _listed(files: Sequence[Path]) -> str:
    return ", ".join(file.name for file in files[:3]) + (" …" if len(files) > 3 else "")


def check_suffix(path: Path, *, folder: bool = False) -> None:
    """Raises: Misuse where no format goes by the suffix of a file to be written.

    folder: it could also be one, if it were there.
    """
    if path.suffix.lower() not in images.SUFFIXES:
        more = "; or make the folder first" if folder else ""
        raise Misuse(f"cannot write {path}; known suffixes: {' '.join(images.SUFFIXES)}{more}")


def check_places(
    work: Sequence[Job], *outputs: Mapping[Job, Path], sheet: Path | None = None, given: Iterable[Path] = ()
) -> None:
    """Raises: Misuse where an output would replace an input or another output.

    outputs: what is kept of each picture beside its result. sheet: one file of all pictures. given: what is read beside
    the pictures.
    """
    places: list[tuple[Path, Job | None]] = [(job.target, job) for job in work]
    places += [(path, job) for kept in outputs for job, path in kept.items()]
    places += [] if sheet is None else [(sheet, None)]
    inputs = {path.resolve() for path in (*(job.source for job in work), *given)}
    taken: dict[Path, Job | None] = {}
    for path, job in places:
        if path == STREAM:
            continue
        place = path.resolve()
        if place in inputs:
            raise Misuse(f"{path} would replace an input; name another output")
        if place in taken:
            first = taken[place]
            advice = "; name different places for the two"
            if first and job and first != job:
                advice = f", for {first.source} and for {job.source}; rename one of them"
            raise Misuse(f"{path} would be written twice{advice}")
        taken[place] = job


def tile_size(text: str) -> int | Literal["auto"]:
    """What --tile says. Raises: TwofoldError."""
    if text == "auto":
        return "auto"
    if not (text.isdecimal() and int(text) > 0):
        raise Misuse(f"--tile takes auto or a number of pixels, got {text!r}")
    return int(text)


def check_quality(quality: int | None, work: Sequence[Job]) -> None:
    """What --quality says. Raises: Misuse."""
    if quality is not None and not any(job.suffix.lower() in (".jpg", ".jpeg", ".webp") for job in work):
        raise Misuse("--quality is for JPEG and WebP; leave it out, or add --format jpg or webp")


def read_input(job: Job) -> images.Picture:
    """Of a damaged JPEG file as much as there is. Raises: ImageError."""
    if job.source == STREAM:
        return images.decoded(sys.stdin.buffer, name="standard input", partial=True)
    return images.read(job.source, partial=True)


def save_picture(path: Path, picture: images.Picture, *, suffix: str = "", quality: int | None = None) -> None:
    """Writes an image, and the folder it goes into. suffix: for standard output. Raises: TwofoldError."""
    if path == STREAM:
        content = images.encoded(picture, suffix, quality=quality)
        try:
            sys.stdout.buffer.write(content)
            sys.stdout.buffer.flush()
        except OSError as error:
            raise TwofoldError(f"cannot write to standard output: {error.strerror or error}") from error
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TwofoldError(f"{path.parent}: cannot be made ({error.strerror}); choose another output") from error
    images.write(path, picture, quality=quality)
