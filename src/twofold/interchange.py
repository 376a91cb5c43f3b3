"""Weights from elsewhere and for elsewhere: official checkpoints, deepinv's interfaces, state dicts for spandrel.

Nothing is ever unpickled beyond tensors: a PyTorch file is read with `weights_only=True`.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module, resources
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from twofold import hub, specs, zoo
from twofold.contracts import NOISE_LEVEL, TwofoldError, WeightsError
from twofold.export.network import ESTIMATE, Whole
from twofold.nets import prenet

SPEC_ENTRY = "twofold_model"
"""Entry of a state dict for spandrel that holds the model's specification: JSON as bytes, uint8 `(n,)`."""
_WRAPPERS = ("params_ema", "params", "state_dict", "model")
"""Where training programs put the state dict inside a checkpoint; the first that is there is taken."""


def import_weights(source: Path, target: Path) -> specs.PlainSpec:
    """Writes a published checkpoint as a weights file that `twofold.load` takes; returns what it was recognised as.

    source: a PyTorch file or safetensors, of PReNet (Ren et al. 2019) or GridDehazeNet (Liu et al. 2019) in the layout
    of the authors' programs.

    Raises: WeightsError for a file of another network, or one that cannot be read.
    """
    spec, state = published_network(read_checkpoint(source), str(source))
    restorer = spec.build()
    restorer.load_state_dict(state)
    zoo.save_restorer(target, restorer, spec)
    return spec


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The state dict in a PyTorch or safetensors file, float32, without the names that wrappers put before others.

    Raises: WeightsError.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            found: Any = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise WeightsError(f"no file at {path}; check the path") from error
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} holds more than tensors, which could run code, so it is not loaded; ask its authors for a state "
            "dict"
        ) from error
    except Exception as error:  # torch and safetensors raise many kinds for what is no checkpoint
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise WeightsError(f"{path} cannot be read as a checkpoint ({reason}); fetch it again") from error
    for wrapper in _WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(wrapper), Mapping):
            found = found[wrapper]
            break
    tensors = isinstance(found, Mapping) and all(isinstance(value, Tensor) for value in found.values())
    if not tensors or not found:
        raise WeightsError(f"{path} holds no state dict; name a file of a network's weights")
    return {name.removeprefix("module."): value.float() for name, value in found.items()}


def published_network(
    state: Mapping[str, Tensor], name: str = "the state dict"
) -> tuple[specs.PlainSpec, dict[str, Tensor]]:
    """(what the network is, its state under this library's names). Raises: WeightsError saying what was seen."""
    try:
        if "conv0.0.weight" in state:
            _check_prenet(state, name)
            net: Any = specs.PReNetSpec(width=state["conv0.0.weight"].shape[0])
            ours = prenet.from_published(state)
        elif "coefficient" in state and "conv_in.weight" in state:
            net, ours = _griddehaze(state)
        else:
            seen = ", ".join(list(state)[:3])
            raise WeightsError(f"{name} is of an unknown network (it begins with {seen}); known: PReNet, GridDehazeNet")
    except KeyError as error:
        raise WeightsError(f"{name} lacks {error.args[0]}; it is not whole, or a variant that is not known") from error
    spec = specs.PlainSpec(net=net)
    ours = {f"net.{key}": value for key, value in ours.items()}
    wanted = {key: tuple(value.shape) for key, value in spec.build().state_dict().items()}
    for key, shape in wanted.items():
        got = tuple(ours[key].shape) if key in ours else None
        if got != shape:
            raise WeightsError(f"{name}: {key} should be {shape}, is {got}; it is a variant that is not known")
    if len(state) != _published_entries(net):
        raise WeightsError(f"{name} has {len(state)} entries, {_published_entries(net)} expected; not a known variant")
    return spec, ours


def _published_entries(net: Any) -> int:
    """How many tensors the authors' program saves."""
    if isinstance(net, specs.PReNetSpec):
        return 32
    rows, columns, dense = int(net.rows), int(net.columns), int(net.dense)
    blocks = rows * (columns - 1) + 2
    return 4 + 1 + blocks * 2 * (dense + 1) + 8 * (rows - 1) * (columns // 2)


def _check_prenet(state: Mapping[str, Tensor], name: str) -> None:
    """Raises: WeightsError for the variants of the paper's ablation, whose arithmetic is another."""
    variants = {"conv_z.0.weight": "the GRU variant"}
    for key, variant in variants.items():
        if key in state:
            raise WeightsError(f"{name} is {variant} of PReNet, which is not known here; take PReNet itself")
    if "conv_i.0.weight" not in state:
        raise WeightsError(f"{name} is a PRN, without the recurrent layer; take PReNet itself")
    if "res_conv2.0.weight" not in state:
        raise WeightsError(f"{name} is a PReNet_r, whose five blocks are one; take PReNet itself")


def _griddehaze(state: Mapping[str, Tensor]) -> tuple[specs.GridDehazeSpec, dict[str, Tensor]]:
    """GridDehazeNet's published layout: `rdb_module.ROW_COLUMN`, `downsample_module`, `upsample_module`."""
    rows, columns = state["coefficient"].shape[:2]
    growth = state["rdb_in.residual_dense_layers.0.conv.weight"].shape[0]
    dense = sum(bool(re.fullmatch(r"rdb_in\.residual_dense_layers\.\d+\.conv\.weight", key)) for key in state)
    spec = specs.GridDehazeSpec(
        width=state["conv_in.weight"].shape[0], rows=rows, columns=columns, growth=growth, dense=dense
    )
    places = {"head": "conv_in", "tail": "conv_out"}
    blocks = {"enter": "rdb_in", "leave": "rdb_out"}
    middle = columns // 2
    for row in range(rows):
        blocks |= {f"across.{row}.{place}": f"rdb_module.{row}_{place}" for place in range(columns - 1)}
    for ours, theirs in blocks.items():
        places |= {f"{ours}.convs.{i}": f"{theirs}.residual_dense_layers.{i}.conv" for i in range(dense)}
        places[f"{ours}.fuse"] = f"{theirs}.conv_1x1"
    for row in range(rows - 1):
        for place in range(middle):
            down, up = f"downsample_module.{row}_{place}", f"upsample_module.{row}_{middle + place}"
            places |= {f"downs.{row}.{place}.shrink": f"{down}.conv1", f"downs.{row}.{place}.widen": f"{down}.conv2"}
            places |= {f"ups.{row}.{place}.grow": f"{up}.deconv", f"ups.{row}.{place}.narrow": f"{up}.conv"}
    out = {
        f"{ours}.{part}": state[f"{theirs}.{part}"] for ours, theirs in places.items() for part in ("weight", "bias")
    }
    return spec, {**out, "attention": state["coefficient"]}


def as_deepinv(restorer: nn.Module | str | Path) -> nn.Module:
    """A reconstructor in deepinv's sense: `model(y, physics) → x̂`, differentiable; y `(B, C, H, W)` in [0, 1].

    restorer: one from `zoo.load`, or its name. A model that takes a kernel is given `physics.filter`, one that is
    steered by the noise level `physics.noise_model.sigma` (else it estimates that level); others use y alone. Where the
    physics keeps only what lies inside the blurred picture, its border pixels continue it to the size of
    `physics.A_adjoint(y)`.
    """
    base = _deepinv_base("Reconstructor")

    class Reconstructor(base):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            super().__init__()
            self.adapted = _Adapted(restorer)

        def forward(self, y: Tensor, physics: Any, **kwargs: Any) -> Tensor:
            kernel = None
            if self.adapted.whole.takes_kernel:
                kernel = getattr(physics, "filter", None)
                if not isinstance(kernel, Tensor):
                    raise TwofoldError("this model removes blur, but the physics has no filter; use a blur physics")
            sigma = getattr(getattr(physics, "noise_model", None), "sigma", None)
            restored = self.adapted(y, kernel, sigma)
            wanted = physics.A_adjoint(y).shape[-2:] if kernel is not None else y.shape[-2:]
            down, right = (int(w - g) for w, g in zip(wanted, restored.shape[-2:], strict=True))
            edges = (right // 2, right - right // 2, down // 2, down - down // 2)
            return nn.functional.pad(restored, edges, mode="replicate") if any(edges) else restored

    return Reconstructor()


def as_deepinv_denoiser(restorer: nn.Module | str | Path) -> nn.Module:
    """A denoiser in deepinv's sense: `model(x, sigma) → x̂`, differentiable; x `(B, C, H, W)` in [0, 1].

    sigma: standard deviation of the noise on that scale, a number, `(B,)`, or a map `(B, 1, H, W)`; None lets the model
    estimate it. A model that takes a kernel is given one that blurs nothing.

    Raises: TwofoldError for a model that is not steered by the noise level.
    """
    adapted = _Adapted(restorer)
    if adapted.whole.kind is not NOISE_LEVEL:
        raise TwofoldError("this model is not steered by a noise level, so it is no denoiser; use as_deepinv")
    base = _deepinv_base("Denoiser")

    class Denoiser(base):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            super().__init__()
            self.adapted = adapted

        def forward(self, x: Tensor, sigma: float | Tensor | None = None, **kwargs: Any) -> Tensor:
            still = x.new_ones(1, 1, 1, 1) if self.adapted.whole.takes_kernel else None
            restored: Tensor = self.adapted(x, still, sigma)
            return restored

    return Denoiser()


def _deepinv_base(name: str) -> type[nn.Module]:
    """deepinv's base class, so that its own checks of types pass; `nn.Module` where deepinv is not installed."""
    try:
        found: type[nn.Module] = getattr(import_module("deepinv.models"), name)
    except ImportError:
        return nn.Module
    return found


class _Adapted(nn.Module):
    """y `(B, C, H, W)`, kernel or None, noise level or None → restored `(B, C, H, W)`, colour by colour if grey."""

    def __init__(self, restorer: nn.Module | str | Path) -> None:
        super().__init__()
        self.whole = Whole(zoo.load_restorer(restorer) if isinstance(restorer, str | Path) else restorer)

    def forward(self, y: Tensor, kernel: Tensor | None, sigma: Any) -> Tensor:
        channels: int = self.whole.restorer.channels
        if y.shape[1] % channels:
            raise TwofoldError(f"this model is for pictures of {channels} channels, got {tuple(y.shape)}")
        planes = y.reshape(-1, channels, *y.shape[-2:])
        if kernel is not None:
            repeated = kernel.repeat_interleave(len(planes) // len(y), 0) if len(kernel) == len(y) else kernel
            kernel = repeated[:, :1].to(y)
        guidance = None
        if self.whole.kind is NOISE_LEVEL:
            level = y.new_full((1,), ESTIMATE) if sigma is None else torch.as_tensor(sigma).to(y)
            level = level.reshape(-1, 1, 1, 1) if level.ndim < 4 else level
            guidance = level.expand(len(y), 1, *y.shape[-2:]).repeat_interleave(len(planes) // len(y), 0)
        restored: Tensor = self.whole(planes, kernel, guidance)[0]
        return restored.reshape(y.shape)


def spandrel_state(restorer: nn.Module, spec: specs.AnyModel) -> dict[str, Tensor]:
    """A state dict that says which model it is: names begin with "twofold.", `SPEC_ENTRY` holds the specification."""
    text = bytearray(spec.model_dump_json().encode())
    weights = {f"twofold.{name}": value.detach().contiguous() for name, value in restorer.state_dict().items()}
    return {SPEC_ENTRY: torch.frombuffer(text, dtype=torch.uint8).clone(), **weights}


def from_spandrel_state(state: Mapping[str, Tensor]) -> nn.Module:
    """The restorer of a state dict made by `spandrel_state`. Raises: WeightsError for any other."""
    if SPEC_ENTRY not in state:
        raise WeightsError(f"the state dict has no entry {SPEC_ENTRY!r}, so it does not say which model it is")
    try:
        spec: specs.AnyModel = TypeAdapter(specs.ModelSpec).validate_json(bytes(state[SPEC_ENTRY].tolist()))
    except ValidationError as error:
        raise WeightsError(f"a model that this version does not know: {error.errors()[0]['msg']}") from error
    restorer = spec.build()
    try:
        restorer.load_state_dict(
            {name.removeprefix("twofold."): value.float() for name, value in state.items() if name != SPEC_ENTRY}
        )
    except RuntimeError as error:
        raise WeightsError("the weights do not fit the model that the state dict names") from error
    return restorer.eval()


@contextmanager
def weights_of(name_or_path: str | Path) -> Iterator[Path]:
    """The weights file of a shipped model, of hf://user/name, or the path itself."""
    name = str(name_or_path)
    if name in zoo.cards():
        with resources.as_file(resources.files("twofold") / "weights" / f"{name}.safetensors") as file:
            yield file
    else:
        yield hub.fetch_weights(name) if hub.is_hub_place(name) else Path(name_or_path)


def specified_restorer(name_or_path: str | Path) -> tuple[specs.AnyModel, Any]:
    """(specification, restorer) by name, path or hf://user/name. Raises: WeightsError."""
    restorer = zoo.load_restorer(name_or_path)
    with weights_of(name_or_path) as file:
        return zoo.read_weights(file)[0], restorer


def register_with_spandrel() -> None:
    """Teaches spandrel to load files that hold a `spandrel_state`: `spandrel.ModelLoader().load_from_file(path)`.

    The model it returns takes pictures `(B, 3, H, W)` alone, so models that take a kernel are refused.

    Raises: TwofoldError where spandrel is not installed.
    """
    try:
        spandrel = import_module("spandrel")
    except ImportError as error:
        raise TwofoldError(f"spandrel cannot be imported ({error}); pip install spandrel") from error

    class Twofold(spandrel.Architecture):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__(id="twofold", detect=lambda state: SPEC_ENTRY in state)

        def load(self, state_dict: Mapping[str, Any]) -> Any:
            whole = Whole(from_spandrel_state(state_dict))
            if whole.takes_kernel:
                raise WeightsError("this model takes a blur kernel, which spandrel cannot give it; use twofold.load")
            channels, local = whole.restorer.channels, whole.restorer.halo is not None
            return spandrel.ImageModelDescriptor(
                whole,
                state_dict,
                architecture=self,
                purpose="Restoration",
                tags=[],
                supports_half=False,
                supports_bfloat16=True,
                scale=1,
                input_channels=channels,
                output_channels=channels,
                tiling=spandrel.ModelTiling.SUPPORTED if local else spandrel.ModelTiling.DISCOURAGED,
                call_fn=lambda model, picture: model(picture)[0],
            )

    if all(support.architecture.id != "twofold" for support in spandrel.MAIN_REGISTRY.architectures("detection")):
        spandrel.MAIN_REGISTRY.add(spandrel.ArchSupport.from_architecture(Twofold()))
