"""The Hadamard network: counts, division, sizes, pieces, recomputation."""

import pytest
import torch
from torch import nn

from twofold.contracts import ImageError
from twofold.nets import hadamard
from twofold.nets.hadamard import (
    COMBINATIONS,
    GUARD,
    Divide,
    FeatureNorm,
    HadamardNet,
    Place,
    paper_divisor,
    sigmoid_divisor,
    softplus_divisor,
    subtract_branches,
)
from twofold.runtime import peak_bytes
from twofold.space.genotype import uniform_genotype
from twofold.space.operations import CONVERT_CANDIDATES, UNIT_CANDIDATES, Convolution, Dense, Skip
from twofold.tiling import padded


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def three_c(place: Place, outputs: int) -> nn.Module:
    return Convolution(place.inputs, outputs, size=3)


@pytest.mark.parametrize(
    ("in_units", "elsewhere", "parameters"), [("3-C", "3-C", 621_408), ("1-C", "1-C", 79_968), ("3-RC", "3-C", 621_408)]
)
def test_parameter_counts_are_those_of_the_published_program(in_units, elsewhere, parameters):
    assert count(uniform_genotype(in_units, elsewhere).network()) == parameters


def test_eight_operations_in_one_branch_keep_the_count_of_two_branches():
    single = HadamardNet(three_c, combine=None, ops_per_branch=8)
    assert count(single) == count(HadamardNet(three_c))


def test_places_are_visited_once_and_counted_as_in_the_architecture_tables():
    seen = []

    def cell(place: Place, outputs: int) -> nn.Module:
        seen.append((place.group, place.row))
        return three_c(place, outputs)

    HadamardNet(cell)
    groups = {group: [row for g, row in seen if g == group] for group, _ in seen}
    assert sorted(groups["encoder"]) == sorted(groups["decoder"]) == list(range(9))
    assert all(sorted(groups[f"unit{n}"]) == list(range(8)) for n in range(1, 8))
    assert len(seen) == len(set(seen))


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (2, 3), (7, 4), (13, 18)])
def test_any_size_goes_in_and_comes_out(size):
    net = HadamardNet(three_c, width=8, units=1)
    restored = net(torch.rand(2, 3, *size))
    assert restored.shape == (2, 3, *size)
    assert torch.isfinite(restored).all()


@pytest.mark.parametrize("size", [(1, 1), (3, 300), (260, 261)])
@torch.no_grad()
def test_a_border_is_the_mirror_image_in_use_and_nothing_in_training(size, monkeypatch):
    torch.manual_seed(0)
    net = HadamardNet(three_c, width=8, units=1, border=16)
    plain = HadamardNet(three_c, width=8, units=1)
    plain.load_state_dict(net.state_dict())
    image = torch.rand(1, 3, *size)
    height, width = size
    assert torch.equal(net(image), plain(image))
    expected = plain(padded(image, 4, border=16))[:, :, 16 : 16 + height, 16 : 16 + width]
    assert torch.equal(net.eval()(image), expected)
    monkeypatch.setattr(hadamard, "PIECE", 8)
    torch.testing.assert_close(net(image), expected, atol=1e-5, rtol=1e-4)


def test_a_guidance_map_is_refused():
    with pytest.raises(ImageError, match="takes no guidance"):
        HadamardNet(three_c, width=8, units=1)(torch.rand(1, 3, 8, 8), torch.rand(1, 1, 8, 8))


@pytest.mark.parametrize("divisor", [paper_divisor, sigmoid_divisor, softplus_divisor])
def test_division_is_finite_and_differentiable_around_the_guard(divisor):
    u = torch.ones(201, dtype=torch.float64, requires_grad=True)
    at_guard = torch.logit(torch.tensor(GUARD, dtype=torch.float64))
    v = (at_guard + torch.linspace(-100, 100, 201, dtype=torch.float64)).requires_grad_()
    out = Divide(divisor)(u, v)
    gradients = torch.autograd.grad(out.sum(), (u, v))
    assert all(torch.isfinite(t).all() for t in (out, *gradients))
    assert out.max() <= 1 / GUARD
    assert torch.autograd.gradcheck(Divide(divisor), (u[90:100], (v[90:100] + 0.3).detach().requires_grad_()))


def test_the_published_divisor_at_most_doubles_and_the_guard_stops_the_gradient_of_sigmoid():
    v = torch.linspace(-30, 30, 61, requires_grad=True)
    gain = Divide(paper_divisor)(torch.ones(61), v)
    assert gain.min() >= 1.0
    assert gain.max() <= 2.0
    (slope,) = torch.autograd.grad(sigmoid_divisor(v).sum(), v)
    assert (slope[v < -5] == 0).all()
    assert (slope[(v > -4) & (v < 4)] > 0).all()


def test_half_precision_is_divided_in_float32():
    u, v = torch.full((1,), 1.0, dtype=torch.bfloat16), torch.full((1,), -3.0, dtype=torch.bfloat16)
    expected = 1 / torch.sigmoid(torch.tensor(-3.0))
    result = Divide(sigmoid_divisor)(u, v)
    assert result.dtype == torch.bfloat16
    assert result.float() == expected.to(torch.bfloat16).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert Divide(softplus_divisor)(u.float(), v.float()).dtype == torch.float32


def test_the_three_operators_differ_and_subtraction_is_of_the_rectified_branches():
    assert subtract_branches(torch.tensor([2.0, -1.0]), torch.tensor([0.5, -3.0])).tolist() == [1.5, 0.0]
    torch.manual_seed(0)
    x = torch.rand(1, 3, 16, 16)
    results = []
    for combine in COMBINATIONS.values():
        torch.manual_seed(1)
        results.append(HadamardNet(three_c, width=8, units=2, combine=combine)(x))
    assert all((a - b).abs().max() > 1e-4 for i, a in enumerate(results) for b in results[:i])


def test_the_norm_is_instance_norm_without_scale_in_both_memory_layouts():
    x = torch.randn(2, 5, 6, 7)
    expected = nn.InstanceNorm2d(5)(x)
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.testing.assert_close(FeatureNorm()(x.contiguous(memory_format=layout)), expected, atol=1e-5, rtol=1e-5)


def test_the_norm_is_taken_in_float32_inside_autocast_too():
    x = torch.randn(1, 4, 8, 8).to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        found = FeatureNorm()(x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, FeatureNorm()(x.float()).to(torch.bfloat16), atol=0, rtol=0)


def test_the_restored_picture_is_not_rounded_to_half_precision():
    net = HadamardNet(three_c, width=8, units=1)
    with torch.autocast("cpu", torch.bfloat16):
        restored = net(torch.rand(1, 3, 8, 8))
    assert restored.dtype == torch.float32
    assert (restored != restored.bfloat16().float()).any()


@pytest.mark.parametrize("op", ["3-2-DC", "5-C"])
@pytest.mark.parametrize("piece", [1, 3, 8])
@pytest.mark.parametrize("size", [(75, 131), (260, 8), (3, 300)])
@torch.no_grad()
def test_a_picture_in_pieces_equals_the_whole(op, piece, size, monkeypatch):
    torch.manual_seed(0)
    net = HadamardNet(lambda place, outputs: CONVERT_CANDIDATES[op](place.inputs, outputs), width=8, units=1)
    image = torch.rand(2, 3, *size)
    whole = net(image)
    calls = []
    net.head.register_forward_hook(lambda *_: calls.append(1))
    monkeypatch.setattr(hadamard, "PIECE", piece)
    torch.testing.assert_close(net(image), whole, atol=1e-5, rtol=1e-4)
    assert len(calls) > 1


@pytest.mark.parametrize("combine", list(COMBINATIONS))
@pytest.mark.parametrize("op", ["SC", "1-C", "3-2-RDC", "3-DC"])
@torch.no_grad()
def test_a_unit_in_strips_equals_the_whole_in_both_memory_layouts(op, combine, monkeypatch):
    torch.manual_seed(0)

    def cell(place: Place, outputs: int) -> nn.Module:
        return UNIT_CANDIDATES[op](place.inputs, outputs) if place.in_unit else three_c(place, outputs)

    unit = HadamardNet(cell, width=8, units=1, combine=COMBINATIONS[combine]).units[0]
    features = torch.randn(2, 8, 13, 17) + 3
    monkeypatch.setattr(hadamard, "PIECE", 4)
    for layout in (torch.contiguous_format, torch.channels_last):
        given = features.to(memory_format=layout, copy=True)
        torch.testing.assert_close(unit.in_strips(given), unit(features), atol=1e-4, rtol=1e-4)
        assert torch.equal(given, features)


def test_a_large_picture_takes_three_maps_of_the_quarter_size(monkeypatch):
    """Beyond what the pieces take, which does not grow with the picture."""
    monkeypatch.setattr(hadamard, "PIECE", 12)

    def cell(place: Place, outputs: int) -> nn.Module:
        return three_c(place, outputs) if place.inputs != outputs else Skip(place.inputs, outputs)

    net = HadamardNet(cell, units=2).eval()
    net.units[0].numerator.operations[1] = Dense(32, 32, size=3)
    sides = (256, 768)
    small, large = (peak_bytes(net, torch.rand(1, 3, side, side)) for side in sides)
    grown = (large - small) / (sides[1] ** 2 - sides[0] ** 2)
    assert grown < 1.1 * 3 * 32 * 4 / 16  # bytes a pixel: maps, channels, float32, pixels of a block


@pytest.mark.parametrize("checkpointed", [False, True])
def test_gradients_under_functional_call_are_those_of_the_given_parameters(checkpointed):
    """A recomputation that took the module's own parameters would give another network's gradient, silently."""
    torch.manual_seed(0)
    net = HadamardNet(three_c, width=8, units=2, checkpointed=checkpointed).double()
    other = HadamardNet(three_c, width=8, units=2).double()
    x = torch.rand(1, 3, 8, 12, dtype=torch.float64)
    given = {name: p.detach().clone().requires_grad_() for name, p in other.named_parameters()}
    found = torch.autograd.grad(torch.func.functional_call(net, given, (x,)).square().mean(), list(given.values()))
    expected = torch.autograd.grad(other(x).square().mean(), list(other.parameters()))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
