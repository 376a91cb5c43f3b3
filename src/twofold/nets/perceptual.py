"""Networks trained to recognise objects, used to compare pictures: features, and distances between them.

Layers are numbered as in the `features` part of the published networks (torchvision's order), so that layer lists of
papers and standard weight files fit. No weights are shipped: they are read from a file that the user has.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from twofold.contracts import ImageError, WeightsError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_DEVIATION = (0.229, 0.224, 0.225)


class FeatureNetwork(nn.Module):
    """A frozen chain of layers whose intermediate results are the features.

    mean, deviation: per channel, of RGB in [0, 1]; the network sees (image − mean) / deviation.
    smallest: the side in pixels below which the last layer has nothing left to put out.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(
        self, features: nn.Sequential, *, mean: Sequence[float], deviation: Sequence[float], smallest: int
    ) -> None:
        super().__init__()
        self.features = features
        self.smallest = smallest
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(deviation).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """Outputs of the layers of these numbers, each `(B, C, h, w)`, in the given order.

        images: `(B, 3, H, W)` in [0, 1]; grey `(B, 1, H, W)` is taken as equal red, green and blue. Layers after the
        last that was asked for are not run.

        Raises: ImageError for another number of channels or a side below `smallest`; IndexError for no such layer.
        """
        if images.ndim != 4 or images.shape[1] not in (1, 3) or min(images.shape[-2:]) < self.smallest:
            raise ImageError(
                f"expected (B, 1 or 3, H, W) pictures of at least {self.smallest}x{self.smallest}, "
                f"got {tuple(images.shape)}; convert to RGB or use larger ones"
            )
        wanted = set(layers)
        if not wanted or min(wanted) < 0 or max(wanted) >= len(self.features):
            raise IndexError(f"expected layers between 0 and {len(self.features) - 1}, got {list(layers)}")
        x = (images.expand(-1, 3, -1, -1) - self.mean) / self.deviation
        found: dict[int, Tensor] = {}
        for number, layer in enumerate(self.features):
            if number > max(wanted):
                break
            x = layer(x)
            if number in wanted:
                found[number] = x
        return [found[number] for number in layers]


class Fire(nn.Module):
    """`(B, C, H, W)` → `(B, 2 expanded, H, W)`: SqueezeNet's block (Iandola et al. 2016), 1x1 then 1x1 and 3x3."""

    def __init__(self, channels: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze(x).relu()
        return torch.cat((self.expand1x1(x).relu(), self.expand3x3(x).relu()), dim=1)


def vgg16() -> FeatureNetwork:
    """VGG16 without batch normalisation, 31 layers; relu1_2, 2_2, 3_3, 4_3, 5_3 are layers 3, 8, 15, 22, 29."""
    return _vgg((2, 2, 3, 3, 3))


def vgg19() -> FeatureNetwork:
    """VGG19 without batch normalisation, 37 layers; relu1_2, 2_2, 3_4, 4_4, 5_4 are layers 3, 8, 17, 26, 35."""
    return _vgg((2, 2, 4, 4, 4))


def _vgg(convolutions: Sequence[int]) -> FeatureNetwork:
    layers: list[nn.Module] = []
    channels = 3
    for count, width in zip(convolutions, (64, 128, 256, 512, 512), strict=True):
        for _ in range(count):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    return FeatureNetwork(nn.Sequential(*layers), mean=IMAGENET_MEAN, deviation=IMAGENET_DEVIATION, smallest=32)


def alexnet() -> FeatureNetwork:
    """AlexNet of one tower (Krizhevsky 2014), 13 layers; the five rectified ones are 1, 4, 7, 9, 11."""
    layers = nn.Sequential(
        nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2),
    )  # fmt: skip
    return FeatureNetwork(layers, mean=IMAGENET_MEAN, deviation=IMAGENET_DEVIATION, smallest=63)


def squeezenet() -> FeatureNetwork:
    """SqueezeNet 1.0 as its authors trained it, 13 layers: input 255 RGB − (123, 117, 104).

    torchvision's own 1.0 weights expect another input (ImageNet mean and deviation): they load, and mean nothing here.
    """

    def shrink() -> nn.Module:
        return nn.MaxPool2d(3, 2, ceil_mode=True)

    layers = nn.Sequential(
        nn.Conv2d(3, 96, 7, stride=2), nn.ReLU(), shrink(),
        Fire(96, 16, 64), Fire(128, 16, 64), Fire(128, 32, 128), shrink(),
        Fire(256, 32, 128), Fire(256, 48, 192), Fire(384, 48, 192), Fire(384, 64, 256), shrink(),
        Fire(512, 64, 256),
    )  # fmt: skip
    return FeatureNetwork(layers, mean=[123 / 255, 117 / 255, 104 / 255], deviation=[1 / 255] * 3, smallest=21)


@dataclass(frozen=True)
class FeatureWeights:
    """A network and its weights: constructor, the stem of the file's name, and where those who lack it find it."""

    build: Callable[[], FeatureNetwork]
    stem: str
    origin: str


VGG16 = FeatureWeights(vgg16, "vgg16", "https://download.pytorch.org/models/vgg16-397923af.pth")
VGG19 = FeatureWeights(vgg19, "vgg19", "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth")
ALEXNET = FeatureWeights(alexnet, "alexnet", "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth")
SQUEEZENET = FeatureWeights(
    squeezenet, "squeezenet1_0", "SqueezeNet 1.0 of its authors (Caffe), with torchvision's key names"
)


def load_features(source: FeatureWeights, place: Path) -> FeatureNetwork:
    """The network with the weights at `place`: a `.safetensors` or `.pth` file, or a folder that holds one by its name.

    In a folder, any file whose name begins with the network's (`vgg16-397923af.pth`) will do; safetensors go first.

    Raises: WeightsError where there is none (saying where it comes from), or it is damaged or of another network.
    """
    path = _find(source, Path(place))
    network = source.build()
    wanted = network.features.state_dict()
    given = {key.removeprefix("features."): value for key, value in read_tensors(path).items()}
    wrong = [key for key, value in wanted.items() if key not in given or given[key].shape != value.shape]
    if wrong:
        raise WeightsError(f"{path}: not the weights of {source.stem}, {wrong[0]} is missing or of another shape")
    network.features.load_state_dict({key: given[key] for key in wanted})
    return network


def _find(source: FeatureWeights, place: Path) -> Path:
    if place.is_file():
        return place
    found = [
        path for suffix in (".safetensors", ".pth", ".pt") for path in sorted(place.glob(f"{source.stem}*{suffix}"))
    ]
    if not found:
        raise WeightsError(f"no weights of {source.stem} at {place}; put the file there, it comes from {source.origin}")
    return found[0]


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file, or of a `.pth` one read without running any code it may hold.

    Raises: WeightsError where the file cannot be read or holds anything but named tensors.
    """
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError, safetensors.SafetensorError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise WeightsError(f"{path}: cannot be read as weights ({reason}); fetch the file again") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{path}: expected named tensors, got {type(state).__name__}; use a plain state dict")
    return state


class FeatureDistance(nn.Module):
    """`(B,)`: the sum over layers of weight · mean |difference of features|^power, the field's "perceptual loss".

    GridDehazeNet's (Liu et al. 2019) is power 2 on layers 3, 8, 15 of VGG16, weighted 1/3 each, of pictures that its
    program does not normalise: `FeatureNetwork(net.features, mean=(0, 0, 0), deviation=(1, 1, 1), smallest=32)`.

    weights: one a layer; 1 each where None.
    """

    def __init__(
        self,
        network: FeatureNetwork,
        layers: Sequence[int],
        *,
        weights: Sequence[float] | None = None,
        power: float = 1.0,
    ) -> None:
        super().__init__()
        self.network, self.layers, self.power = network, tuple(layers), power
        self.weights = (1.0,) * len(self.layers) if weights is None else tuple(weights)
        if len(self.weights) != len(self.layers):
            raise ValueError(f"expected one weight for each of {len(self.layers)} layers, got {len(self.weights)}")

    def forward(self, restored: Tensor, clean: Tensor) -> Tensor:
        """restored, clean: `(B, 1 or 3, H, W)` in [0, 1]. Inside autocast the network runs in half precision."""
        terms = [
            weight * (x - y).abs().pow(self.power).mean(dim=(1, 2, 3))
            for weight, (x, y) in zip(self.weights, _compared(self.network, self.layers, restored, clean), strict=True)
        ]
        return torch.stack(terms).sum(dim=0)


class DirectionDistance(nn.Module):
    """`(B,)`: squared difference of feature vectors that were scaled to length 1 at every pixel, summed over layers.

    heads: for each layer, the weights `(C,)` of its channels (Zhang et al. 2018, eq. 1); where None, every channel
    counts 1 over the number of layers, and the distance lies between 0 and 2.
    name: how tables call it. Only networks and heads that were published as LPIPS may be called so: see `lpips`.
    """

    def __init__(
        self, network: FeatureNetwork, layers: Sequence[int], *, heads: Sequence[Tensor] | None = None, name: str
    ) -> None:
        super().__init__()
        self.network, self.layers, self.name = network, tuple(layers), name
        if heads is not None and len(heads) != len(self.layers):
            raise WeightsError(f"{name}: expected heads for {len(self.layers)} layers, got {len(heads)}")
        self.heads = None if heads is None else nn.ParameterList(nn.Parameter(h, requires_grad=False) for h in heads)

    def forward(self, restored: Tensor, clean: Tensor) -> Tensor:
        """restored, clean: `(B, 1 or 3, H, W)` in [0, 1]. Inside autocast the network runs in half precision."""
        terms = []
        for number, (x, y) in enumerate(_compared(self.network, self.layers, restored, clean)):
            apart = (_direction(x) - _direction(y)).square()
            weight = (
                torch.full_like(apart[0, :, 0, 0], 1 / len(self.layers)) if self.heads is None else self.heads[number]
            )
            terms.append((apart * weight.view(1, -1, 1, 1)).sum(dim=1).mean(dim=(1, 2)))
        return torch.stack(terms).sum(dim=0)


def lpips(source: FeatureWeights, *, features: Path, heads: Path) -> DirectionDistance:
    """LPIPS version 0.1 (Zhang et al. 2018) from the published files; less is nearer. Pictures in [0, 1], as elsewhere.

    source: ALEXNET (the one that tables report) or VGG16. features: its weights, see `load_features`. heads: `alex.pth`
    or `vgg.pth` of github.com/richzhang/PerceptualSimilarity, folder `lpips/weights/v0.1`.

    Raises: WeightsError where a file is missing, damaged, or of another network.
    """
    layers = {"alexnet": (1, 4, 7, 9, 11), "vgg16": (3, 8, 15, 22, 29)}.get(source.stem)
    if layers is None:
        raise WeightsError(f"LPIPS has no published heads for {source.stem}; use ALEXNET or VGG16")
    if not Path(heads).is_file():
        raise WeightsError(
            f"no LPIPS heads at {heads}; put the file there, it comes from lpips/weights/v0.1 of "
            "github.com/richzhang/PerceptualSimilarity"
        )
    network = load_features(source, features)
    given = [value.flatten() for _, value in sorted(read_tensors(Path(heads)).items())]
    wanted = [int(feature.shape[1]) for feature in network(torch.zeros(1, 3, 64, 64), layers)]
    if [head.numel() for head in given] != wanted:
        raise WeightsError(f"{heads}: not LPIPS heads for {source.stem}, which has {wanted} channels")
    return DirectionDistance(network, layers, heads=given, name=f"lpips_{source.stem}")


def perceptual_squeeze(features: Path) -> DirectionDistance:
    """`perceptual_squeeze`: SqueezeNet 1.0 at four scales, all channels alike. Not LPIPS, and its numbers are not near.

    Prefer `lpips` where its files are at hand: this one was never fitted to what people see.

    Raises: WeightsError where the weights are missing, damaged, or of another network.
    """
    return DirectionDistance(load_features(SQUEEZENET, features), (1, 5, 10, 12), name="perceptual_squeeze")


def lpips_alexnet(folder: Path) -> DirectionDistance:
    """`lpips` of AlexNet with its weights and `alex.pth` in one folder. Raises: WeightsError."""
    return lpips(ALEXNET, features=folder, heads=folder / "alex.pth")


def lpips_vgg16(folder: Path) -> DirectionDistance:
    """`lpips` of VGG16 with its weights and `vgg.pth` in one folder. Raises: WeightsError."""
    return lpips(VGG16, features=folder, heads=folder / "vgg.pth")


DISTANCES: dict[str, Callable[[Path], DirectionDistance]] = {
    "lpips_alexnet": lpips_alexnet,
    "lpips_vgg16": lpips_vgg16,
    "perceptual_squeeze": perceptual_squeeze,
}
"""Distances that an evaluation can report, by name: each reads its networks from a folder."""


def _compared(
    network: FeatureNetwork, layers: Sequence[int], restored: Tensor, clean: Tensor
) -> list[tuple[Tensor, Tensor]]:
    """The features of both pictures, layer by layer, at least float32. The clean one's are constants."""
    if restored.shape != clean.shape:
        raise ImageError(
            f"expected restored and clean of one shape, got {tuple(restored.shape)} and {tuple(clean.shape)}; "
            "crop or resize one of them"
        )
    with torch.no_grad():
        truth = network(clean, layers)
    return [(x.float(), y.float()) for x, y in zip(network(restored, layers), truth, strict=True)]


def _direction(features: Tensor) -> Tensor:
    """`(B, C, h, w)` scaled to length 1 at every pixel; 0 where all channels are 0, and the gradient finite there."""
    return features / ((features.square().sum(dim=1, keepdim=True) + 1e-20).sqrt() + 1e-10)
