"""Feature networks and distances. Random features here; the published SqueezeNet where the data folder has it."""

import os
import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from twofold.contracts import ImageError, WeightsError
from twofold.nets import perceptual as p

DATA = Path(os.environ.get("TWOFOLD_DATA", Path(__file__).parents[3] / "shared" / "data"))
SQUEEZE = DATA / "features" / "squeezenet1_0.pth"


def filled(source: p.FeatureWeights, folder: Path, suffix: str = ".pth") -> Path:
    """A weights file of random values, with a classifier that nobody asked for, as the published files have it."""
    torch.manual_seed(0)
    state = {f"features.{key}": value for key, value in source.build().features.state_dict().items()}
    state["classifier.1.weight"] = torch.zeros(2, 2)
    path = folder / f"{source.stem}-0000{suffix}"
    if suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        torch.save(state, path)
    return path


def pictures(size: int = 64, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(2, 3, size, size, generator=generator), torch.rand(2, 3, size, size, generator=generator)


@pytest.mark.parametrize(
    ("source", "convolutions", "rectified"),
    [
        # Parameters of the convolutional parts, from the published architectures.
        (p.VGG16, 14_714_688, {3: 64, 8: 128, 15: 256, 22: 512, 29: 512}),
        (p.VGG19, 20_024_384, {3: 64, 8: 128, 17: 256, 26: 512, 35: 512}),
        (p.ALEXNET, 2_469_696, {1: 64, 4: 192, 7: 384, 9: 256, 11: 256}),
        (p.SQUEEZENET, 735_424, {1: 96, 5: 256, 10: 512, 12: 512}),
    ],
)
def test_layers_are_numbered_as_in_the_published_networks(
    source: p.FeatureWeights, convolutions: int, rectified: dict[int, int]
) -> None:
    network = source.build()
    assert sum(parameter.numel() for parameter in network.parameters()) == convolutions
    features = network(torch.rand(1, 3, network.smallest, network.smallest), list(rectified))
    assert [feature.shape[1] for feature in features] == list(rectified.values())
    assert all(feature.min() >= 0 for feature in features)
    assert network(torch.rand(1, 3, network.smallest, network.smallest), [len(network.features) - 1])[0].numel() > 0
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_every_network_normalises_its_input_as_it_was_trained() -> None:
    seen: list[Tensor] = []
    grey = torch.full((1, 3, 64, 64), 0.5)
    for source in (p.SQUEEZENET, p.VGG16):
        network = source.build()
        network.features[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0, :, 0, 0]))
        network(grey, [0])
    torch.testing.assert_close(seen[0], torch.tensor([4.5, 10.5, 23.5]))  # 127.5 − (123, 117, 104)
    torch.testing.assert_close(seen[1], torch.tensor([0.015 / 0.229, 0.044 / 0.224, 0.094 / 0.225]))


def test_grey_pictures_count_as_equal_red_green_and_blue() -> None:
    network, grey = p.squeezenet(), torch.rand(1, 1, 32, 32)
    torch.testing.assert_close(network(grey, [5]), network(grey.repeat(1, 3, 1, 1), [5]))


def test_layers_come_in_the_order_asked_for() -> None:
    network, image = p.squeezenet(), torch.rand(1, 3, 32, 32)
    late, early = network(image, [12, 1])
    assert (late.shape[1], early.shape[1]) == (512, 96)


def test_pictures_too_small_and_layers_that_do_not_exist_are_refused() -> None:
    network = p.squeezenet()
    with pytest.raises(ImageError, match="at least 21x21"):
        network(torch.rand(1, 3, 20, 40), [1])
    with pytest.raises(ImageError, match="1 or 3"):
        network(torch.rand(1, 2, 40, 40), [1])
    for layers in ([13], [-1], []):
        with pytest.raises(IndexError, match="between 0 and 12"):
            network(torch.rand(1, 3, 40, 40), layers)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_are_found_in_a_folder_or_by_path(tmp_path: Path, suffix: str) -> None:
    path = filled(p.SQUEEZENET, tmp_path, suffix)
    torch.manual_seed(1)
    by_name, by_path = p.load_features(p.SQUEEZENET, tmp_path), p.load_features(p.SQUEEZENET, path)
    torch.manual_seed(0)
    expected = p.squeezenet()
    for network in (by_name, by_path):
        for key, value in expected.state_dict().items():
            assert torch.equal(network.state_dict()[key], value)


def test_missing_weights_say_where_they_come_from(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"vgg16 at .*comes from https://download\.pytorch\.org/models/vgg16"):
        p.load_features(p.VGG16, tmp_path)


def test_a_damaged_file_or_one_of_another_network_is_refused(tmp_path: Path) -> None:
    other = filled(p.ALEXNET, tmp_path)
    with pytest.raises(WeightsError, match="not the weights of squeezenet1_0"):
        p.load_features(p.SQUEEZENET, other)
    whole = other.read_bytes()
    for name, content in {
        "cut.pth": whole[: len(whole) // 2],
        "empty.pth": b"",
        "cut.safetensors": whole[:100],
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(WeightsError, match="cannot be read as weights"):
            p.load_features(p.SQUEEZENET, tmp_path / name)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(WeightsError, match="expected named tensors"):
        p.load_features(p.SQUEEZENET, tmp_path / "list.pth")


class Trap:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return os.mkdir, (self.marker,)


def test_code_in_a_weights_file_is_never_run(tmp_path: Path) -> None:
    marker = tmp_path / "run"
    (tmp_path / "trap.pth").write_bytes(pickle.dumps({"features.0.weight": Trap(marker)}, protocol=2))
    with pytest.raises(WeightsError):
        p.load_features(p.SQUEEZENET, tmp_path / "trap.pth")
    assert not marker.exists()


def test_feature_distance_is_the_weighted_sum_over_layers() -> None:
    x, y = pictures(32)
    network = p.squeezenet()
    distance = p.FeatureDistance(network, (1, 4), weights=(0.5, 2.0), power=2)
    (a1, a4), (b1, b4) = network(x, (1, 4)), network(y, (1, 4))
    for i in range(2):
        expected = 0.5 * ((a1[i] - b1[i]) ** 2).mean() + 2 * ((a4[i] - b4[i]) ** 2).mean()
        assert distance(x, y)[i].item() == pytest.approx(expected.item(), rel=1e-5)


def test_direction_distance_is_lpips_equation_1() -> None:
    x, y = pictures(32)
    network, heads = p.squeezenet(), [torch.rand(96), torch.rand(128)]
    value = p.DirectionDistance(network, (1, 4), heads=heads, name="test")(x, y)
    expected = torch.zeros(2)
    for a, b, head in zip(network(x, (1, 4)), network(y, (1, 4)), heads, strict=True):
        difference = nn.functional.normalize(a, dim=1) - nn.functional.normalize(b, dim=1)
        expected += (difference * head.sqrt().view(1, -1, 1, 1)).square().sum(1).mean((1, 2))
    torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("kind", ["features", "directions"])
def test_distances_are_zero_for_equal_pictures_and_symmetric_with_a_finite_gradient(kind: str) -> None:
    torch.manual_seed(0)
    network = p.squeezenet()
    distance = (
        p.FeatureDistance(network, (1, 4)) if kind == "features" else p.DirectionDistance(network, (1, 4), name="t")
    )
    x, y = pictures(32)
    assert distance(x, x).abs().max() == 0
    torch.testing.assert_close(distance(x, y), distance(y, x))
    assert (distance(x, y) > 0).all()
    for start in (x.clone(), torch.zeros_like(x), y.clone()):
        start.requires_grad_()
        distance(start, y).sum().backward()
        assert start.grad is not None
        assert torch.isfinite(start.grad).all()
    with pytest.raises(ImageError, match="one shape"):
        distance(x, y[..., :-1])


def test_lpips_reads_the_published_layout_of_heads(tmp_path: Path) -> None:
    features = filled(p.ALEXNET, tmp_path)
    heads = {f"lin{i}.model.1.weight": torch.rand(1, c, 1, 1) for i, c in enumerate((64, 192, 384, 256, 256))}
    torch.save(heads, tmp_path / "alex.pth")
    distance = p.lpips(p.ALEXNET, features=features, heads=tmp_path / "alex.pth")
    assert distance.name == "lpips_alexnet"
    assert (distance(*pictures(64)) > 0).all()
    with pytest.raises(WeightsError, match="no LPIPS heads"):
        p.lpips(p.ALEXNET, features=features, heads=tmp_path / "none.pth")
    with pytest.raises(WeightsError, match="no published heads"):
        p.lpips(p.SQUEEZENET, features=features, heads=tmp_path / "alex.pth")
    torch.save({"lin0.model.1.weight": torch.rand(1, 64, 1, 1)}, tmp_path / "few.pth")
    with pytest.raises(WeightsError, match="not LPIPS heads"):
        p.lpips(p.ALEXNET, features=features, heads=tmp_path / "few.pth")


def test_lpips_of_flat_pictures_is_its_closed_form() -> None:
    """Features (3, 4) and (4, 3) are the directions (.6, .8) and (.8, .6): heads (1, 2) weigh .04 each, so .12."""
    layer = nn.Conv2d(3, 2, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 0, 0], [0, 1.0, 0]]).view(2, 3, 1, 1))
    network = p.FeatureNetwork(nn.Sequential(layer), mean=p.IMAGENET_MEAN, deviation=p.IMAGENET_DEVIATION, smallest=1)
    distance = p.DirectionDistance(network, (0,), heads=[torch.tensor([1.0, 2.0])], name="test")

    def flat(red: float, green: float) -> Tensor:
        seen = torch.tensor([red, green, 0.0]) * torch.tensor(p.IMAGENET_DEVIATION) + torch.tensor(p.IMAGENET_MEAN)
        return seen.view(1, 3, 1, 1).expand(1, 3, 4, 5)

    assert distance(flat(3, 4), flat(4, 3)).item() == pytest.approx(0.12, rel=1e-5)
    assert distance(flat(3, 4), flat(6, 8)).item() == pytest.approx(0, abs=1e-10)  # the same direction


def test_the_published_program_normalises_as_imagenet_does() -> None:
    """LPIPS 0.1 sees 2 x - 1, less its shift, over its scale."""
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    torch.testing.assert_close((1 + shift) / 2, torch.tensor(p.IMAGENET_MEAN))
    torch.testing.assert_close(scale / 2, torch.tensor(p.IMAGENET_DEVIATION))


@pytest.mark.parametrize("name", ["lpips_alexnet", "lpips_vgg16"])
def test_a_distance_by_name_reads_its_network_and_heads_from_one_folder(name: str, tmp_path: Path) -> None:
    source, heads, widths = {
        "lpips_alexnet": (p.ALEXNET, "alex.pth", (64, 192, 384, 256, 256)),
        "lpips_vgg16": (p.VGG16, "vgg.pth", (64, 128, 256, 512, 512)),
    }[name]
    filled(source, tmp_path)
    with pytest.raises(WeightsError, match=f"no LPIPS heads at .*{heads}"):
        p.DISTANCES[name](tmp_path)
    torch.save({f"lin{i}.model.1.weight": torch.rand(1, c, 1, 1) for i, c in enumerate(widths)}, tmp_path / heads)
    assert p.DISTANCES[name](tmp_path).name == name


@pytest.mark.skipif(not SQUEEZE.exists(), reason="the published SqueezeNet is not in the data folder")
def test_the_published_squeezenet_ranks_damage_by_its_strength() -> None:
    from skimage import data

    distance = p.perceptual_squeeze(SQUEEZE)
    assert distance.name == "perceptual_squeeze"
    photo = torch.from_numpy(data.astronaut()[:256, :256]).permute(2, 0, 1)[None].float() / 255
    noise = torch.randn(photo.shape, generator=torch.Generator().manual_seed(0))
    values = [distance((photo + s * noise).clamp(0, 1), photo).item() for s in (0.0, 0.02, 0.1)]
    assert values[0] < 1e-9
    assert 0.001 < values[1] < values[2] / 2 < 1
    assert distance((photo + 0.05).clamp(0, 1), photo).item() < values[2] / 2  # exposure is seen less than noise
