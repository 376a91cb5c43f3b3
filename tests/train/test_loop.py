"""The loop: goes on as if it had never stopped, averages, reports, listens."""

from __future__ import annotations

import json
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from twofold.contracts import RAIN_REGION, Sample, TwofoldError, WeightsError
from twofold.files import TEMPORARY
from twofold.losses import l1
from twofold.nets.guide import Guide
from twofold.nets.unet import UNet
from twofold.restorers.guided import Guided, Plain
from twofold.train import checkpoint
from twofold.train.learner import Learner
from twofold.train.loop import JsonLines, Run, TimeUp, average_of, fit, validated
from twofold.train.schemes import Frozen, GuidedTraining, Naive, Scheme, Supervised


def sample(seed: int) -> Sample:
    clean, streaks = torch.rand(2, 2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return Sample(clean, clean + 0.2 * streaks, (streaks[:, :1] > 0.5).float())


def batches(step: int) -> tuple[Sequence[Sample], ...]:
    return [sample(2 * step)], [sample(2 * step + 1)]


def last(step: int) -> tuple[Sequence[Sample], ...]:
    return batches(step)[1:]


def guided(seed: int = 0, width: int = 8) -> Guided:
    torch.manual_seed(seed)
    return Guided(Guide(RAIN_REGION, width=4), UNet(guidance=1, widths=(width,), blocks=(1,)))


def learner(module: nn.Module) -> Learner:
    return Learner(
        module.parameters(),
        lambda parameters: torch.optim.Adam(parameters, 1e-2),
        schedule=lambda n: 1 / (1 + n),
        clip=0.1,
    )


def build(kind: str, seed: int = 0) -> tuple[Scheme, bool]:
    """A scheme, and whether it takes two draws."""
    one = guided(seed)
    if kind == "guided":
        return GuidedTraining(one, l1, learner(one.guide), learner(one.net), steering=0.5), True
    if kind == "frozen":
        return Frozen(one, l1, learner(one.guide), learner(one.net), pretraining=4), True
    if kind == "naive":
        return Naive(one, l1, learner(one)), False
    return Supervised(one, l1, learner(one)), False


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return list(first) == list(second) and all(torch.equal(first[name], second[name]) for name in first)


class Steps:
    """A report that remembers, and stops the run at a step as Ctrl-C would."""

    def __init__(self, stop: int = -1) -> None:
        self.stop = stop
        self.done: list[int] = []
        self.scores: dict[int, dict[str, float]] = {}

    def step(self, done: int, until: int, losses: dict[str, float], images_per_second: float) -> None:
        self.done.append(done)
        if done == self.stop:
            signal.raise_signal(signal.SIGINT)

    def validated(self, done: int, scores: dict[str, float]) -> None:
        self.scores[done] = scores


@pytest.mark.parametrize("kind", ["supervised", "guided", "naive", "frozen"])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path: Path, kind: str) -> None:
    whole, two = build(kind)
    draws = batches if two else last
    average = average_of(whole.restorer, 0.9)
    fit(whole, draws, until=7, run=Run(tmp_path / "whole"), average=average)

    first, _ = build(kind)
    interrupted = Steps(stop=3)
    with pytest.raises(KeyboardInterrupt):
        fit(
            first,
            draws,
            until=7,
            run=Run(tmp_path / "part"),
            average=average_of(first.restorer, 0.9),
            reports=[interrupted],
        )
    assert interrupted.done == [1, 2, 3]
    second, _ = build(kind, seed=5)  # other weights, which the state replaces
    resumed, second_average = Steps(), average_of(second.restorer, 0.9)
    fit(second, draws, until=7, run=Run(tmp_path / "part"), average=second_average, reports=[resumed])
    assert resumed.done == [4, 5, 6, 7]
    assert same(whole.restorer.state_dict(), second.restorer.state_dict())
    assert same(average.state_dict(), second_average.state_dict())
    ends = [checkpoint.read_state(tmp_path / name / "state.safetensors") for name in ("whole", "part")]
    for end in ends:
        del end["seconds"], end["cpu_seconds"]
    assert repr(ends[0]) == repr(ends[1])


def test_a_run_stops_itself_after_its_minutes_and_goes_on(tmp_path: Path) -> None:
    whole, _ = build("supervised")
    fit(whole, last, until=3, run=Run(tmp_path / "whole"))
    part, _ = build("supervised")
    for step in (1, 2):
        with pytest.raises(TimeUp, match=f"stopped after 0 minutes at step {step} of 3"):
            fit(part, last, until=3, run=Run(tmp_path / "part", stop_after=0))
    fit(part, last, until=3, run=Run(tmp_path / "part", stop_after=0))  # the last step is done: nothing was cut off
    assert same(whole.restorer.state_dict(), part.restorer.state_dict())


def test_the_handler_of_ctrl_c_is_restored_after_the_run(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    scheme, _ = build("supervised")
    with pytest.raises(KeyboardInterrupt):
        fit(scheme, last, until=9, run=Run(tmp_path), reports=[Steps(stop=2)])
    assert signal.getsignal(signal.SIGINT) is before


def test_the_average_lags_behind_and_is_what_is_validated(tmp_path: Path) -> None:
    scheme, _ = build("supervised")
    average = average_of(scheme.restorer, 0.5)
    expected = {name: value.clone() for name, value in scheme.restorer.state_dict().items()}
    seen: list[dict[str, Tensor]] = []

    def validate(done: int, restorer: nn.Module) -> dict[str, float]:
        assert not restorer.training
        assert not torch.is_grad_enabled()
        seen.append({name: value.clone() for name, value in restorer.state_dict().items()})
        return {"psnr": float(done)}

    for step in range(1, 5):
        fit(
            scheme, last, until=step, run=Run(tmp_path, minutes=0, validate_every=1), average=average, validate=validate
        )
        own = scheme.restorer.state_dict()
        decay = min(0.5, (1 + step) / (10 + step))
        for name in expected:
            expected[name] = decay * expected[name] + (1 - decay) * own[name]
            torch.testing.assert_close(seen[-1][name], expected[name])
        assert same(seen[-1], average.module.state_dict())
        assert not same(seen[-1], dict(own))
        assert scheme.restorer.training


def test_buffers_are_those_of_the_module_and_not_averaged() -> None:
    norm = nn.BatchNorm2d(2)
    average = average_of(norm, 0.5)
    norm(torch.rand(1, 2, 3, 3))
    average.update_parameters(norm)
    assert average.module.num_batches_tracked == 1
    assert torch.equal(average.module.running_mean, norm.running_mean)


def test_validation_comes_every_so_many_steps_and_at_the_end(tmp_path: Path) -> None:
    scheme, _ = build("supervised")
    report = Steps()
    fit(
        scheme,
        last,
        until=7,
        run=Run(tmp_path, validate_every=3),
        reports=[report],
        validate=lambda done, restorer: {"psnr": float(done)},
    )
    assert report.scores == {3: {"psnr": 3.0}, 6: {"psnr": 6.0}, 7: {"psnr": 7.0}}


@pytest.mark.parametrize("averaged", [False, True])
def test_training_goes_on_in_training_mode_when_validation_fails(averaged: bool) -> None:
    scheme, _ = build("supervised")
    average = average_of(scheme.restorer, 0.5) if averaged else None

    def fail(done: int, restorer: nn.Module) -> dict[str, float]:
        raise OSError

    with pytest.raises(OSError):  # noqa: PT011
        validated(scheme, average, fail, 1)
    assert scheme.restorer.training


def test_only_the_first_rank_writes(tmp_path: Path) -> None:
    scheme, _ = build("supervised")
    fit(scheme, last, until=2, run=Run(tmp_path / "run", main=False))
    assert not (tmp_path / "run").exists()


def test_a_state_of_another_model_scheme_or_average_is_refused(tmp_path: Path) -> None:
    run = Run(tmp_path)
    scheme, _ = build("supervised")
    fit(scheme, last, until=1, run=run)
    wider = guided(width=16)
    with pytest.raises(WeightsError, match="another model or scheme"):
        fit(Supervised(wider, l1, learner(wider)), last, until=2, run=run)
    plain = Plain(UNet(widths=(8,), blocks=(1,)))
    with pytest.raises(WeightsError, match="another model or scheme"):
        fit(Supervised(plain, l1, learner(plain)), last, until=2, run=run)
    with pytest.raises(WeightsError, match="another model or scheme"):
        fit(scheme, last, until=2, run=run, average=average_of(scheme.restorer, 0.5))
    fit(build("guided")[0], batches, until=1, run=Run(tmp_path / "guided"))
    with pytest.raises(WeightsError, match="another model or scheme"):
        fit(scheme, last, until=2, run=Run(tmp_path / "guided"))


def test_a_checkpoint_that_cannot_be_written_stops_the_run_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(TwofoldError, match="cannot write"):
        fit(build("supervised")[0], last, until=1, run=Run(tmp_path / "file"))


def test_a_half_written_state_of_a_killed_run_is_swept_away(tmp_path: Path) -> None:
    (tmp_path / f".state.safetensors.abc{TEMPORARY}").write_bytes(b"half")
    fit(build("supervised")[0], last, until=1, run=Run(tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["state.safetensors"]


def test_the_log_of_a_resumed_run_has_every_step_once(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    first = JsonLines(path, every=2)
    for done in range(1, 8):
        first.step(done, 10, {"loss": 0.5}, 3.0)
    first.validated(7, {"psnr": 30.0})
    with path.open("a") as file:
        file.write('{"step": 8, "lo')  # killed while writing; the state is that of step 4
    second = JsonLines(path, every=2)
    for done in range(5, 11):
        second.step(done, 10, {"loss": 0.25}, 3.0)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(2, 0.5), (4, 0.5), (6, 0.25), (8, 0.25), (10, 0.25)]


def test_a_log_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    log = JsonLines(tmp_path / "folder" / "log.jsonl", every=1)
    log.step(1, 2, {"loss": 0.5}, 3.0)
    log.path.unlink()
    log.path.mkdir()
    with pytest.raises(TwofoldError, match=r"cannot write .*log\.jsonl: Is a directory"):
        log.step(2, 2, {"loss": 0.5}, 3.0)


def test_a_thread_may_train_too(tmp_path: Path) -> None:
    import threading

    scheme, _ = build("supervised")
    thread = threading.Thread(target=fit, args=(scheme, last), kwargs={"until": 1, "run": Run(tmp_path)})
    thread.start()
    thread.join()
    assert checkpoint.read_state(tmp_path / "state.safetensors")["done"] == 1
