"""Restoring on several machines with Ray Data: read → restore → write; the images of a failed worker are repeated.

Workers read and write the same paths, so sources and targets lie on a file system that all machines share. A picture
whose worker dies is restored again by another one; its file is complete or absent, and the report names every
picture exactly once.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from twofold.contracts import Progress, TwofoldError
from twofold.files import replacing

_Row = dict[str, Any]
_BLOCKS = 2000
"""Ray keeps a record of every block of pictures: no more than that, so one picture each up to 2000."""

_READERS = 4
"""Files read, and written, at once. They take no core, or workers that take all of them would wait for ever."""


@dataclass(frozen=True)
class FleetWork:
    """What each worker does. model: a name, a path that all machines have, or hf://user/name. kernel: a file, or
    "estimate". tile, strength: as `restore` has them. gpus: graphics cards of a worker, 0 for the processor alone;
    cores: of the processor. runtime: as `load` has it. quality: of JPEG and WebP files, from 1 to 100.
    """

    model: str
    kernel: str | None = None
    strength: float = 1.0
    tile: int | str = "auto"
    cores: int = 1
    gpus: float = 0.0
    runtime: Literal["auto", "torch", "onnx", "openvino"] = "auto"
    quality: int | None = None


@dataclass(frozen=True)
class FleetResult:
    """One picture: its facts (width, height, seconds; frames, damage, not_kept where there is something to say), or the
    error that it ended with.
    """

    source: Path
    target: Path
    facts: dict[str, Any]
    error: str | None = None


class FleetWorker:
    """Loads the model once, and restores rows: `data`, the bytes of a picture file, becomes those of the result."""

    def __init__(self, work: FleetWork) -> None:
        import torch

        from twofold import api

        torch.set_num_threads(max(work.cores, 1))
        torch.set_flush_denormal(True)
        self.work = work
        self.model = api.load(work.model, device="cuda" if work.gpus else "cpu", runtime=work.runtime)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        rows = [{name: values[i] for name, values in batch.items()} for i in range(len(batch["source"]))]
        done = [self.restored(row) for row in rows]
        return {name: [row[name] for row in done] for name in done[0]}

    def restored(self, row: _Row) -> _Row:
        """The row of one image with its restored bytes and facts, or with the error."""
        if row["error"]:
            return row
        began = time.perf_counter()
        try:
            data, facts = self.restore(row["data"], Path(row["source"]), Path(row["target"]).suffix)
        except TwofoldError as error:
            return {**row, "data": b"", "error": str(error)}
        facts["seconds"] = round(time.perf_counter() - began, 3)
        return {**row, "data": data, "facts": json.dumps(facts)}

    def restore(self, data: bytes, source: Path, suffix: str) -> tuple[bytes, dict[str, Any]]:
        """(the restored file, facts) of a picture file. Raises: TwofoldError."""
        from twofold import images
        from twofold.restorers.blind import kernel_for

        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, source.name)
            file.write_bytes(data)
            try:
                picture = images.read(file, partial=True)
            except TwofoldError as error:
                raise TwofoldError(str(error).replace(str(file), str(source))) from error
        kernel, _ = kernel_for(picture, self.work.kernel)
        tile: Any = self.work.tile
        restored, _ = self.model.restore(picture, kernel=kernel, strength=self.work.strength, tile=tile)
        height, width = picture.pixels.shape[-2:]
        facts: dict[str, Any] = {"width": width, "height": height}
        facts |= {"frames": picture.frames} if picture.frames > 1 else {}
        facts |= {"damage": picture.damage} if picture.damage else {}
        facts |= {"not_kept": lost} if (lost := images.not_kept(restored, suffix)) else {}
        return images.encoded(restored, suffix, quality=self.work.quality), facts


def restore_all(
    pairs: Sequence[tuple[Path, Path]],
    work: FleetWork,
    *,
    workers: int | None = None,
    address: str | None = None,
    progress: Progress | None = None,
    worker: type[FleetWorker] = FleetWorker,
) -> list[FleetResult]:
    """Restores every source into its target on a Ray cluster; results in the order of `pairs`.

    workers: how many at once; None for as many as the cluster has cores or cards for. address: of a running cluster,
    such as "auto"; None starts one on this machine, unless one is already connected. progress: called with (pictures
    done, pictures in all). worker: what restores; a subclass may do more.

    Raises: TwofoldError where Ray is missing or the cluster ends; what fails for one picture is that one's error.
    """
    ray = ray_module()
    data = import_module("ray.data")
    if not pairs:
        return []
    started = time.time()
    own = not ray.is_initialized()
    if own:
        _connect(ray, address)
    try:
        context = data.DataContext.get_current()
        context.enable_progress_bars = False
        wanted = min(workers or _room(ray, work), len(pairs))
        items = [{"source": os.path.abspath(source), "target": os.path.abspath(target)} for source, target in pairs]
        rows = (
            data.from_items(items, override_num_blocks=min(len(items), _BLOCKS))
            .map(_read, num_cpus=0, concurrency=_READERS)
            .map_batches(
                worker,
                fn_constructor_args=(work,),
                batch_size=1,
                compute=data.ActorPoolStrategy(min_size=1, max_size=wanted, initial_size=wanted),
                num_cpus=None if work.gpus else work.cores,
                num_gpus=work.gpus or None,
            )
            .map(_write, num_cpus=0, concurrency=_READERS)
        )
        found: dict[tuple[str, str], FleetResult] = {}
        for row in rows.iter_rows():
            facts = json.loads(row["facts"] or "{}")
            result = FleetResult(Path(row["source"]), Path(row["target"]), facts, row["error"] or None)
            found[row["source"], row["target"]] = result
            if progress:
                progress(len(found), len(pairs))
    except ray.exceptions.RayError as error:
        raise TwofoldError(
            f"the cluster ended before all pictures were done ({_first_line(error)}); run again"
        ) from error
    finally:
        _clear(pairs, started)
        if own:
            ray.shutdown()
    keys = [(item["source"], item["target"]) for item in items]
    lost = [source for source, target in keys if (source, target) not in found]
    if lost:  # Ray promises every row; a promise that is checked costs nothing
        raise TwofoldError(f"{len(lost)} pictures came back from no worker, {lost[0]} first; run again")
    return [found[key] for key in keys]


def ray_module() -> Any:
    """Ray. Raises: TwofoldError where it is not installed."""
    try:
        import_module("ray.data")
        return import_module("ray")
    except ImportError as error:
        raise TwofoldError(f"Ray cannot be imported ({error}); pip install 'twofold[ray]'") from error


def _connect(ray: Any, address: str | None) -> None:
    try:
        ray.init(address=address, include_dashboard=False, log_to_driver=False, configure_logging=False)
    except Exception as error:  # also a plain one, where its processes took too long to start
        raise TwofoldError(
            f"no Ray cluster at {address or 'this machine'} ({_first_line(error)}); start one with `ray start --head`"
        ) from error


def _room(ray: Any, work: FleetWork) -> int:
    """Workers that the cluster has room for."""
    resources = ray.cluster_resources()
    if work.gpus:
        return max(int(resources.get("GPU", 0) / work.gpus), 1)
    return max(int(resources.get("CPU", 1)) // max(work.cores, 1), 1)


def _read(row: _Row) -> _Row:
    """Adds the bytes of the source, so that reading overlaps with computing."""
    more: _Row = {"data": b"", "facts": "", "error": ""}
    try:
        more["data"] = Path(row["source"]).read_bytes()
    except OSError as error:
        more["error"] = f"{row['source']}: cannot be read ({error.strerror or error}); check the path on every machine"
    return {**row, **more}


def _write(row: _Row) -> _Row:
    """Puts the result in its place, whole; leaves the row without its bytes."""
    data = row.pop("data")
    if not row["error"]:
        try:
            with replacing(Path(row["target"])) as temporary:
                temporary.write_bytes(data)
        except TwofoldError as error:
            row["error"] = str(error)
    return row


def _clear(pairs: Sequence[tuple[Path, Path]], started: float) -> None:
    """Removes what a worker that died while it wrote has left: the temporary files of these targets, of this run."""
    for folder in {target.parent for _, target in pairs}:
        starts = tuple(f".{target.name[:40]}." for _, target in pairs if target.parent == folder)
        for file in _hidden(folder):
            try:
                if file.name.startswith(starts) and file.stat().st_mtime >= started - 1:
                    file.unlink()
            except OSError:
                continue


def _hidden(folder: Path) -> Iterator[Path]:
    try:
        yield from [Path(entry.path) for entry in os.scandir(folder) if entry.name.startswith(".") and entry.is_file()]
    except OSError:
        return


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
