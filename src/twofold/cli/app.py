"""Which verbs there are. Only the module of the verb in use is imported, so `--help` and `--version` cost no torch."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import wraps
from importlib import import_module
from inspect import cleandoc
from typing import Any

import twofold

VERBS = {
    "restore": "restore photographs: a file, several, or a folder",
    "degrade": "degrade clean images and save the true cause as a map",
    "models": "what can be restored with, and how well it was measured",
    "train": "train a model from a recipe, on your pairs or on synthetic ones",
    "search": "find a loss and a network for a task, from a recipe",
    "evaluate": "measure a model on pairs by an exact protocol",
    "audit": "find bad pairs, and scenes that training and test data share",
    "demo": "see it work: degrade, restore and train on bundled photographs",
}


def usage() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {verb:<{width}}  {about}" for verb, about in VERBS.items()]
    return "\n".join(
        [
            "Usage: twofold VERB [OPTIONS] …",
            "",
            "Restores photographs with models learned on two levels.",
            "",
            *lines,
            "",
            "  twofold restore rainy.jpg -o dry.jpg --model derain",
            "",
            "twofold VERB --help explains a verb; twofold --version prints the version.",
        ]
    )


def run_command_line(arguments: Sequence[str]) -> int:
    """Runs a command line and returns its exit code: 0 done, 1 something failed, 2 misused, 130 interrupted."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version"):
        print(f"twofold {twofold.__version__}")
        return 0
    verb, *rest = arguments
    if verb not in VERBS:
        from twofold.settings import nearest

        print(f"twofold: unknown verb {verb!r}; {nearest(verb, VERBS)}", file=sys.stderr)
        return 2
    return _run_verb(verb, rest)


def _run_verb(verb: str, arguments: list[str]) -> int:
    import typer

    from twofold.cli.misuse import Misuse
    from twofold.contracts import TwofoldError

    try:
        command = import_module(f"twofold.cli.{verb}").command

        @wraps(command)
        def exiting(*args: Any, **kwargs: Any) -> None:
            try:
                raise typer.Exit(command(*args, **kwargs) or 0)
            except KeyboardInterrupt:
                print("twofold: interrupted; nothing half-written was left behind", file=sys.stderr)
                raise typer.Exit(130) from None

        app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        app.command(help=_unwrapped(command.__doc__))(exiting)
        app(arguments, prog_name=f"twofold {verb}")
    except SystemExit as end:  # misuse and --help also end so, in every version of typer
        return int(end.code or 0)
    except TwofoldError as error:
        print(f"twofold: {error}", file=sys.stderr)
        return 2 if isinstance(error, Misuse) else 1
    except KeyboardInterrupt:  # while modules were loaded: nothing had begun
        return 130
    return 0


def _unwrapped(text: str) -> str:
    """A docstring whose paragraphs are one line each, for a terminal of any width to wrap anew."""
    paragraphs = cleandoc(text).split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
