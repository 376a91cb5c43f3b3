"""`twofold train`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from twofold.settings import checked, to_yaml
from twofold.train import reading


class Bar:
    """A live line: both losses, images/s, time left; every validation stays above it."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
        self.progress = Progress(*columns, console=self.console, disable=not sys.stderr.isatty())
        self.task = self.progress.add_task("", total=None)
        self.speed = 0.0
        self.shown: dict[str, float] = {}

    def step(self, done: int, until: int, losses: dict[str, float], images_per_second: float) -> None:
        self.progress.start()
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
        self.console.print(f"after {done:,} steps: {text}", highlight=False)


def command(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe by name, or a YAML file. `list` prints the names.")],
    data: Annotated[Path, typer.Option(help="The folder that the recipe's paths start from.")] = Path("."),
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="The run's folder; a run found there goes on. Without it runs/RECIPE."),
    ] = None,
    change: Annotated[
        list[str] | None, typer.Option("--set", help="Change a setting: --set data.batch=4. May be repeated.")
    ] = None,
    loss: Annotated[
        Path | None, typer.Option(help="A loss.yaml that a search wrote, in place of the recipe's loss.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda …")] = "auto",
    minutes: Annotated[float, typer.Option(help="Minutes between checkpoints.")] = 5.0,
    show: Annotated[bool, typer.Option("--show", help="Print the whole recipe after all changes, and stop.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Trains a model from a recipe: twofold train list names the shipped ones, --show prints one.

    twofold train derain --data DATA --output runs/derain

    twofold train my.yaml --data DATA --set data.batch=4 --set optimizer.learning_rate=0.0005

    The run's folder gets recipe.yaml, log.jsonl, TensorBoard events, sample pictures, state.safetensors (to go on
    from) and model.safetensors (to restore with: `twofold restore photo.jpg --model runs/x/model.safetensors`).
    best.safetensors is the model of the step that validated best.

    Interrupt with Ctrl-C and give the same command again: the run goes on as if it had never stopped.

    A judge-TASK recipe trains the judge of a loss search, and writes judge.safetensors.

    Several processes: `accelerate launch -m twofold train …`.
    """
    if recipe == "list":
        print("\n".join(reading.names("train", "judge")))
        return
    tree = reading.tree_of(recipe, change, loss=loss)
    if reading.kind_of(tree) == "judge":
        _train_judge(recipe, tree, data, output, device=device, minutes=minutes, show=show, as_json=as_json)
        return
    chosen = reading.parse(tree, recipe)
    if show:
        print(to_yaml(chosen), end="")
        return
    from twofold.train.run import train

    folder = output or Path("runs") / chosen.name
    bar = Bar()
    try:
        result = train(chosen, data, folder, device=device, minutes=minutes, reports=[bar])
    finally:
        bar.progress.stop()
    if as_json:
        print(json.dumps(result, indent=2))
    else:
        scores = ", ".join(f"{name} {value:.3f}" for name, value in result["validation"].items())
        print(f"{folder / 'model.safetensors'}" + (f": {scores}" if scores else " was finished before"))


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
    from twofold.train import judge
    from twofold.train.search_recipe import JudgeRecipe

    chosen = checked(JudgeRecipe, tree, origin)
    if show:
        print(to_yaml(chosen), end="")
        return
    folder = output or Path("runs") / chosen.name
    bar = Bar()
    try:
        result = judge.train_judge(chosen, data, folder, device=device, minutes=minutes, reports=[bar])
    finally:
        bar.progress.stop()
    if as_json:
        print(json.dumps(result, indent=2))
    else:
        held = f"{result['accuracy']:.1%} of {result['held_out']} held-out crops right"
        print(f"{folder / 'judge.safetensors'}: {held}")
