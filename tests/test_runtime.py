"""How networks are run: every plan computes the same picture, the choice never loses, and is kept."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tiny_models import convolutions
from twofold.nets.prenet import PReNet
from twofold.runtime import ExecutionPlan, flush_denormals_, peak_bytes, plain, plan_for, runner

ALL = (
    plain(),
    *(
        ExecutionPlan(channels_last=True, bfloat16=half, fused=fused)
        for half in (False, True)
        for fused in (False, True)
    ),
    ExecutionPlan(bfloat16=True),
    ExecutionPlan(fused=True),
)


@pytest.mark.parametrize("plan", ALL, ids=str)
@pytest.mark.parametrize("inputs", [1, 2])
def test_every_plan_computes_the_same_picture(plan: ExecutionPlan, inputs: int) -> None:
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
def test_prenet_runs_by_every_plan(plan: ExecutionPlan, guidance: int) -> None:
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


def test_the_recipe_is_a_rule_of_device_and_precision_and_measures_nothing() -> None:
    cpu = torch.device("cpu")
    first, second = (plan_for(cpu, bfloat16=True) for _ in range(2))
    assert first == second
    assert first.bfloat16
    assert first.channels_last
    assert not plan_for(cpu, bfloat16=False).bfloat16


def test_a_network_that_cannot_be_traced_is_still_run() -> None:
    class Moody(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.mean() > 0 else -x

    image = torch.rand(1, 3, 8, 8)
    assert torch.equal(runner(Moody(), ExecutionPlan(channels_last=True, fused=True))(-image), image)


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
