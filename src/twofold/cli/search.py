"""`twofold search`."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

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
from twofold.cli.train import Bar, for_one_process, recipe_table, run_folder
from twofold.settings import checked, to_yaml
from twofold.train import reading


class Live(Bar):
    """Both levels' losses, entropy and share of skips on the line; the weights of the losses whenever they are due."""

    def __init__(self, stage: str) -> None:
        super().__init__()
        self.stage = stage
        self.every = 0

    def step(self, done: int, until: int, losses: dict[str, float], images_per_second: float) -> None:
        weights = {name.removeprefix("weight/"): v for name, v in losses.items() if name.startswith("weight/")}
        shown = {name: value for name, value in losses.items() if not name.startswith("weight/")}
        super().step(done, until, shown, images_per_second)
        if done % max(until // 5, 1) == 0 or done == until:
            facts = {n: shown[n] for n in ("entropy", "skip_ratio") if n in shown} | weights
            text = "  ".join(f"{name} {value:.3g}" for name, value in facts.items())
            self.console.print(f"{self.stage}, after {done:,} steps: {text}", highlight=False, markup=False)


def command(
    recipe: Annotated[str, typer.Argument(help="A shipped search by name, or a YAML file. `list` prints the names.")],
    data: DataOption = Path("."),
    output: RunOption = None,
    judge: Annotated[
        Path | None,
        typer.Option(parser=place, help="A judge.safetensors. Default: train the recipe's judge first."),
    ] = None,
    change: SetOption = None,
    seeds: Annotated[
        int, typer.Option(min=1, help="Number of seeds; their agreement is written to stability.json, .png.")
    ] = 1,
    device: DeviceOption = "auto",
    minutes: MinutesOption = 5.0,
    show: ShowOption = False,
    as_json: JsonOption = False,
) -> None:
    """Finds a loss and a network for a task: twofold search list names the shipped recipes, --show prints one.

    twofold search search-lowlight --data DATA --output runs/search-lowlight

    twofold search search-lowlight --data DATA --output runs/seeds --seeds 5

    The folder gets loss.yaml and genotype.json, which `twofold train` reads, pictures of both (weights.png,
    architecture.png, traces.png, features.png) and search.json with settings, costs and the judge. After Ctrl-C the
    same command resumes the search exactly. The same seed gives the same result on the same machine.
    """
    if recipe == "list":
        print(recipe_table("search", as_json=as_json))
        return
    tree = reading.tree_of(recipe, change)
    if reading.kind_of(tree) != "search":
        raise Misuse(
            f"{recipe} is not a search; run it with `twofold train {recipe}`; `twofold search list` names those"
        )
    from twofold.search.recipe import HierarchicalSpec, SearchRecipe, SupernetSpec

    chosen = checked(SearchRecipe, tree, recipe)
    if show:
        print(to_yaml(chosen), end="")
        return
    from twofold.search.judge import train_judge_of
    from twofold.search.run import search
    from twofold.search.seeds import searches

    reading.read_recipe(chosen.final)  # the one that the last line names: a slip should not show after an hour
    check_device(device)
    folder = run_folder(output, chosen.name)
    finished = (folder / "search.json").exists()
    bars: list[Live] = []

    def live(stage: str) -> list[Live]:
        bars.append(Live(stage))
        return [bars[-1]]

    with for_one_process(folder):
        try:
            if judge is None and chosen.needs_judge and not finished:
                judge = train_judge_of(chosen, data, folder / "judge", device=device, reports=live("judge"))
            if seeds > 1:
                result = searches(
                    chosen, data, folder, seeds=seeds, judge=judge, device=device, minutes=minutes, reports=live
                )
            else:
                result = search(chosen, data, folder, judge=judge, device=device, minutes=minutes, reports=live)
        finally:
            for bar in bars:
                bar.progress.stop()
    if as_json:
        print(json.dumps(result, indent=2))
        return
    if seeds > 1:
        print(_agreed(result))
        print(f"{folder}: stability.json, stability.png")
        return
    for name, stage in result["stages"].items():
        if stage["ended_early"]:
            print(f"{name} ended early: {stage['ended_early']}")
    left = f"{folder}: loss.yaml" + (", genotype.json" if "parameters" in result else "")
    print(left + (" were found before" if finished else ""))
    train = ["twofold", "train", chosen.final, "--data", str(data), "--loss", str(folder / "loss.yaml")]
    if "parameters" in result and isinstance(chosen.net, SupernetSpec):
        found = {"genotype": folder / "genotype.json", "width": chosen.net.width, "combine": chosen.net.combine}
        train += [word for key, value in found.items() for word in ("--set", f"model.net.{key}={value}")]
        if isinstance(chosen.search, HierarchicalSpec):
            print(f"{result['parameters']:,} parameters, skip connections at {result['skip_ratio']:.0%} of the places")
    print(f"train it: {shlex.join(train)}")


def _agreed(result: dict[str, Any]) -> str:
    """What the seeds agree on, a line for each loss."""
    lines = [f"{len(result['seeds'])} seeds: weight of each loss, its mean and 95 % interval"]
    for name, found in result["weights"].items():
        low, high = found["interval"]
        lines.append(f"  {name:20} {found['mean']:6.3f}   {low:.3f} … {high:.3f}")
    if "agreement" in result:
        lines.append(f"two seeds agree at {result['agreement']:.0%} of the places; chance: {result['chance']:.0%}")
        lines.append(f"parameters: {min(result['parameters']):,} to {max(result['parameters']):,}")
    return "\n".join(lines)
