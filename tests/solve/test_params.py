"""Arithmetic on trees."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from twofold.solve import SolveError, as_function
from twofold.solve.params import axpy, dot, gradient, norm, pull, tensors

TREES = [
    torch.randn(3, 4),
    (torch.randn(3, 2), torch.randn(3, 5, 2)),
    {"a": torch.randn(3, 2), "b": [torch.randn(3), torch.randn(3, 1)]},
]


@pytest.mark.parametrize("tree", TREES)
def test_dot_per_sample_sums_to_dot(tree):
    torch.testing.assert_close(dot(tree, tree, per_sample=True).sum(), dot(tree, tree))
    torch.testing.assert_close(norm(tree) ** 2, sum((t**2).sum() for t in tensors(tree)))


@given(a=st.floats(-3, 3))
def test_axpy_with_one_number_a_sample_equals_axpy_with_that_number(a):
    for tree in TREES:
        per_sample = axpy(torch.full((3,), a), tree, tree)
        for one, other in zip(tensors(per_sample), tensors(axpy(a, tree, tree)), strict=True):
            torch.testing.assert_close(one, other)


def test_gradient_can_be_differentiated_again_only_in_grad_mode():
    u = torch.tensor([2.0], requires_grad=True)
    first = gradient(lambda v: (v**3).sum(), u)
    (second,) = torch.autograd.grad(first.sum(), u)
    assert second.item() == 12.0
    with torch.no_grad():
        assert not gradient(lambda v: (v**3).sum(), u).requires_grad


def test_gradient_of_a_tensor_that_the_loss_ignores_is_zero():
    seen, ignored = gradient(lambda u: u[0].sum(), (torch.ones(2), torch.ones(3)))
    assert seen.tolist() == [1, 1]
    assert ignored.tolist() == [0, 0, 0]
    assert pull(torch.ones(()), [torch.ones(2)])[0].tolist() == [0, 0]


def test_a_loss_that_is_no_scalar_and_a_leaf_that_is_no_tensor_are_refused():
    with pytest.raises(SolveError, match="scalar"):
        gradient(lambda u: u, torch.ones(2))
    with pytest.raises(SolveError, match="found a float"):
        tensors((torch.ones(1), 2.0))


def test_a_module_as_a_function_leaves_the_module_alone_and_is_differentiable():
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    function, parameters = as_function(net)
    x = torch.randn(5, 3)
    torch.testing.assert_close(function(parameters, x), net(x))
    before = [p.clone() for p in net.parameters()]
    found = gradient(lambda p: function(p, x).square().sum(), parameters)
    net(x).square().sum().backward()
    for (name, p), old in zip(net.named_parameters(), before, strict=True):
        torch.testing.assert_close(found[name], p.grad)
        assert torch.equal(p, old)


def test_batch_norm_in_training_mode_is_refused_and_in_evaluation_mode_is_not():
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    function, parameters = as_function(net)
    with pytest.raises(SolveError, match=r"BatchNorm '1' is in training mode.*GroupNorm"):
        function(parameters, torch.randn(5, 3))
    net.eval()
    function(parameters, torch.randn(5, 3))
