"""`twofold models`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from twofold import zoo


def command(as_json: Annotated[bool, typer.Option("--json", help="Print the cards as JSON.")] = False) -> None:
    """Lists the shipped models: what each is for, its size, and what it was measured at on held-out pictures.

    twofold models --json prints the whole cards: data, terms, command, seed, time.
    """
    found = list(zoo.cards().values())
    if as_json:
        print(json.dumps([zoo.describe(card) for card in found], indent=2))
        return
    print("\n\n".join(shown(card) for card in found))


def shown(card: zoo.Card) -> str:
    """A card in a few lines: PSNR of the untouched pictures → of the restored ones."""
    wide = max(map(len, card.numbers))
    lines = [f"{card.name}: {card.about} ({card.bytes / 1e6:.1f} MB)", f"  PSNR in dB by protocol {card.protocol}:"]
    lines += [
        f"    {name:<{wide}}  {n['input_psnr']:.2f} → {n['psnr']:.2f}  ({n['pictures']:.0f} pictures)"
        for name, n in card.numbers.items()
    ]
    return "\n".join([*lines, f"  {card.terms}", *([f"  {card.notes}"] if card.notes else [])])
