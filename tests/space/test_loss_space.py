"""The loss space: values, constraints, layer choices, loss files, and that first order cannot search it."""

from pathlib import Path

import pytest
import torch
from torch import nn

from twofold import losses
from twofold.contracts import ConfigError, WeightsError
from twofold.losses import LOSSES, PLAIN, DistanceLoss, LayerLoss, LossSpec, l1, l2, ssim
from twofold.nets.perceptual import DirectionDistance, FeatureNetwork, FeatureWeights
from twofold.search.recipe import SearchRecipe
from twofold.settings import checked
from twofold.solve import Bilevel, CentralDifference, FirstOrder, OneStepUnrolled, SolveError, hypergradient
from twofold.space.loss_space import Clipped, FeatureChoice, FixedSum, LossSpace, Softplus, searchable
from twofold.train.reading import read_recipe, tree_of

GROUPS = ((0, 1), (2, 3))


@pytest.fixture
def network():
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU())
    return FeatureNetwork(layers, mean=(0.5,) * 3, deviation=(0.5,) * 3, smallest=8)


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    clean = torch.rand(2, 3, 16, 20, generator=generator)
    return (clean + 0.1 * torch.randn(clean.shape, generator=generator)).clamp(0, 1), clean


@pytest.fixture
def table(network, monkeypatch):
    """The table with two perceptual losses of a random network, whose weights are read from no file."""
    monkeypatch.setattr(losses, "load_features", lambda weights, folder: weights.build())
    features = LayerLoss(FeatureWeights(lambda: network, "random", "nowhere"), GROUPS)
    monkeypatch.setitem(LOSSES, "features_random", features)
    distance = DirectionDistance(network, (1, 3), name="perceptual_random")
    monkeypatch.setitem(LOSSES, "perceptual_random", DistanceLoss(lambda folder: distance))
    return LOSSES


EIGHT = ["l1", "l2", "colour", "ssim", "perceptual_random", "features_random", "tv", "laplacian"]


def eight_losses():
    return searchable(EIGHT, generator=torch.Generator().manual_seed(0))


def test_there_are_eight_losses_in_the_order_asked_for_and_all_start_at_one(table, pair):
    space = LossSpace(eight_losses())
    assert list(space.terms) == EIGHT
    assert space.weights().tolist() == [1.0] * 8
    torch.testing.assert_close(space(*pair), space.values(*pair).sum())
    torch.testing.assert_close(space.values(*pair)[3], ssim(*pair))


def test_beta_is_the_weights_and_the_layer_choices_and_nothing_of_the_network(table):
    space = LossSpace(eight_losses())
    assert sorted(p.numel() for p in space.parameters()) == [2, 2, 8]
    assert not any("network" in name for name in space.state_dict())


@pytest.mark.parametrize("constraint", [Clipped(), Softplus(), FixedSum()])
def test_weights_stay_non_negative_whatever_the_steps(constraint):
    space = LossSpace({"l1": l1, "l2": l2}, constraint=constraint)
    torch.testing.assert_close(space.weights(), torch.ones(2))
    with torch.no_grad():
        space.raw -= torch.tensor([7.0, 0.5])
    space.project()
    weights = space.weights()
    assert (weights >= 0).all()
    assert weights[1] > weights[0]
    if isinstance(constraint, FixedSum):
        assert weights.sum().item() == pytest.approx(2.0)
    if isinstance(constraint, Clipped):
        assert weights.tolist() == [0.0, 0.5]


def test_a_layer_choice_weighs_each_group_by_its_softmax(network, pair):
    logits = [torch.tensor([0.0, 50.0]), torch.tensor([50.0, 0.0])]
    choice = FeatureChoice(network, GROUPS, logits=logits)
    only = [(a - b).abs().mean() for a, b in zip(network(pair[0], [1, 2]), network(pair[1], [1, 2]), strict=True)]
    torch.testing.assert_close(choice(*pair), sum(only))
    assert choice.chosen() == (1, 2)


def test_the_derived_loss_equals_the_space_once_choices_are_made(table, pair, tmp_path):
    space = LossSpace(eight_losses())
    with torch.no_grad():
        space.raw.copy_(torch.tensor([1.38, 0.0, 0.82, 1.23, 0.49, 0.74, 0.0, 0.3]))
        for logits in space.terms["features_random"].logits:
            logits.copy_(torch.tensor([0.0, 90.0]))
    found = LossSpec.from_yaml(space.derive().to_yaml())
    assert found == space.derive()
    assert found.layers == {"features_random": (1, 3)}
    torch.testing.assert_close(found.build(tmp_path)(*pair), space(*pair))


def darkness(restored, clean):
    return (1 - restored).mean()


def test_a_plain_loss_is_trainable_and_searchable_by_one_line_in_the_table(pair, monkeypatch):
    monkeypatch.setitem(LOSSES, "darkness", darkness)
    recipe = read_recipe("derain", ["loss={l1: 1.0, darkness: 0.5}"])
    torch.testing.assert_close(recipe.loss.build(Path())(*pair), l1(*pair) + 0.5 * darkness(*pair))
    asked = checked(SearchRecipe, tree_of("search-haze", ["loss.terms=[l1, darkness]"]))
    space = asked.loss.build(Path())
    torch.testing.assert_close(space(*pair), l1(*pair) + darkness(*pair))
    assert LossSpec.from_yaml(space.derive().to_yaml()) == LossSpec({"l1": 1.0, "darkness": 1.0})


def test_a_loss_file_survives_the_disk(tmp_path):
    file = LossSpec({"l1": 1.38, "ssim": 0.1 + 0.2}, {"features_vgg19": (1, 6)})
    file.write(tmp_path / "loss.yaml")
    assert LossSpec.from_yaml((tmp_path / "loss.yaml").read_text()) == file


def test_losses_of_weight_zero_are_not_computed(tmp_path):
    loss = LossSpec({"l1": 2.0, "perceptual_squeeze": 0.0}).build(tmp_path)
    assert loss(torch.ones(1, 3, 4, 4), torch.zeros(1, 3, 4, 4)) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("weights: {colr: 1}", "did you mean 'colour'"),
        ("weights: {l1: -1}", "at least 0"),
        ("weights: {l1: .inf}", "finite"),
        ("weights: {l1: 0}", "no loss has a weight"),
        ("weights: {features_vgg19: 1}", "names no layers"),
        ("wieghts: {l1: 1}", "unknown loss 'wieghts'"),
        ("layers: {}", "not a loss file"),
        ("{weights: {l1: 1}, layres: {}}", "unknown key 'layres'"),
        ("just words", "expected losses by name"),
        ("[1", "not a loss file"),
    ],
)
def test_a_broken_loss_file_is_refused_with_the_reason(text, message):
    with pytest.raises(ConfigError, match=message):
        LossSpec.from_yaml(text)


@pytest.mark.parametrize("name", [name for name, loss in LOSSES.items() if isinstance(loss, DistanceLoss | LayerLoss)])
def test_weights_of_a_network_that_are_missing_are_named_when_the_loss_is_called(name, pair, tmp_path):
    loss = LossSpec({name: 1.0}, {name: (1,)}).build(tmp_path)
    with pytest.raises(WeightsError, match="put the file there"):
        loss(*pair)
    with pytest.raises(WeightsError, match="put the file there"):
        searchable([name], folder=tmp_path)


def search_problem():
    """One grey level is the network; the judge wants it at 1; l1 pulls to the clean 0.5, brightness to 1."""
    space = LossSpace({"l1": l1, "bright": lambda restored, clean: (1 - restored).mean()})
    clean = torch.full((1, 3, 4, 4), 0.5)

    def restored(level):
        return level.expand(1, 3, 4, 4)

    def lower(beta, level):
        return torch.func.functional_call(space, beta, (restored(level), clean))

    problem = Bilevel(upper=lambda beta, level: (1 - restored(level)).square().mean(), lower=lower)
    return problem, {name: p.detach() for name, p in space.named_parameters()}, torch.tensor([0.2])


def test_a_first_order_search_for_loss_weights_is_refused():
    problem, beta, level = search_problem()
    with pytest.raises(SolveError, match="identically zero"):
        hypergradient(problem, beta, level, strategy=FirstOrder())


@pytest.mark.parametrize("cross", [None, CentralDifference()])
def test_one_unrolled_step_gives_the_gradient_in_closed_form(cross):
    problem, beta, level = search_problem()
    strategy = OneStepUnrolled(0.1) if cross is None else OneStepUnrolled(0.1, cross)
    found = hypergradient(problem, beta, level, strategy=strategy)
    moved = 0.2 + 0.1 * (1 + 1)  # both losses push up with slope 1
    expected = -2 * (1 - moved) * 0.1  # for each weight
    torch.testing.assert_close(found.gradient["raw"], torch.full((2,), expected), atol=1e-4, rtol=1e-3)


def test_the_six_plain_losses_are_scalars_of_the_picture(pair):
    for name, loss in searchable(PLAIN).items():
        assert loss(*pair).shape == (), name
