"""Every source of samples that a recipe can name. To add one, write its specification with `build` and add it here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from twofold.data.depth import WithDepth
from twofold.data.sources import Crops, Paired, Source, SourceMixture, Synthetic

SourceSpec = Annotated[Synthetic | Paired | WithDepth, Field(discriminator="kind")]
CaseSpec = Annotated[Synthetic | WithDepth, Field(discriminator="kind")]  # those that give whole pictures too


def build_mixture(specs: Sequence[SourceSpec], root: Path, crops: Crops) -> Source:
    """All of them, drawn from by their weights. Raises: DataError where files cannot be used."""
    return SourceMixture([spec.build(root, crops) for spec in specs], [spec.weight for spec in specs])
