"""Convolutions fused with what follows them."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tiny_models import convolutions
from twofold.fusion import fused
from twofold.nets.prenet import PReNet
from twofold.runtime import ExecutionPlan, runner


@given(seed=st.integers(0, 100), height=st.integers(1, 20), width=st.integers(1, 20))
@settings(max_examples=15, deadline=None)
def test_fusing_is_exact_at_every_size(seed: int, height: int, width: int) -> None:
    net = convolutions(seed)
    net.mirrored.padding_mode = "zeros"  # mirroring needs two pixels
    images = torch.rand(1, 3, height, width)
    assert torch.allclose(runner(net, ExecutionPlan(fused=True))(images), net(images), atol=1e-5)


def test_the_residual_network_is_fused_down_to_convolutions_and_gates() -> None:
    operations = [node for node in fused(PReNet(recurrences=2)).graph.nodes if node.op == "call_function"]
    names = [getattr(node.target, "__name__", str(node.target)) for node in operations]
    assert names.count("relu") + names.count("relu_") == 2  # one a recurrence: only the first block's input has a sign
    assert names.count("sigmoid") == 0
    assert names.count("tanh") + names.count("tanh_") == 2  # of the memory; that of the gate is part of its convolution


def test_a_precise_sum_is_not_rounded_to_the_precision_of_its_first_operand() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 3, 3, padding=1)
            nn.init.zeros_(self.layer.weight)
            nn.init.zeros_(self.layer.bias)  # type: ignore[arg-type]

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) + x

    images = torch.rand(1, 3, 8, 8)
    assert torch.equal(runner(Residual(), ExecutionPlan(bfloat16=True, fused=True))(images), images)
