"""`twofold models`."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def command(as_json: Annotated[bool, typer.Option("--json", help="Print the cards as JSON.")] = False) -> None:
    """Lists the shipped models: what each is for, its size, and what it was measured at on its validation pictures.

    twofold models --json
    """
    from twofold import zoo

    found = list(zoo.cards().values())
    if as_json:
        print(json.dumps([zoo.describe(card) for card in found], indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("model", "for", "size", "measured on", "before → after (PSNR, dB)", "terms")
    for card in found:
        names = "\n".join(card.numbers)
        scores = "\n".join(f"{n['input_psnr']:.2f} → {n['psnr']:.2f}" for n in card.numbers.values())
        table.add_row(
            card.name, card.about, f"{card.bytes / 1e6:.1f} MB", f"{names}\n({card.protocol})", scores, card.terms
        )
    Console().print(table)
