"""Which verbs there are. Only the module of the verb in use is imported, so `--help` and `--version` cost no torch."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from importlib import import_module
from inspect import cleandoc
from keyword import iskeyword
from typing import Any

import twofold

VERBS = {
    "restore": "restore photographs: files or folders",
    "degrade": "degrade clean images and save the ground-truth map",
    "models": "list the models and their measured PSNR",
    "train": "train a model from a recipe, on your pairs or on synthetic ones",
    "search": "find a loss and a network for a task, from a recipe",
    "evaluate": "measure a model on image pairs under a named protocol",
    "audit": "find invalid pairs, and scenes shared by training and test data",
    "export": "export a model: ONNX, torch.export, spandrel, Hugging Face Hub",
    "import": "import weights: official PReNet and GridDehazeNet, Hugging Face Hub",
    "ui": "open a web page for restoring photographs",
    "doctor": "report on this machine and installation, and test them",
    "demo": "degrade and restore example photographs, and train on them",
    "completion": "print a shell completion script",
}
WIDEST = 120
"""Columns of help; lines across a wide terminal are hard to read."""


def usage() -> str:
    """The text of `twofold --help`: the verbs, each with a line."""
    width = max(map(len, VERBS))
    lines = [f"  {verb:<{width}}  {about}" for verb, about in VERBS.items()]
    return "\n".join(
        [
            "Usage: twofold VERB [OPTIONS] …",
            "",
            "Restores photographs with models trained by bilevel optimization.",
            "",
            *lines,
            "",
            "  twofold restore rainy.jpg -o dry.jpg --model derain",
            "",
            "twofold VERB --help explains a verb; twofold --version prints the version.",
            "Exit codes: 0 done, 1 invalid input or a failed file, 2 invalid command, 3 audit found problems,",
            "130 interrupted by Ctrl-C or SIGTERM.",
        ]
    )


def run_command_line(arguments: Sequence[str]) -> int:
    """Runs a command line and returns its exit code.

    0 done; 1 invalid input or a failed file; 2 invalid command; 3 `audit` found problems; 130
    interrupted, by Ctrl-C or SIGTERM. With --json, an error is also printed as JSON on standard output:
    {"error": {"kind": ..., "message": ...}}.
    """
    if not arguments or arguments[0] in ("-h", "--help") or list(arguments) == ["help"]:
        print(usage())
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version"):
        print(f"twofold {twofold.__version__}")
        return 0
    verb, *rest = arguments
    if verb == "help":
        verb, rest = rest[0], ["--help"]
    if verb not in VERBS:
        from twofold.settings import nearest

        return _failed(f"unknown verb {verb!r}; {nearest(verb, VERBS)}", "Misuse", 2, rest)
    return _run_verb(verb, rest)


def module_of(verb: str) -> Any:
    """The module of a verb. No module can be called `import`, so that one's name ends in an underscore."""
    return import_module(f"twofold.cli.{verb}_" if iskeyword(verb) else f"twofold.cli.{verb}")


def _run_verb(verb: str, arguments: list[str]) -> int:
    # Typer reads this when it is imported.
    os.environ.setdefault("TERMINAL_WIDTH", str(min(shutil.get_terminal_size().columns, WIDEST)))
    import typer

    from twofold.cli.misuse import Misuse
    from twofold.contracts import TwofoldError

    code: list[int] = []
    try:
        with _terminated_as_interrupted():
            app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
            function = module_of(verb).command
            settings = {"help_option_names": ["-h", "--help"]}
            app.command(help=_unwrapped(function.__doc__ or ""), context_settings=settings)(_storing(function, code))
            app(arguments, prog_name=f"twofold {verb}", standalone_mode="--json" not in arguments)
    except SystemExit as end:  # misuse and --help also end so, in every version of typer
        return code[0] if code else int(end.code or 0)
    except TwofoldError as error:
        misuse = isinstance(error, Misuse)
        return _failed(str(error), type(error).__name__, 2 if misuse else 1, arguments)
    except KeyboardInterrupt:
        print("twofold: interrupted; nothing half-written was left behind", file=sys.stderr)
        return 130
    except Exception as error:  # only typer's own, of misuse; the class has moved between versions
        if not hasattr(error, "format_message"):
            raise
        message = f"{error.format_message().rstrip('.')}; `twofold {verb} --help` lists the options"
        return _failed(message, "Misuse", 2, arguments)
    return code[0] if code else 0


def _storing(function: Callable[..., int | None], code: list[int]) -> Callable[..., None]:
    """`function`, its result kept in `code`."""

    @wraps(function)
    def called(*args: Any, **kwargs: Any) -> None:
        code.append(function(*args, **kwargs) or 0)

    return called


def _failed(message: str, kind: str, code: int, arguments: Sequence[str]) -> int:
    from twofold.printing import printable

    print(f"twofold: {printable(message)}", file=sys.stderr)
    if "--json" in arguments:
        print(json.dumps({"error": {"kind": kind, "message": message}}, indent=2))
    return code


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM, which batch systems and `kill` send, ends a run as Ctrl-C does: with its state and report written."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


def _unwrapped(text: str) -> str:
    """A docstring whose paragraphs are one line each, to be wrapped at the width of the terminal."""
    paragraphs = cleandoc(text).split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
