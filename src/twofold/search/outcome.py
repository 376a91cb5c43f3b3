"""The result of a search: its facts and output files."""

from __future__ import annotations

import json
import platform
import resource
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from twofold.contracts import Sample
from twofold.files import write_text
from twofold.losses import LayerLoss, LossSpec, loss_of
from twofold.search import plots
from twofold.search.recipe import SearchRecipe, SupernetSpec
from twofold.search.scheme import Found
from twofold.space.genotype import entropy


@dataclass(frozen=True)
class SearchOutcome:
    """stages: facts by name of the stage, in order. net: the network at the end of the last one. judge: its
    facts; None where none was asked.
    """

    recipe: SearchRecipe
    stages: dict[str, dict[str, Any]]
    net: nn.Module
    found: Found
    judge: dict[str, Any] | None

    @property
    def loss(self) -> LossSpec:
        """The loss that the search has found so far."""
        assert self.found.loss is not None, "every stage leaves a loss"
        return self.found.loss

    def facts(self) -> dict[str, Any]:
        """As search.json has them."""
        unit = 1 if sys.platform == "darwin" else 1024
        result = {
            "recipe": self.recipe.name,
            "task": self.recipe.task,
            "kind": self.recipe.search.kind,
            "seed": self.recipe.seed,
            "stages": self.stages,
            "loss": dict(self.loss.weights),
            "layers": {name: list(layers) for name, layers in self.loss.layers.items()},
            "judge": self.judge,
            "cpu_seconds": total([stage["cpu_seconds"] for stage in self.stages.values()]),
            "device": str(next(self.net.parameters()).device),
            "peak_memory_bytes": unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        }
        if self.found.genotype is not None and isinstance(self.recipe.net, SupernetSpec):
            result |= {
                "skip_ratio": round(self.found.genotype.skip_ratio, 4),
                "entropy": round(entropy(self.net), 4),
                "parameters": sum(p.numel() for p in self.recipe.net.found(self.found.genotype).parameters()),
            }
        return result

    def write(self, folder: Path, root: Path, shown: Sample) -> dict[str, Any]:
        """Leaves loss.yaml, genotype.json, pictures, traces, and last search.json, which ends the search; its facts.

        root: of the data, whose `features` hold the networks of the loss. shown: what features.png is drawn of.
        """
        self.loss.write(folder / "loss.yaml")
        plots.draw_weights(folder / "weights.png", {self.recipe.task: self.loss.weights})
        if self.found.genotype is not None:
            self.found.genotype.write(folder / "genotype.json")
            plots.draw_architecture(folder / "architecture.png", self.found.genotype)
        traces = {name: plots.traces_of(folder / name / "log.jsonl") for name in self.stages}
        write_text(folder / "traces.json", json.dumps(traces) + "\n")
        plots.traces(folder / "traces.png", traces)
        self._draw_features(folder / "features.png", root, shown)
        facts = self.facts()
        write_text(folder / "search.json", json.dumps(facts, indent=1) + "\n")
        return facts

    @torch.no_grad()
    def _draw_features(self, path: Path, root: Path, shown: Sample) -> None:
        """What the chosen feature layers see; nothing where there are none."""
        for name, layers in self.loss.layers.items():
            entry = loss_of(name)
            assert isinstance(entry, LayerLoss), "only these have layers"
            network = entry.network(root / "features", shown.clean.device)
            plots.features(path, network, layers, shown, self.net.eval()(shown.observed))


def total(parts: Sequence[float | None]) -> float | None:
    """Their sum; None where one is not known."""
    known = [part for part in parts if part is not None]
    return round(sum(known), 1) if len(known) == len(parts) else None
