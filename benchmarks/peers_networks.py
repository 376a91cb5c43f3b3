"""Other people's networks, built by the code of their own repositories, for `peers` and `contact_sheet`.

Only networks are listed whose weights are part of their repository. Nothing of them is part of this project.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from twofold import tiling
from twofold.contracts import Restored
from twofold.runtime import flush_denormals_

Method = Callable[[Tensor], Tensor]
"""RGB `(1, 3, H, W)` in [0, 1] to the same, not clamped."""


@dataclass(frozen=True)
class Repository:
    """A clone of somebody's repository."""

    folder: Path

    def module(self, name: str, inside: str = ".") -> types.ModuleType:
        """A module of the repository; `inside` is the folder that its own imports start from."""
        with _imports_from(self.folder / inside):
            return importlib.import_module(name)

    def state(self, path: str, part: str = "") -> dict[str, Tensor]:
        """The tensors of a weights file whose names start with `part`, without it. Nothing but tensors is unpickled."""
        with torch.serialization.safe_globals([argparse.Namespace]):  # holds settings of the training, and no code
            found = torch.load(self.folder / path, map_location="cpu", weights_only=True)
        found = found.get("model_state_dict", found)
        return {key.removeprefix(part): value for key, value in found.items() if key.startswith(part)}


class Built(NamedTuple):
    """A network and how a picture goes through it."""

    network: nn.Module
    method: Method

    def restored(self, observed: Tensor) -> Restored:
        with torch.no_grad():
            return Restored(self.method(observed))


@dataclass(frozen=True)
class Peer:
    """A published network. weights: its file in the repository. may_have_seen: validation sets of which pictures, or
    the scenes of pictures, may have been among its training pictures. trained: on what, as its authors say.
    """

    name: str
    task: str
    repository: str
    commit: str
    licence: str
    paper: str
    weights: str
    trained: str
    build: Callable[[Repository, str], Built]
    may_have_seen: tuple[str, ...] = ()

    def place(self, folder: Path) -> Path:
        """Where its repository lies among the clones in `folder`."""
        return folder / self.repository.rpartition("/")[2]

    def load(self, folder: Path) -> Built:
        """The network in inference mode, denormal weights set to zero. Raises: FileNotFoundError without weights."""
        built = self.build(Repository(self.place(folder)), self.weights)
        built.network.eval()
        flush_denormals_(built.network)
        return built


@contextmanager
def _imports_from(folder: Path) -> Iterator[None]:
    """Imports start in `folder`; what was imported is forgotten after, since two repositories have a `model.py`."""
    before = dict(sys.modules)
    sys.path.insert(0, str(folder))
    sys.modules.update(_stand_ins())
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in _stand_ins():
            sys.modules.pop(name)
        for name in sys.modules.keys() - before:
            if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(folder)):
                del sys.modules[name]
        sys.modules.update(before)


def _stand_ins() -> dict[str, types.ModuleType]:
    """What PReNet and IAT import from OpenCV, torchvision and timm: a trained network needs none of it."""

    class DropPath(nn.Identity):
        """Leaves out paths, while training only."""

    def pair(value: int) -> tuple[int, int]:
        return value, value

    names: dict[str, dict[str, Any]] = {
        "cv2": {},
        "torchvision": {},
        "timm": {},
        "timm.models": {},
        "timm.models.layers": {"DropPath": DropPath, "to_2tuple": pair, "trunc_normal_": nn.init.trunc_normal_},
        "timm.models.registry": {"register_model": lambda function: function},
        "timm.models.vision_transformer": {"VisionTransformer": nn.Module, "_cfg": dict},
    }
    modules = {}
    for name, content in names.items():
        modules[name] = types.ModuleType(name)
        vars(modules[name]).update(content)
    return modules


def plain(
    module: str, network: str, *settings: Any, inside: str = ".", part: str = "", pick: int | None = None
) -> Callable[[Repository, str], Built]:
    """Builds `module.network(*settings)`; pick: which of its outputs is the picture, where it has several."""

    def build(repository: Repository, weights: str) -> Built:
        made = getattr(repository.module(module, inside), network)(*settings)
        made.load_state_dict(repository.state(weights, part))

        def method(observed: Tensor) -> Tensor:
            out = made(observed)
            picture: Tensor = out if pick is None else out[pick]
            return picture

        return Built(made, method)

    return build


def gcanet(repository: Repository, weights: str) -> Built:
    """Predicts the difference in grey levels from the picture and its edges; sides are mirrored to multiples of 4."""
    network = repository.module("GCANet").GCANet(in_c=4, out_c=3, only_residual=True)
    network.load_state_dict(repository.state(weights))
    edges = repository.module("utils").edge_compute

    def method(observed: Tensor) -> Tensor:
        height, width = observed.shape[-2:]
        levels = 255 * tiling.padded(observed, 4)
        seen = torch.cat([levels, edges(levels[0])[None]], 1) - 128
        picture: Tensor = (network(seen) + levels)[..., :height, :width] / 255
        return picture

    return Built(network, method)


def ruas(repository: Repository, weights: str) -> Built:
    """The `lol` network: three steps of illumination, then its denoiser."""
    module, genotypes = repository.module("model"), repository.module("genotypes")
    enhance, denoise = module.EnhanceNetwork(3, 3, genotypes.IEM), module.DenoiseNetwork(3, 6, genotypes.NRM)
    enhance.load_state_dict(repository.state(weights, "enhance_net."))
    denoise.load_state_dict(repository.state(weights, "denoise_net."))

    def method(observed: Tensor) -> Tensor:
        picture: Tensor = denoise(enhance(observed)[0][-1])[0]
        return picture

    return Built(nn.ModuleList([enhance, denoise]), method)


def sci(repository: Repository, weights: str) -> Built:
    """The picture over its estimated illumination."""
    network = repository.module("model").EnhanceNetwork(1, 3)
    network.load_state_dict(repository.state(weights, "enhance."))

    def method(observed: Tensor) -> Tensor:
        return (observed / network(observed)).clamp(0, 1)

    return Built(network, method)


def pairlie(exponent: float) -> Callable[[Repository, str], Built]:
    """Reflectance times illumination to a power: 0.2 in its program, 0.14 on LOL."""

    def build(repository: Repository, weights: str) -> Built:
        network = repository.module("net", "net").net()
        network.load_state_dict(repository.state(weights))

        def method(observed: Tensor) -> Tensor:
            illumination, reflectance, _ = network(observed)
            picture: Tensor = illumination**exponent * reflectance
            return picture

        return Built(network, method)

    return build


def _prenet(rain: str, name: str, trained: str, may_have_seen: tuple[str, ...]) -> Peer:
    return Peer(
        f"PReNet, {name}",
        "rain",
        "csdwren/PReNet",
        "6d908d1",
        "none stated",
        "Ren et al., CVPR 2019",
        f"logs/{rain}/PReNet6/net_latest.pth",
        trained,
        plain("networks", "PReNet", 6, False, pick=0),
        may_have_seen,
    )


def _pairlie(exponent: float) -> Peer:
    return Peer(
        f"PairLIE, exponent {exponent:g}",
        "lowlight",
        "zhenqifu/PairLIE",
        "3fd5c15",
        "none stated",
        "Fu et al., CVPR 2023",
        "weights/PairLIE.pth",
        "pairs of dark pictures of SICE and LOL, without their bright ones",
        pairlie(exponent),
        ("lol",),
    )


def _deep_wavenet(name: str, weights: str, trained: str, may_have_seen: tuple[str, ...]) -> Peer:
    return Peer(
        f"Deep WaveNet, {name}",
        "underwater",
        "pksvision/Deep-WaveNet-Underwater-Image-Restoration",
        "e6893b5",
        "CC BY-NC-ND 4.0",
        "Sharma et al., TOMM 2022",
        weights,
        trained,
        plain("models", "CC_Module", inside=weights.partition("/")[0]),
        may_have_seen,
    )


PEERS = (
    _prenet("Rain100L", "light rain", "Rain100L's 200 training pairs", ()),
    _prenet("Rain100H", "heavy rain", "Rain100H's training pairs without the scenes of its test pictures", ()),
    _prenet("Rain1400", "Rain1400", "12,600 of Rain1400's pairs", ("rain1400",)),
    Peer(
        "AOD-Net",
        "haze",
        "MayankSingal/PyTorch-Image-Dehazing",
        "dc26717",
        "MIT",
        "Li et al., ICCV 2017",
        "snapshots/dehazer.pth",
        "haze drawn over NYU",
        plain("net", "dehaze_net"),
        ("indoor",),
    ),
    Peer(
        "LD-Net",
        "haze",
        "hayatkhan8660-maker/Light-DehazeNet",
        "9d831c4",
        "none stated",
        "Ullah et al., TIP 2021",
        "trained_weights/trained_LDNet.pth",
        "haze drawn over NYU",
        plain("lightdehazeNet", "LightDehaze_Net"),
        ("indoor",),
    ),
    Peer(
        "GCANet",
        "haze",
        "cddlyf/GCANet",
        "23846ff",
        "none stated",
        "Chen et al., WACV 2019",
        "models/wacv_gcanet_dehaze.pth",
        "RESIDE's indoor training set: haze drawn over NYU",
        gcanet,
        ("indoor",),
    ),
    Peer(
        "Zero-DCE",
        "lowlight",
        "Li-Chongyi/Zero-DCE",
        "e0f4adc",
        "CC BY-NC 4.0",
        "Guo et al., CVPR 2020",
        "Zero-DCE_code/snapshots/Epoch99.pth",
        "SICE without its bright pictures",
        plain("model", "enhance_net_nopool", inside="Zero-DCE_code", pick=1),
    ),
    Peer(
        "RUAS",
        "lowlight",
        "KarelZhang/RUAS",
        "f621bb1",
        "none stated",
        "Liu et al., CVPR 2021",
        "ckpt/lol.pt",
        "LOL's dark pictures, without their bright ones",
        ruas,
        ("lol",),
    ),
    Peer(
        "SCI, medium",
        "lowlight",
        "vis-opt-group/SCI",
        "9d28a3f",
        "MIT",
        "Ma et al., CVPR 2022 (other weights than in the paper)",
        "weights/medium.pt",
        "dark pictures of LOL and LSRW, without their bright ones",
        sci,
        ("lol",),
    ),
    _pairlie(0.2),
    _pairlie(0.14),
    Peer(
        "IAT",
        "lowlight",
        "cuiziteng/Illumination-Adaptive-Transformer",
        "c764722",
        "Apache 2.0",
        "Cui et al., BMVC 2022",
        "IAT_enhance/best_Epoch_lol_v1.pth",
        "LOL's 485 training pairs",
        plain("model.IAT_main", "IAT", inside="IAT_enhance", pick=2),
        ("lol",),
    ),
    Peer(
        "FA+Net",
        "underwater",
        "Owen718/FiveAPlus-Network",
        "c15e223",
        "none stated",
        "Jiang et al., BMVC 2023",
        "model/FAPlusNet-alpha-0.1.pth",
        "UIEB's training pairs; which 800 is not stated",
        plain("archs.FIVE_APLUS", "FIVE_APLUSNet", pick=0),
        ("uieb",),
    ),
    _deep_wavenet("UIEB", "uie_uieb/ckpts/netG_295.pt", "UIEB's training pairs; which 800 is not stated", ("uieb",)),
    _deep_wavenet("EUVP", "uie_euvp/ckpts/netG_17.pt", "EUVP's training pairs", ("euvp",)),
)
