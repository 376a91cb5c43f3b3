"""Operations, mixtures, genotypes: the fast sum against the plain one, the found network against one-hot choices."""

import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from twofold.contracts import ConfigError
from twofold.nets.hadamard import HadamardNet, Place
from twofold.solve import Bilevel, CentralDifference, Exact, OneStepUnrolled, hypergradient
from twofold.space.genotype import Genotype, derive, entropy, shares, uniform_genotype
from twofold.space.operations import CONVERT_CANDIDATES, UNIT_CANDIDATES
from twofold.space.supernet import Mixture, architecture, mixtures, mixtures_of, network_weights


def copy_weights(supernet: HadamardNet, found: HadamardNet) -> None:
    """Gives a found network the parameters that its operations have in the supernet, in place: a warm start."""
    genotype = derive(supernet)
    for name, mixture in mixtures_of(supernet).items():
        chosen = mixture.candidates[genotype.groups[mixture.place.group][mixture.place.row]]
        found.get_submodule(name).load_state_dict(chosen.state_dict())
    own = dict(supernet.named_parameters())
    with torch.no_grad():
        for name, value in found.named_parameters():
            if name in own:  # the down- and upsamplings
                value.copy_(own[name])


def plain_sum(mixture: Mixture, x):
    """What `Mixture` means, one candidate after the other: its slow twin."""
    return sum(w * op(x) for w, op in zip(mixture.weights(), mixture.candidates.values(), strict=True))


def supernet(*, width=32, units=7, seed=0, noise=1e-3, light=False, checkpointed=False):
    torch.manual_seed(seed)
    cell = mixtures(torch.Generator().manual_seed(seed), noise=noise, light=light)
    return HadamardNet(cell, width=width, units=units, checkpointed=checkpointed)


@pytest.mark.parametrize(
    ("candidates", "expected"),
    [
        (UNIT_CANDIDATES, [0, 1_024, 9_216, 9_216, 1_024, 9_216, 9_216, 3_072, 27_648]),
        (CONVERT_CANDIDATES, [25_600, 1_024, 9_216, 9_216]),
    ],
)
def test_candidates_have_the_published_parameter_counts_and_no_bias(candidates, expected):
    made = [make(32, 32) for make in candidates.values()]
    assert [sum(p.numel() for p in op.parameters()) for op in made] == expected
    for op in made:
        assert op(torch.zeros(1, 32, 6, 6)).abs().max() == 0


def test_candidates_are_the_formulas_of_the_paper():
    torch.manual_seed(0)
    x = torch.randn(1, 4, 7, 9)
    op = {name: make(4, 4) for name, make in UNIT_CANDIDATES.items()}
    torch.testing.assert_close(op["SC"](x), x)
    w = op["3-2-RDC"].weight
    torch.testing.assert_close(op["3-2-RDC"](x), x + F.conv2d(x, w, padding=2, dilation=2))
    dense = op["3-DC"]
    hidden = F.relu(F.conv2d(x, dense.inner.weight, padding=1))
    torch.testing.assert_close(dense(x), F.conv2d(torch.cat([x, hidden], 1), dense.outer.weight, padding=1))


def test_a_skip_between_different_channels_is_refused():
    with pytest.raises(ConfigError, match="keep the channels"):
        UNIT_CANDIDATES["SC"](3, 16)


class Square(nn.Module):
    """A candidate of another kind: neither linear nor dense."""

    radius = 0

    def __init__(self, inputs, outputs):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5))

    def forward(self, features):
        return self.scale * features.square()


@pytest.mark.parametrize("candidates", [UNIT_CANDIDATES, CONVERT_CANDIDATES, {**UNIT_CANDIDATES, "square": Square}])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_mixture_equals_the_plain_sum_in_value_and_all_gradients(candidates, layout):
    torch.manual_seed(0)
    mixture = Mixture(candidates, Place("unit1", 0, 6), 6, logits=torch.randn(len(candidates))).double()
    x = torch.randn(2, 6, 9, 11, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    wanted = [x, *mixture.parameters()]
    fast, plain = mixture(x), plain_sum(mixture, x)
    torch.testing.assert_close(fast, plain)
    weight = torch.randn_like(plain)
    first_fast = torch.autograd.grad((fast * weight).sum(), wanted, create_graph=True)
    first_plain = torch.autograd.grad((plain * weight).sum(), wanted, create_graph=True)
    for a, b in zip(first_fast, first_plain, strict=True):
        torch.testing.assert_close(a, b)
    # and once more: what one unrolled step needs
    second_fast = torch.autograd.grad(sum(g.square().sum() for g in first_fast), wanted)
    second_plain = torch.autograd.grad(sum(g.square().sum() for g in first_plain), wanted)
    for a, b in zip(second_fast, second_plain, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(("light", "checkpointed"), [(False, False), (True, False), (False, True)])
def test_the_whole_supernet_equals_its_slow_twin(light, checkpointed, monkeypatch):
    net = supernet(width=8, units=2, noise=1.0, light=light, checkpointed=checkpointed).double()
    x, clean = torch.rand(2, 1, 3, 16, 20, dtype=torch.float64).unbind()

    def loss_and_gradients():
        loss = F.mse_loss(net(x), clean)
        return loss, torch.autograd.grad(loss, list(net.parameters()))

    loss, gradients = loss_and_gradients()
    monkeypatch.setattr(Mixture, "forward", plain_sum)
    net.checkpointed = False
    slow_loss, slow_gradients = loss_and_gradients()
    assert abs(loss - slow_loss) < 1e-10
    for a, b in zip(gradients, slow_gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-5)


@pytest.mark.parametrize(("light", "checkpointed"), [(True, False), (False, True)])
def test_recomputation_uses_the_parameters_of_the_call(light, checkpointed):
    net = supernet(width=8, units=1, seed=1, light=light, checkpointed=checkpointed)
    other = supernet(width=8, units=1, seed=2)
    x = torch.rand(1, 3, 8, 8)
    given = {name: p.detach().clone().requires_grad_() for name, p in other.named_parameters()}
    found = torch.autograd.grad(torch.func.functional_call(net, given, (x,)).square().mean(), list(given.values()))
    expected = torch.autograd.grad(other(x).square().mean(), list(other.parameters()))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("cross", [Exact(), CentralDifference()])
def test_an_unrolled_step_through_recomputation_is_the_same(cross):
    """Double backward included: recomputed graphs are differentiated again."""
    x, clean = torch.rand(2, 1, 3, 8, 8, dtype=torch.float64).unbind()
    found = []
    for light, checkpointed in ((False, False), (True, False), (False, True)):
        net = supernet(width=4, units=1, light=light, checkpointed=checkpointed).double()

        def loss(alpha, omega, net=net):
            return F.mse_loss(torch.func.functional_call(net, {**alpha, **omega}, (x,)), clean)

        problem = Bilevel(upper=loss, lower=loss)
        step = OneStepUnrolled(0.1, cross)
        found.append(
            hypergradient(problem, dict(architecture(net)), dict(network_weights(net)), strategy=step).gradient
        )
    for name, gradient in found[0].items():
        for other in found[1:]:
            torch.testing.assert_close(other[name], gradient, atol=1e-9, rtol=1e-4)


def test_the_supernet_has_4_366_464_weights_and_576_logits():
    net = supernet()
    assert sum(p.numel() for p in network_weights(net).values()) == 4_366_464
    assert sum(p.numel() for p in architecture(net).values()) == 576
    assert len(architecture(net)) == 7 * 8 + 9 + 9


def test_the_same_seed_gives_the_same_logits_and_another_seed_others():
    first, again, other = (architecture(supernet(width=8, units=1, seed=s)) for s in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_derive_is_the_argmax_of_every_row():
    net = supernet(width=8, units=2, noise=1.0)
    genotype = derive(net)
    tables = shares(net)
    for group, names in genotype.groups.items():
        table = list(UNIT_CANDIDATES if group.startswith("unit") else CONVERT_CANDIDATES)
        assert [table.index(name) for name in names] == tables[group].argmax(1).tolist()


def test_the_found_network_is_the_supernet_with_one_hot_choices():
    net = supernet(width=8, units=2, noise=1.0)
    found = derive(net).network(width=8)
    copy_weights(net, found)
    with torch.no_grad():
        for mixture in mixtures_of(net).values():
            best = int(mixture.logits.argmax())
            mixture.logits.fill_(-1e4)[best] = 0.0
        x = torch.rand(1, 3, 21, 18)
        torch.testing.assert_close(found(x), net(x), atol=1e-6, rtol=1e-5)
    assert entropy(net) == pytest.approx(0.0, abs=1e-6)


def test_entropy_is_one_for_uniform_weights():
    assert entropy(supernet(width=8, units=1, noise=0.0)) == pytest.approx(1.0, abs=1e-5)


def test_skip_ratio_counts_the_units_only():
    groups = dict(uniform_genotype("3-C", "3-C", units=2).groups)
    groups["unit2"] = ("SC",) * 4 + ("1-C",) * 4
    assert Genotype(groups).skip_ratio == 0.25


def test_a_genotype_survives_json_and_the_file_is_readable(tmp_path):
    genotype = derive(supernet(width=8, units=2, noise=1.0))
    path = tmp_path / "genotype.json"
    genotype.write(path)
    assert Genotype.from_json(path.read_text()) == genotype
    assert json.loads(path.read_text())["groups"]["unit1"][0] in UNIT_CANDIDATES


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "not a genotype"),
        ("[1, 2]", "not a genotype"),
        ("nothing", "not a genotype"),
        ('{"groups": {}, "ops_per_branch": "four"}', "not a genotype"),
        (uniform_genotype("3-C", "3-C", units=1).to_json().replace('"unit1"', '"unit7"'), "has the groups"),
        (uniform_genotype("3-C", "3-C", units=1).to_json().replace("3-C", "3-CC"), "did you mean '3-C'"),
        (json.dumps({"groups": {"encoder": ["3-C"] * 8, "decoder": ["3-C"] * 9}}), "encoder has 8"),
    ],
)
def test_a_broken_genotype_is_refused_with_the_reason(text, message):
    with pytest.raises(ConfigError, match=message):
        Genotype.from_json(text)


def test_a_genotype_with_two_branches_cannot_be_built_without_division():
    with pytest.raises(ConfigError, match="disagree"):
        uniform_genotype("3-C", "3-C", units=1).network(combine=None)
    uniform_genotype("3-C", "3-C", units=1, branches=1).network(combine=None)
