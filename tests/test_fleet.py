"""Pictures on a Ray cluster: nothing lost, nothing twice, though a worker is killed in the middle."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from twofold import api, fleet, images
from twofold.cli.app import run_command_line
from twofold.contracts import TwofoldError

Maker = Callable[..., Path]


PATIENCE = {
    "RAY_worker_register_timeout_seconds": "900",
    "RAY_agent_register_timeout_ms": "900000",
    "RAY_health_check_failure_threshold": "100",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""On a machine that is busy with other work the processes of a cluster need minutes to start, not seconds."""


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def patient(ask: Callable[..., Any]) -> Callable[..., Any]:
    """`ask`, asked again for ten minutes while it says that nobody has answered yet."""

    def asked(*args: Any, **kwargs: Any) -> Any:
        end = time.monotonic() + 600
        while True:
            try:
                return ask(*args, **kwargs)
            except RuntimeError:
                if time.monotonic() > end:
                    raise
                time.sleep(1)

    return asked


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Ray on this machine, with room for two workers."""
    pytest.importorskip("ray.data", reason="the extra [ray] is not installed")
    import ray
    from ray._private import services
    from ray.cluster_utils import Cluster

    # With ports that are given, no process waits seconds for the file in which another one says its own.
    names = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port")
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, value in PATIENCE.items():
            patch.setenv(name, value)
        patch.setattr(services, "get_node", patient(services.get_node))
        nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 3, "include_dashboard": False, **ports})
        ray.init(address=nodes.address, log_to_driver=False, configure_logging=False)
        yield ray
        ray.shutdown()
        nodes.shutdown()


pytestmark = pytest.mark.filterwarnings("ignore")  # of Ray itself


def killed_once(folder: Path) -> type[fleet.FleetWorker]:
    """A worker that notes each picture it has restored; the first with three is killed before it hands on the third."""

    class Mortal(fleet.FleetWorker):
        done = 0

        def restore(self, data: bytes, source: Path, suffix: str) -> Any:
            result = super().restore(data, source, suffix)
            self.done += 1
            with (folder / f"{os.getpid()}.log").open("a") as log:
                log.write(f"{source.name}\n")
            if self.done == 3:
                try:
                    (folder / "killed").touch(exist_ok=False)
                except FileExistsError:
                    return result
                os.kill(os.getpid(), signal.SIGKILL)
            return result

    return Mortal


@pytest.mark.slow
def test_nothing_is_lost_or_twice_when_one_of_two_workers_is_killed(
    cluster: Any, tmp_path: Path, picture: Maker, guided_model: Path
) -> None:
    sources = [picture(f"in/{number:02}.png", 20, 24 + number) for number in range(16)]
    pairs = [(source, tmp_path / "out" / source.name) for source in sources]
    notes = tmp_path / "notes"
    notes.mkdir()
    steps: list[tuple[int, int]] = []
    results = fleet.restore_all(
        pairs,
        fleet.FleetWork(str(guided_model)),
        workers=2,
        progress=lambda done, total: steps.append((done, total)),
        worker=killed_once(notes),
    )
    assert (notes / "killed").exists()
    logs = {file.stem: file.read_text().split() for file in notes.glob("*.log")}
    assert len(logs) >= 2
    killed = [names for names in logs.values() if len(names) == 3]
    assert killed
    assert [(result.source, result.target) for result in results] == pairs
    assert all(result.error is None for result in results)
    assert sorted(os.listdir(tmp_path / "out")) == [source.name for source in sources]  # and no temporary files
    restored = [name for names in logs.values() for name in names]
    assert sorted(set(restored)) == [source.name for source in sources]
    assert steps == [(number, 16) for number in range(1, 17)]
    model = api.load(guided_model, precision="exact")
    for source, target in pairs:
        wanted = model.restore(images.read(source))[0].pixels.clamp(0, 1)
        assert (images.read(target).pixels - wanted).abs().max() < 2.5 / 255


@pytest.mark.slow
def test_a_broken_file_costs_itself(cluster: Any, tmp_path: Path, picture: Maker, guided_model: Path) -> None:
    good, missing = picture("in/good.png"), tmp_path / "in" / "missing.png"
    broken = tmp_path / "in" / "broken.png"
    broken.write_bytes(b"no picture")
    pairs = [(path, tmp_path / "out" / path.name) for path in (broken, good, missing)]
    results = fleet.restore_all(pairs, fleet.FleetWork(str(guided_model)), workers=1)
    assert [result.error is None for result in results] == [False, True, False]
    assert str(broken) in str(results[0].error)
    assert "cannot be read" in str(results[2].error)
    assert os.listdir(tmp_path / "out") == ["good.png"]
    assert results[1].facts["width"] == 17


@pytest.mark.slow
def test_the_command_restores_a_folder_and_reports_what_failed(
    cluster: Any, tmp_path: Path, picture: Maker, guided_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture("in/a.png")
    picture("in/deep/b.png")
    (tmp_path / "in" / "broken.png").write_bytes(b"no picture")
    arguments = ["restore", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "-m", str(guided_model)]
    arguments += ["--engine", "ray", "--workers", "1", "--json"]
    assert run_command_line(arguments) == 1
    report = json.loads(capsys.readouterr().out)
    assert [Path(facts["output"]).name for facts in report["done"]] == ["a.png", "b.png"]
    assert [Path(facts["input"]).name for facts in report["failed"]] == ["broken.png"]
    assert (tmp_path / "out" / "deep" / "b.png").is_file()
    assert run_command_line([*arguments, "--skip-existing"]) == 1
    assert len(json.loads(capsys.readouterr().out)["skipped"]) == 2


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["--engine", "ray", "--guidance", "0.5"], "--guidance: not with --engine ray"),
        (["--engine", "ray", "--kernel", "."], "--kernel FOLDER: not with --engine ray"),
        (["--engine", "ray", "--jobs", "2"], "--jobs: not with --engine ray"),
        (["--engine", "spark"], "--engine is local or ray"),
        (["--workers", "2"], "--workers and --address are for ray"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    more: list[str], reason: str, tmp_path: Path, picture: Maker, capsys: pytest.CaptureFixture[str]
) -> None:
    source = picture("a.png")
    assert run_command_line(["restore", str(source), "-o", str(tmp_path / "b.png"), "-m", "derain", *more]) == 2
    assert reason in capsys.readouterr().err


def test_without_ray_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(fleet, "import_module", missing)
    with pytest.raises(TwofoldError, match=r"pip install 'twofold\[ray\]'"):
        fleet.restore_all([(Path("a.png"), Path("b.png"))], fleet.FleetWork("derain"))


def test_a_row_is_restored_as_the_file_would_be(tmp_path: Path, picture: Maker, guided_model: Path) -> None:
    source, target = picture("in/a.png", 20, 24), tmp_path / "out" / "a.png"
    row = fleet._read({"source": str(source), "target": str(target)})
    worker = fleet.FleetWorker(fleet.FleetWork(str(guided_model), strength=0.5))
    batch = worker({name: [value] for name, value in row.items()})
    done = fleet._write({name: values[0] for name, values in batch.items()})
    assert not done["error"]
    assert "data" not in done
    wanted = api.load(guided_model, precision="exact").restore(images.read(source), strength=0.5)[0].pixels.clamp(0, 1)
    assert (images.read(target).pixels - wanted).abs().max() < 2.5 / 255
    assert torch.get_num_threads() == 1


def test_a_worker_writes_by_the_quality_that_was_asked_for(tmp_path: Path, picture: Maker, guided_model: Path) -> None:
    source = picture("in/a.png", 40, 40)
    row = fleet._read({"source": str(source), "target": str(tmp_path / "a.jpg")})
    batch = {name: [value] for name, value in row.items()}
    low, high = (
        fleet.FleetWorker(fleet.FleetWork(str(guided_model), quality=quality))(batch)["data"][0] for quality in (10, 95)
    )
    assert len(low) < 0.6 * len(high)


def test_temporary_files_of_this_run_alone_are_cleared(tmp_path: Path) -> None:
    old, ours, other = (tmp_path / name for name in (".a.png.old", ".a.png.x1y2", ".b.png.x1y2"))
    for file in (old, ours, other):
        file.touch()
    os.utime(old, (1, 1))
    fleet._clear([(tmp_path / "in.png", tmp_path / "a.png")], started=1000.0)
    assert not ours.exists()
    assert old.exists()
    assert other.exists()
