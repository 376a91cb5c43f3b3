"""`twofold models`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from twofold import zoo
from twofold.cli.misuse import Misuse
from twofold.cli.options import JsonOption
from twofold.settings import nearest


def command(
    name: Annotated[str | None, typer.Argument(help="Print all details of one model.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Lists the shipped models: task, size, and PSNR on held-out images.

    twofold models derain prints all details of one: data, licence terms, command, seed, time.

    twofold models --json prints the whole cards.
    """
    cards = zoo.cards()
    if name is not None and name not in cards:
        raise Misuse(f"unknown model {name!r}; {nearest(name, list(cards))}")
    found = list(cards.values()) if name is None else [cards[name]]
    if as_json:
        described = [zoo.describe(card) for card in found]
        print(json.dumps(described if name is None else described[0], indent=2))
        return
    print("\n\n".join(shown(card) for card in found))
    if name is not None:
        print(details(found[0]))


def details(card: zoo.Card) -> str:
    """What `shown` leaves out."""
    facts: dict[str, object] = {"task": card.task, "method": card.method}
    if card.gigamacs is not None:
        facts["multiplications"] = f"{card.gigamacs:,.1f}e9 a megapixel"
    if card.self_ensemble:
        gains = ", ".join(f"{name} {gain:+.2f} dB" for name, gain in card.self_ensemble.items())
        facts["--self-ensemble"] = f"{gains}, in eight times the time"
    if card.parameters:  # a classical model has no weights and no training
        facts |= {
            "parameters": f"{card.parameters:,}",
            "training data": ", ".join(card.data),
            "made by": card.command,
            "seed": card.seed,
            "hours of training": f"{card.hours:g}" + (f" ({card.machine})" if card.machine else ""),
            "sha256": card.sha256,
        }
    return "\n".join(f"  {name}: {value}" for name, value in facts.items())


def shown(card: zoo.Card) -> str:
    """A card in a few lines: PSNR of the untouched pictures → of the restored ones."""
    size = f"{card.bytes / 1e6:.1f} MB" if card.bytes else "no weights"
    lines = [f"{card.name}: {card.about} ({size})"]
    if card.numbers:
        lines.append(f"  PSNR in dB by protocol {card.protocol}:")
    wide = max(map(len, card.numbers), default=0)
    lines += [
        f"    {name:<{wide}}  {n['input_psnr']:.2f} → {n['psnr']:.2f}  ({n['pictures']:.0f} pictures)"
        for name, n in card.numbers.items()
    ]
    return "\n".join([*lines, f"  {card.terms}", *([f"  {card.notes}"] if card.notes else [])])
