"""What an architecture search finds: one operation for every place, and the network made of them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from twofold.contracts import ConfigError
from twofold.files import write_text
from twofold.nets.hadamard import COMBINATIONS, Cell, Combine, HadamardNet, Place
from twofold.settings import nearest
from twofold.space.operations import CONVERT_CANDIDATES, UNIT_CANDIDATES, Candidate
from twofold.space.supernet import mixtures_of


@dataclass(frozen=True)
class Genotype:
    """The names of the chosen operations: "encoder" and "decoder" (9 each), "unit1", "unit2", … (numerator, divisor).

    ops_per_branch: operations in one branch of a unit. A unit has one branch (no division) or two.

    Raises: ConfigError for an unknown operation or a wrong number of them.
    """

    groups: Mapping[str, tuple[str, ...]]
    ops_per_branch: int = 4

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", {group: tuple(names) for group, names in self.groups.items()})
        expected = ["encoder", *(f"unit{n + 1}" for n in range(self.units)), "decoder"]
        if list(self.groups) != expected:
            raise ConfigError(
                f"a genotype has the groups encoder, unit1, unit2, …, decoder, got {', '.join(self.groups)}"
            )
        for group, names in self.groups.items():
            known = candidates_of(group)
            counts = {self.ops_per_branch, 2 * self.ops_per_branch} if group.startswith("unit") else {9}
            if len(names) not in counts:
                raise ConfigError(f"genotype: {group} has {len(names)} operations, expected {sorted(counts)[-1]}")
            for name in names:
                if name not in known:
                    raise ConfigError(f"genotype: {group} has no operation {name!r}; {nearest(name, known)}")

    @property
    def units(self) -> int:
        """How many Hadamard units there are."""
        return len(self.groups) - 2

    @property
    def skip_ratio(self) -> float:
        """Share of the units' places that were given to SC: near 1, the search has collapsed to doing nothing.

        >>> uniform_genotype("SC", "3-C").skip_ratio
        1.0
        """
        names = [name for group, names in self.groups.items() if group.startswith("unit") for name in names]
        return names.count("SC") / max(len(names), 1)

    def network(
        self,
        *,
        width: int = 32,
        combine: Combine | None = COMBINATIONS["divide"],
        checkpointed: bool = False,
        border: int = 0,
    ) -> HadamardNet:
        """The found network, newly initialised; the options are those of `HadamardNet`.

        >>> sum(p.numel() for p in uniform_genotype("3-C", "3-C").network().parameters())
        621408
        """
        units = [names for group, names in self.groups.items() if group.startswith("unit")]
        if any(len(names) // self.ops_per_branch != (1 if combine is None else 2) for names in units):
            raise ConfigError("genotype and `combine` disagree: a division takes two branches a unit, none takes one")
        return HadamardNet(
            self._cell(),
            width=width,
            units=self.units,
            ops_per_branch=self.ops_per_branch,
            combine=combine,
            checkpointed=checkpointed,
            border=border,
        )

    def _cell(self) -> Cell:
        def cell(place: Place, outputs: int) -> nn.Module:
            return candidates_of(place.group)[self.groups[place.group][place.row]](place.inputs, outputs)

        return cell

    def to_json(self) -> str:
        """As text that `from_json` reads."""
        return json.dumps({"ops_per_branch": self.ops_per_branch, "groups": self.groups}, indent=1)

    def write(self, path: Path) -> None:
        """As a file that recipes name."""
        write_text(path, self.to_json() + "\n")

    @classmethod
    def from_json(cls, text: str) -> Genotype:
        """Raises: ConfigError where the text is not a genotype."""
        try:
            found: dict[str, Any] = json.loads(text)
            groups = {str(group): tuple(map(str, names)) for group, names in found["groups"].items()}
            return cls(groups, int(found.get("ops_per_branch", 4)))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"not a genotype: {error!r}; use a genotype.json that a search wrote") from error


def candidates_of(group: str) -> dict[str, Candidate]:
    """The table of operations that a group chooses from."""
    return UNIT_CANDIDATES if group.startswith("unit") else CONVERT_CANDIDATES


def uniform_genotype(
    in_units: str, elsewhere: str, *, units: int = 7, ops_per_branch: int = 4, branches: int = 2
) -> Genotype:
    """The same operation everywhere: the controls of Table 5."""
    middle = {f"unit{n + 1}": (in_units,) * ops_per_branch * branches for n in range(units)}
    return Genotype({"encoder": (elsewhere,) * 9, **middle, "decoder": (elsewhere,) * 9}, ops_per_branch)


def agreement(found: Sequence[Genotype]) -> tuple[float, float]:
    """(share of the places at which two genotypes agree, what chance alone would give), the mean over all pairs.

    Raises: ConfigError for fewer than two, or for genotypes of different skeletons.

    >>> agreement([uniform_genotype("SC", "3-C"), uniform_genotype("3-RC", "3-C")])  # 18 of 74 places; 1/9 or 1/4 each
    (0.243..., 0.144...)
    """
    places = [[(group, name) for group, names in genotype.groups.items() for name in names] for genotype in found]
    if len(found) < 2 or len({tuple(group for group, _ in place) for place in places}) > 1:
        raise ConfigError("agreement is between at least two genotypes with the same groups and operations in each")
    same = [a == b for one, other in combinations(places, 2) for a, b in zip(one, other, strict=True)]
    chance = [1 / len(candidates_of(group)) for group, _ in places[0]]
    return sum(same) / len(same), sum(chance) / len(chance)


def derive(supernet: HadamardNet) -> Genotype:
    """The strongest candidate of every place, SC included (Zhu et al. 2022; of two equally strong ones, the first)."""
    groups: dict[str, list[str]] = {}
    for mixture in sorted(mixtures_of(supernet).values(), key=lambda mixture: mixture.place.row):
        chosen = list(mixture.candidates)[int(mixture.logits.argmax())]
        groups.setdefault(mixture.place.group, []).append(chosen)
    unit = sorted(group for group in groups if group.startswith("unit"))
    unit.sort(key=lambda group: int(group.removeprefix("unit")))
    ordered = {group: tuple(groups[group]) for group in ("encoder", *unit, "decoder")}
    return Genotype(ordered, supernet.ops_per_branch)


def shares(supernet: nn.Module) -> dict[str, Tensor]:
    """Softmax weights by group, `(rows, candidates)`, detached: what a search displays while it runs."""
    rows: dict[str, dict[int, Tensor]] = {}
    for mixture in mixtures_of(supernet).values():
        rows.setdefault(mixture.place.group, {})[mixture.place.row] = mixture.weights().detach()
    return {group: torch.stack([found[row] for row in sorted(found)]) for group, found in rows.items()}


def entropy(supernet: nn.Module) -> float:
    """How undecided the search is: the mean over all places of the weights' entropy, 1 for uniform, 0 for decided."""
    rows = [row for table in shares(supernet).values() for row in table]
    each = [-float((row * row.clamp_min(1e-30).log()).sum()) / math.log(len(row)) for row in rows]
    return sum(each) / len(each)
