"""How networks are run: every plan computes the same picture, the choice never loses, and is kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tiny_models import convolutions
from twofold import runtime
from twofold.nets.prenet import PReNet
from twofold.runtime import CANDIDATES, ExecutionPlan, choose, flush_denormals_, peak_bytes, plain, runner

ALL = (plain(), *CANDIDATES, ExecutionPlan(bfloat16=True), ExecutionPlan(fused=True))


@pytest.mark.parametrize("plan", ALL, ids=str)
@pytest.mark.parametrize("inputs", [1, 2])
def test_every_recipe_computes_the_same_picture(plan: ExecutionPlan, inputs: int) -> None:
    net = convolutions()
    images = torch.rand(inputs, 2, 3, 33, 18).unbind()
    expected = net(*images)
    before = {name: weight.clone() for name, weight in net.state_dict().items()}
    got = runner(net, plan, inputs=inputs)(*images)
    assert got.dtype == torch.float32
    assert not got.requires_grad
    assert (got - expected).abs().max() < (0.02 if plan.bfloat16 else 1e-5)
    assert all(torch.equal(weight, before[name]) for name, weight in net.state_dict().items())
    assert torch.equal(runner(net, plan, inputs=inputs)(*images), got)  # the inputs were not written over


class WithMap(nn.Module):
    """Tracing cannot tell a map from a function that draws one, so the network is given a function."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, observed: Tensor, guidance: Tensor | None = None) -> Tensor:
        return self.network(observed, lambda *_: guidance)


@pytest.mark.parametrize("plan", ALL, ids=str)
@pytest.mark.parametrize("guidance", [0, 1])
def test_prenet_runs_by_every_recipe(plan: ExecutionPlan, guidance: int) -> None:
    torch.manual_seed(1)
    net = PReNet(guidance=guidance, recurrences=2)
    images = (torch.rand(1, 3, 40, 24), torch.rand(1, 1, 40, 24))[: 1 + guidance]
    error = runner(WithMap(net), plan, inputs=len(images))(*images) - net(*images)
    assert error.square().mean().sqrt() < (2e-3 if plan.bfloat16 else 1e-6)


def test_denormal_weights_are_flushed_and_the_picture_stays_bit_identical() -> None:
    net = convolutions()
    with torch.no_grad():
        net.first.weight[0] = 1e-39
        net.first.weight[1, 0, 0, 0] = -1e-40
    images = torch.rand(1, 3, 16, 16)
    before = net(images)
    assert flush_denormals_(net) == 28
    assert flush_denormals_(net) == 0
    assert torch.equal(net(images), before)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ({}, plain()),  # all the same: the simplest
        ({CANDIDATES[0]: 0.97}, plain()),  # too little to be more than noise
        ({CANDIDATES[0]: 0.5}, CANDIDATES[0]),
        ({CANDIDATES[0]: 0.5, CANDIDATES[3]: 0.49}, CANDIDATES[0]),
        ({CANDIDATES[0]: 0.5, CANDIDATES[3]: 0.3}, CANDIDATES[3]),
        (dict.fromkeys(CANDIDATES, 2.0), plain()),  # never loses to plain float32
    ],
)
def test_the_fastest_is_chosen_and_plain_float32_wins_ties(
    monkeypatch: pytest.MonkeyPatch, seconds: dict[ExecutionPlan, float], expected: ExecutionPlan
) -> None:
    class Runner:
        def __init__(self, _: nn.Module, plan: ExecutionPlan, **__: int) -> None:
            self.seconds = seconds.get(plan, 1.0)

        def __call__(self, x: Tensor) -> Tensor:
            return x

    monkeypatch.setattr(runtime, "runner", Runner)
    monkeypatch.setattr(runtime, "_seconds", lambda runner, _: runner.seconds)
    assert choose(nn.Identity(), torch.rand(1, 3, 8, 8)) == expected


def test_a_recipe_that_fails_or_deviates_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    def runner(_: nn.Module, plan: ExecutionPlan, **__: int) -> object:
        if plan.fused:
            raise RuntimeError("no such kernel")
        return lambda x: x + (float("nan") if plan.bfloat16 else 0.01) * plan.channels_last

    monkeypatch.setattr(runtime, "runner", runner)
    monkeypatch.setattr(runtime, "_seconds", lambda _, __: 1.0)
    assert choose(nn.Identity(), torch.rand(1, 3, 8, 8)) == plain()


def test_a_map_behind_the_picture_is_not_held_to_the_accuracy_of_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    rough = torch.tensor([0.0, 0.0, 0.0, 0.01]).view(1, 4, 1, 1)

    def runner(_: nn.Module, plan: ExecutionPlan, **__: int) -> object:
        return lambda x: x + rough * plan.bfloat16

    monkeypatch.setattr(runtime, "runner", runner)
    monkeypatch.setattr(runtime, "_seconds", lambda run, _: 1.0 if run(torch.zeros(1, 4, 1, 1)).sum() == 0 else 0.5)
    assert not choose(nn.Identity(), torch.rand(1, 4, 8, 8)).bfloat16
    assert choose(nn.Identity(), torch.rand(1, 4, 8, 8), compared=3).bfloat16


def test_a_network_that_cannot_be_traced_is_still_run() -> None:
    class Moody(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.mean() > 0 else -x

    assert not choose(Moody(), torch.rand(1, 3, 8, 8)).fused


def test_the_choice_is_measured_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net, images = convolutions(), torch.rand(1, 3, 16, 16)
    first = choose(net, images, cache=tmp_path / "cache", rounds=1)
    monkeypatch.setattr(runtime, "_fastest", lambda *_: pytest.fail("measured again"))
    assert choose(net, images, cache=tmp_path / "cache") == first
    assert choose(net, torch.rand(1, 3, 17, 20), cache=tmp_path / "cache") == first  # the same size class


def test_another_network_size_or_thread_count_is_measured_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(runtime, "_fastest", lambda *_: asked.append(1) or plain())
    choose(convolutions(), torch.rand(1, 3, 16, 16), cache=tmp_path)
    choose(nn.Conv2d(3, 3, 1), torch.rand(1, 3, 16, 16), cache=tmp_path)
    choose(convolutions(), torch.rand(1, 3, 64, 64), cache=tmp_path)
    choose(convolutions(5), torch.rand(1, 3, 16, 16), cache=tmp_path)  # other weights, same network
    assert len(asked) == 3


@pytest.mark.parametrize("content", ["", "[]", "{", '{"key": 1}'])
def test_a_damaged_cache_costs_a_measurement(tmp_path: Path, content: str) -> None:
    (tmp_path / "plans.json").write_text(content)
    plan = choose(nn.Conv2d(3, 3, 1), torch.rand(1, 3, 8, 8), cache=tmp_path, rounds=1)
    assert plan in ALL
    kept = json.loads((tmp_path / "plans.json").read_text())
    assert any(answer == runtime.asdict(plan) for answer in kept.values())


def test_peak_memory_is_counted_without_inputs_views_and_what_was_freed() -> None:
    images = torch.zeros(1, 4, 10, 10)  # 1600 bytes

    def chain(x: Tensor) -> Tensor:
        first = x[:, :2] + 1  # 800
        second = torch.cat([first, first.flip(3)], 1)  # 800 more, then 1600
        del first
        return second.relu_().view(1, 4, 100)

    assert peak_bytes(chain, images) == 3200
    assert peak_bytes(lambda x: x.flip(2).flip(2).flip(2), images) == 3200


def test_fused_convolutions_hold_less_memory_than_plain_ones() -> None:
    net, images = PReNet(recurrences=2), torch.rand(1, 3, 64, 64)
    held = {plan: peak_bytes(runner(net, plan), images) / images[0, 0].numel() for plan in ALL}
    assert held[ExecutionPlan(channels_last=True, bfloat16=True, fused=True)] < 480
    assert held[plain()] > 1500


def test_a_cache_that_cannot_be_written_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert choose(nn.Conv2d(3, 3, 1), torch.rand(1, 3, 8, 8), cache=tmp_path / "file", rounds=1) in ALL
