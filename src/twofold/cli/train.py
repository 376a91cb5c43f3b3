"""`twofold train`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from twofold.cli.misuse import Misuse
from twofold.cli.options import (
    DataOption,
    DeviceOption,
    JsonOption,
    MinutesOption,
    RunOption,
    SetOption,
    ShowOption,
    check_device,
    place,
)
from twofold.contracts import ConfigError, TwofoldError
from twofold.files import locked
from twofold.settings import checked, to_yaml
from twofold.train import reading

STOPPED = 3
"""Exit code of a run that `--stop-after` ended before its last step."""


class Bar:
    """A live line: both losses, images/s, time left; every validation stays above it."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        text = TextColumn("{task.description}", markup=False)
        columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), text)
        self.progress = Progress(*columns, console=self.console, disable=not sys.stderr.isatty())
        self.task = self.progress.add_task("", total=None)
        self.speed = 0.0
        self.stepped = False
        self.shown: dict[str, float] = {}

    def step(self, done: int, until: int, losses: dict[str, float], images_per_second: float) -> None:
        self.progress.start()
        self.stepped = True
        self.speed = 0.95 * self.speed + 0.05 * images_per_second if self.speed else images_per_second
        for name, value in losses.items():  # a single batch says little: a running mean is shown
            if "/" in name:  # one of a series, as the residual at each step
                continue
            self.shown[name] = 0.95 * self.shown.get(name, value) + 0.05 * value
        text = "  ".join(f"{name} {value:.4g}" for name, value in self.shown.items())
        self.progress.update(self.task, completed=done, total=until, description=f"{text}  {self.speed:.1f} images/s")
        if done == until:
            self.progress.stop()

    def validated(self, done: int, scores: dict[str, float]) -> None:
        text = "  ".join(f"{name} {value:.3f}" for name, value in scores.items())
        self.console.print(f"after {done:,} steps: {text}", highlight=False, markup=False)


def command(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe by name, or a YAML file. `list` prints the names.")],
    data: DataOption = Path("."),
    output: RunOption = None,
    change: SetOption = None,
    loss: Annotated[
        Path | None, typer.Option(parser=place, help="A loss.yaml from a search, instead of the recipe's loss.")
    ] = None,
    device: DeviceOption = "auto",
    minutes: MinutesOption = 5.0,
    stop_after: Annotated[
        float | None,
        typer.Option(min=0, help="Stop with a checkpoint after so many minutes; exit code 3. Not for judges."),
    ] = None,
    show: ShowOption = False,
    as_json: JsonOption = False,
) -> int:
    """Trains a model from a recipe: twofold train list names the shipped ones, --show prints one.

    twofold train derain --data DATA --output runs/derain

    twofold train my.yaml --data DATA --set data.batch=4 --set optimizer.learning_rate=0.0005

    The run's folder gets recipe.yaml, log.jsonl, TensorBoard events, sample images, state.safetensors (to
    resume from) and model.safetensors (to restore with: `twofold restore photo.jpg --model runs/x/model.safetensors`).
    best.safetensors is the model with the best validation score.

    After Ctrl-C the same command resumes the run; the result equals that of an uninterrupted run. --stop-after 10 stops
    it after ten minutes with a checkpoint, for machines with a time limit.

    A judge-TASK recipe trains the judge of a loss search, and writes judge.safetensors.

    Several processes: `accelerate launch -m twofold train …`.
    """
    if recipe == "list":
        print(recipe_table("train", "judge", as_json=as_json))
        return 0
    tree = reading.tree_of(recipe, change, loss=loss)
    if reading.kind_of(tree) == "judge":
        if stop_after is not None:
            raise Misuse("--stop-after is for models; a judge trains in minutes, and Ctrl-C interrupts it")
        _train_judge(recipe, tree, data, output, device=device, minutes=minutes, show=show, as_json=as_json)
        return 0
    if reading.kind_of(tree) == "search":
        raise Misuse(f"{recipe} is a search, not a training recipe; run it with `twofold search {recipe}`")
    chosen = reading.parse(tree, recipe)
    if show:
        print(to_yaml(chosen), end="")
        return 0
    check_device(device)
    folder = run_folder(output, chosen.name)
    from twofold.train.loop import TimeUp
    from twofold.train.run import train

    bar = Bar()
    with for_one_process(folder):
        try:
            result = train(chosen, data, folder, device=device, minutes=minutes, stop_after=stop_after, reports=[bar])
        except TimeUp as stop:
            bar.progress.stop()
            print(f"twofold: {stop}; the same command goes on", file=sys.stderr)
            return STOPPED
        finally:
            bar.progress.stop()
    if as_json:
        print(json.dumps(result, indent=2))
    else:
        scores = ", ".join(f"{name} {value:.3f}" for name, value in result["validation"].items())
        before = " (was finished before)" if not bar.stepped else ""
        print(f"{folder / 'model.safetensors'}" + (f": {scores}" if scores else "") + before)
    return 0


def recipe_table(*kinds: str, as_json: bool) -> str:
    """The shipped recipes of some kinds, each with what it is for."""
    folder = resources.files("twofold") / "configs"
    texts = {name: (folder / f"{name}.yaml").read_text(encoding="utf-8") for name in reading.names(*kinds)}
    found = {name: str(yaml.safe_load(text).get("about", "")) for name, text in texts.items()}
    if as_json:
        return json.dumps([{"name": name, "about": about} for name, about in found.items()], indent=2)
    wide = max(map(len, found))
    return "\n".join(f"{name:<{wide}}  {about}".rstrip() for name, about in found.items())


def run_folder(output: Path | None, name: str) -> Path:
    """--output, or a folder below `runs` called like the recipe.

    Raises: ConfigError for a name that leads elsewhere.
    """
    if output is not None:
        return output
    if name != Path(name).name or name in ("", ".", ".."):
        raise ConfigError(f"the recipe's name {name!r} is no name of a folder; change it, or name one with --output")
    return Path("runs") / name


@contextmanager
def for_one_process(folder: Path) -> Iterator[None]:
    """A lock on a run's folder, for the first of the processes that `accelerate launch` starts.

    A first start that fails leaves no recipe.yaml, which would keep a corrected recipe out.
    """
    if int(os.environ.get("RANK", 0)):
        yield
        return
    with locked(folder):
        first = not (folder / "recipe.yaml").exists()
        try:
            yield
        except TwofoldError:
            if first and not any((folder / name).exists() for name in ("state.safetensors", "log.jsonl")):
                _forget_recipes(folder)
            raise


def _forget_recipes(folder: Path) -> None:
    """Of a run that failed before its first step, and of those below it (a search has several); empty folders too."""
    if any(folder.rglob("state.safetensors")):
        return
    for recipe in list(folder.rglob("recipe.yaml")):
        recipe.unlink()
        with suppress(OSError):
            recipe.parent.rmdir()


def _train_judge(
    origin: str,
    tree: dict[str, Any],
    data: Path,
    output: Path | None,
    *,
    device: str,
    minutes: float,
    show: bool,
    as_json: bool,
) -> None:
    from twofold.search import judge
    from twofold.search.recipe import JudgeRecipe

    chosen = checked(JudgeRecipe, tree, origin)
    if show:
        print(to_yaml(chosen), end="")
        return
    check_device(device)
    folder = run_folder(output, chosen.name)
    bar = Bar()
    with for_one_process(folder):
        try:
            result = judge.train_judge(chosen, data, folder, device=device, minutes=minutes, reports=[bar])
        finally:
            bar.progress.stop()
    if as_json:
        print(json.dumps(result, indent=2))
    else:
        held = f"{result['accuracy']:.1%} of {result['held_out']} held-out crops right"
        print(f"{folder / 'judge.safetensors'}: {held}")
