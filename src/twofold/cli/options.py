"""Options that several verbs share, and their validation."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import typer

from twofold.cli.misuse import Misuse
from twofold.cli.pictures import FORMATS


def place(text: str) -> Path:
    """The path of an option. An empty one, as from an unset shell variable, is refused: it would be the current folder.

    Raises: typer.BadParameter.
    """
    if not text.strip():
        raise typer.BadParameter("is empty; name a file or a folder, or leave the option out")
    return Path(text)


def model_names() -> list[str]:
    """The shipped models, by their files: no card is read."""
    folder = resources.files("twofold") / "weights"
    return sorted(file.name.removesuffix(".json") for file in folder.iterdir() if file.name.endswith(".json"))


MODEL_HELP = f"{', '.join(model_names())}, or a .safetensors file; `twofold models` explains them."
AUTO = "auto"
"""Model name of `restore`: choose a model for the degradation found in each photograph."""
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 …")]
RuntimeOption = Annotated[
    str,
    typer.Option(help="torch, onnx, openvino, or auto: the choice of `twofold doctor --choose`, else torch."),
]
FormatOption = Annotated[str | None, typer.Option(help=f"{', '.join(FORMATS)}; default: the input's format.")]
QualityOption = Annotated[
    int | None, typer.Option(min=1, max=100, help="JPEG quality (default 95) or WebP quality (default lossless).")
]
JobsOption = Annotated[
    int, typer.Option("--jobs", min=1, max=64, help="Images read ahead and written in the background; same results.")
]
RecursiveOption = Annotated[bool, typer.Option("--recursive/--no-recursive", help="Include sub-folders.")]
DataOption = Annotated[Path, typer.Option(help="Base folder of the recipe's paths.")]
RunOption = Annotated[
    Path | None,
    typer.Option(
        "-o", "--output", parser=place, help="Output folder; an existing run is resumed. Default: runs/RECIPE."
    ),
]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="Change a setting: --set seed=1. Repeatable.")]
MinutesOption = Annotated[float, typer.Option(min=0, help="Minutes between checkpoints.")]
ShowOption = Annotated[bool, typer.Option("--show", help="Print the complete recipe with all changes, and exit.")]
SkipOption = Annotated[bool, typer.Option("--skip-existing", help="Skip images whose output exists and is not empty.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Print what would be done, and exit.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print warnings and errors only.")]
RUNTIMES = ("auto", "torch", "onnx", "openvino")
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result, or the error, as JSON.")]


def check_runtime(name: str) -> Any:
    """The runtime of that name. Raises: Misuse."""
    if name not in RUNTIMES:
        raise Misuse(f"--runtime is {', '.join(RUNTIMES[:-1])} or {RUNTIMES[-1]}, got {name!r}")
    return name


def check_device(name: str) -> None:
    """Raises: Misuse for a device that cannot be used here."""
    import torch

    if name == "auto":
        return
    try:
        if torch.device(name).type == "meta":
            raise RuntimeError("it computes nothing")
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # AssertionError: torch without CUDA
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise Misuse(f"device {name!r} cannot be used here ({reason}); try auto or cpu") from error
