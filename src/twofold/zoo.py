"""Models by name: the card that describes a model, and the file that holds its weights.

A model is one safetensors file whose header contains its specification, so it can be loaded without other files;
shipped models also have a card. Weights are never unpickled.
"""

from __future__ import annotations

import hashlib
import json
import stat
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from twofold import hub
from twofold.contracts import Restorer, TwofoldError, WeightsError
from twofold.files import WHAT_TO_DO, replacing
from twofold.runtime import flush_denormals_
from twofold.settings import nearest
from twofold.specs import AnyModel, ClassicalSpec, ModelSpec

_MODEL: TypeAdapter[AnyModel] = TypeAdapter(ModelSpec)


class Card(BaseModel):
    """What a user should know of a shipped model before trusting it. Numbers carry their protocol and come from a run.

    A classical model has no weights: its parameters, bytes and hours are 0. method: what it is, and of which paper.
    recipe: on whose validation sets, and by whose protocol, the numbers are measured; a model with weights is trained
    by it. numbers: by set, the number of pictures, mean PSNR (dB) with its 95 % interval, SSIM, and both of the
    degraded images. machine: on which it was trained, where that was recorded. gigamacs: multiplications of the network
    for one megapixel, in 10⁹, Fourier transforms not counted. golden_psnr: mean PSNR on the degraded crops of
    `tests/golden`. self_ensemble: by set, how many dB the mean over eight orientations adds. bf16_difference: largest
    root mean square difference from float32, in grey levels, over degraded photographs.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    task: str
    about: str
    method: str
    recipe: str
    model: Annotated[AnyModel | ClassicalSpec, Field(discriminator="kind")]
    parameters: int
    bytes: int
    sha256: str
    data: list[str]
    terms: str
    command: str
    seed: int
    hours: float
    machine: str = ""
    gigamacs: float | None = None
    protocol: str
    numbers: dict[str, dict[str, float]]
    golden_psnr: float | None = None
    self_ensemble: dict[str, float] = {}
    bf16_difference: float | None = None
    notes: str = ""

    @property
    def allows_bf16(self) -> bool:
        """Whether bfloat16 keeps every image that it was measured on within half a grey level of float32."""
        return self.bf16_difference is not None and self.bf16_difference <= 0.5


def cards() -> dict[str, Card]:
    """Every shipped model by name. A damaged card is left out: it disables no other model."""
    folder = resources.files("twofold") / "weights"
    found = []
    for file in folder.iterdir():
        if file.name.endswith(".json"):
            with suppress(OSError, ValueError):  # ValidationError and UnicodeDecodeError are ValueErrors
                found.append(Card.model_validate_json(file.read_text(encoding="utf-8")))
    return {card.name: card for card in sorted(found, key=lambda card: card.name)}


def save_restorer(path: Path, restorer: nn.Module, spec: AnyModel, *, half: bool = False) -> str:
    """Writes the weights with their specification in the header, atomically; returns the SHA-256 of the file.

    half: store 16-bit floats (half the size; a value moves by less than 0.05 %).
    """
    tensors = {name: value.detach().contiguous() for name, value in restorer.state_dict().items()}
    if half:
        tensors = {n: t.half() if t.is_floating_point() else t for n, t in tensors.items()}
    with replacing(path) as temporary:
        try:
            save_file(tensors, temporary, metadata={"twofold_model": spec.model_dump_json()})
        except SafetensorError as error:
            raise TwofoldError(f"cannot write {path}: {error}; {WHAT_TO_DO}") from error
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_weights(path: Path) -> tuple[AnyModel, dict[str, Tensor]]:
    """(specification, float32 state). Raises: WeightsError saying what the file is instead of a model."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise WeightsError(
                f"{path} is a folder; name the .safetensors file in it, e.g. {path / 'model.safetensors'}"
            )
        if not stat.S_ISREG(mode):
            raise FileNotFoundError
        with path.open("rb") as file:
            head = file.read(2)
    except (FileNotFoundError, NotADirectoryError):
        raise WeightsError(f"no weights at {path}; `twofold models` lists the shipped ones") from None
    except OSError as error:
        reason = error.strerror or error
        raise WeightsError(f"{path} cannot be read ({reason}); check the path and who may read it") from error
    if head in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        raise WeightsError(f"{path} is a pickle: such files can run code and are never loaded; convert to safetensors")
    try:
        with safe_open(path, framework="pt") as tensors:
            metadata: Mapping[str, str] = tensors.metadata() or {}
            state = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path} is not a whole safetensors file ({error}); fetch or train it again") from error
    if "twofold_model" not in metadata:
        raise WeightsError(f"{path} does not say which model it is; save it with twofold.zoo.save_restorer")
    try:
        spec = _MODEL.validate_json(metadata["twofold_model"])
    except ValidationError as error:
        raise WeightsError(
            f"{path} was written for a model this version does not know: {error.errors()[0]['msg']}"
        ) from error
    return spec, {n: t.float() if t.is_floating_point() else t for n, t in state.items()}


def load_restorer(name_or_path: str | Path, *, device: torch.device | str | None = None) -> Restorer:
    """A restorer in evaluation mode, by the name of a shipped model, the path of a weights file, or hf://user/name.

    Raises: WeightsError for an unknown name, a damaged or foreign file.
    """
    if hub.is_hub_place(name_or_path):
        name_or_path = hub.fetch_weights(str(name_or_path))
    path, shipped = Path(name_or_path), cards()
    if not str(name_or_path).strip():
        raise WeightsError(f"the name of the model is empty; give a weights file, or a name; {nearest('', [*shipped])}")
    card = shipped.get(str(name_or_path))
    if card is not None and isinstance(card.model, ClassicalSpec):
        return card.model.build()
    if card is not None:
        with resources.as_file(resources.files("twofold") / "weights" / f"{card.name}.safetensors") as file:
            if hashlib.sha256(file.read_bytes()).hexdigest() != card.sha256:
                raise WeightsError(f"the weights of {card.name!r} are not those of its card; install twofold again")
            spec, state = read_weights(file)
    elif path.suffix or _may_be_there(path):
        spec, state = read_weights(path)
    elif (resources.files("twofold") / "weights" / f"{path.name}.json").is_file():
        raise WeightsError(f"the card of {path.name!r} is damaged; install twofold again")
    else:
        raise WeightsError(f"unknown model {str(name_or_path)!r}; {nearest(str(name_or_path), list(shipped))}")
    try:
        check_size(spec.build, state)
        restorer = spec.build().float()  # whatever torch's default is
        restorer.load_state_dict(state)
    except (RuntimeError, ValueError, LookupError, TypeError, ArithmeticError) as error:
        last = (str(error).splitlines() or [type(error).__name__])[-1].strip()
        raise WeightsError(f"{name_or_path}: the weights do not fit the model its header names ({last})") from error
    flush_denormals_(restorer)  # no output bit changes, and some processors would be 30 times slower
    return restorer.eval().to(device)


class _TooLarge(ValueError):
    pass


def check_size(build: Callable[[], nn.Module], state: Mapping[str, Tensor]) -> None:
    """Compares the tensors of a file, of any shape, with those of the model that `build` makes: names, shapes, and
    whether they are floating-point.

    The model is made on the device `meta`, which needs no memory, and given up as soon as it has several times more
    parameters than the file. So a header of a few bytes that names a million layers is refused at once.

    Raises: ValueError for the first difference.
    """
    most = 4 * sum(tensor.numel() for tensor in state.values()) + 1_000_000
    layers = 4 * len(state) + 100
    count = elements = 0
    here = threading.get_ident()

    def watch(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal count, elements
        if parameter is not None and threading.get_ident() == here:
            count, elements = count + 1, elements + parameter.numel()
            if count > layers or elements > most:
                raise _TooLarge(f"the header names a model far larger than the {len(state)} tensors of the file")

    handle = register_module_parameter_registration_hook(watch)
    try:
        with torch.device("meta"):
            expected = build().state_dict()
    finally:
        handle.remove()
    missing, unexpected = expected.keys() - state.keys(), state.keys() - expected.keys()
    if missing or unexpected:
        what, name = ("lacks", min(missing)) if missing else ("has an unexpected", min(unexpected))
        raise ValueError(f"the file {what} {name}")
    for name, tensor in expected.items():
        if tensor.shape != state[name].shape:
            raise ValueError(f"{name} is {tuple(state[name].shape)}, expected {tuple(tensor.shape)}")
        if tensor.is_floating_point() != state[name].is_floating_point():
            raise ValueError(f"{name} is of {state[name].dtype}, expected {tensor.dtype}")


def _may_be_there(path: Path) -> bool:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):  # the last: a zero byte in the name
        return False
    except OSError:  # in a folder that may not be entered: reading says so
        return True
    return True


def describe(card: Card) -> dict[str, Any]:
    """A card as plain data, for `--json`."""
    facts: dict[str, Any] = json.loads(card.model_dump_json())
    return facts
