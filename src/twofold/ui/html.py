"""Fragments of the page, with every word of users and files escaped."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from twofold.contracts import GuidanceKind
from twofold.ui.restoring import Offer
from twofold.ui.visits import Limits, Photo, Visit
from twofold.ui.work import PREVIEW, download_name

EMPTY = "<div class=empty>Add a photograph, and it appears here.</div>"


def header() -> str:
    """The head of the page."""
    return (
        "<header class=top><h1>twofold</h1>"
        "<p>Restores photographs: rain, haze, blur, low light, water. Everything is computed on this machine; "
        "nothing is sent anywhere, and what you add is deleted when you close the page.</p></header>"
    )


def limits(allowed: Limits) -> str:
    """What may be added."""
    return (
        f"<p class=hint>JPEG, PNG, WebP, TIFF, BMP, GIF, AVIF or HEIC; up to {allowed.photographs} at once, "
        f"{allowed.megabytes} MB and {allowed.megapixels} megapixels each.</p>"
    )


def examples(names: Iterable[tuple[str, str]]) -> str:
    """Buttons with a picture. names: (key, what it shows)."""
    buttons = "".join(
        f'<button type=button data-example="{escape(key)}">'
        f'<img src="examples/{escape(key)}.jpg" alt="" loading=lazy>{escape(label)}</button>'
        for key, label in names
    )
    return f"<div class=examples><span>No photograph at hand? Try one:</span><div>{buttons}</div></div>"


def strip(visit: Visit, current: int | None) -> str:
    """The photographs of a visit as buttons: one to look at each, one to remove it."""
    if not visit.photos:
        return ""
    items = []
    for photo in visit.photos.values():
        name, pressed = escape(photo.name), str(photo.number == current).lower()
        state = "failed" if photo.failed else "restored" if photo.restored else ""
        mark = {"failed": "✗ ", "restored": "✓ ", "": ""}[state]
        items.append(
            f'<li class="{state}"><button type=button data-photo="{photo.number}" aria-pressed={pressed}>'
            f'<img src="{_address(visit, photo, "thumb.jpg")}" alt="">'
            f"<span>{mark}{name}</span></button>"
            f'<button type=button class=remove data-remove="{photo.number}" aria-label="Remove {name}">×</button></li>'
        )
    many = len(visit.photos) > 1
    title = f"<h2>{len(visit.photos)} photographs</h2>" if many else ""
    return f'{title}<ul class=strip aria-label="Your photographs">{"".join(items)}</ul>'


def compare(visit: Visit, photo: Photo | None) -> str:
    """Before and after under one slider, or the photograph alone while nothing was restored."""
    if photo is None:
        return EMPTY
    name, before = escape(photo.name), _address(visit, photo, "before.jpg")
    facts = f"{photo.width} × {photo.height} pixels"
    if photo.restored is None:
        picture = f'<img src="{before}" alt="{name}, as it came" width={photo.width} height={photo.height}>'
        return f"<figure class=alone>{picture}<figcaption>{name} · {facts}</figcaption></figure>"
    small = max(photo.width, photo.height) > PREVIEW
    shown = round(photo.width * min(1, PREVIEW / max(photo.width, photo.height)))
    note = f", shown at {PREVIEW} pixels" if small else ""
    with_map = ", by your map" if photo.painted else ""
    return (
        f'<figure class=compare style="--at:50%;--ratio:{photo.width / photo.height:.4f};--wide:{shown}px">'
        "<div class=stage><div class=both>"
        f'<img src="{before}" alt="{name}, as it came">'
        f'<img class=after src="{_address(visit, photo, "after.jpg")}" alt="{name}, restored">'
        "<span class=line aria-hidden=true></span>"
        "<span class=label aria-hidden=true>before</span><span class='label right' aria-hidden=true>after</span>"
        '<input type=range min=0 max=100 value=50 aria-label="Where the restored photograph begins" '
        "oninput=\"this.closest('figure').style.setProperty('--at', this.value + '%')\">"
        "</div></div>"
        f"<figcaption><span>{name} · {facts}{note} · {escape(photo.model)}{with_map}, {photo.seconds:.1f} s</span>"
        "<label class=actual><input type=checkbox "
        "onchange=\"this.closest('figure').classList.toggle('actual', this.checked)\"> pixel by pixel</label>"
        "</figcaption></figure>"
    )


def downloads(visit: Visit, photo: Photo | None) -> str:
    """Links to the restored file, to the map and the kernel, and to everything at once."""
    links = []
    if photo is not None and photo.restored is not None:
        links.append(
            f'<a class=main download="{escape(download_name(photo))}" '
            f'href="{_address(visit, photo, photo.restored.name)}">Download {escape(download_name(photo))}</a>'
        )
        stem = escape(photo.name.rpartition(".")[0] or photo.name)
        if photo.map_of:
            links.append(f'<a download="{stem}-map.png" href="{_address(visit, photo, "map.png")}">map</a>')
        if photo.searched:
            links.append(f'<a download="{stem}-kernel.png" href="{_address(visit, photo, "kernel.png")}">kernel</a>')
    done = sum(1 for each in visit.photos.values() if each.restored)
    if done > 1:
        links.append(f'<a download="restored.zip" href="visit/{visit.token}/restored.zip">all {done} as a ZIP file</a>')
    return f"<p class=downloads>{''.join(links)}</p>" if links else ""


def suggestion(photo: Photo | None, tasks: dict[str, str]) -> str:
    """What the photograph in view seems to need, and why."""
    if photo is None:
        return ""
    if photo.guess.task in tasks:
        label = escape(tasks[photo.guess.task])
        return f"<p class=hint>Suggested: <b>{label}</b>, since {escape(photo.guess.reason)}. You decide.</p>"
    return "<p class=hint>No clear sign of damage; choose what you see.</p>"


def about(offer: Offer, kind: GuidanceKind | None) -> str:
    """What a model is for, what its strength does, and its notes."""
    notes = f"<details><summary>more</summary>{escape(offer.notes)}</details>" if offer.notes else ""
    effect = kind.strength if kind else "below 1 keeps a share of the photograph as it came"
    strength = f"<p>Strength: {escape(effect)}.</p>"
    return f"<div class=hint><p>For {escape(offer.about)}.</p>{strength}{notes}</div>"


def map_legend(photo: Photo, kind: GuidanceKind) -> str:
    """What the greys of the editor mean."""
    origin = "Your map" if photo.painted else "Estimated by the model"
    name = escape(kind.name.replace("_", " "))
    return (
        f"<div class=hint><p>{origin}: the {name}, {escape(kind.meaning)}. Black is 0, white is {photo.white:g}. "
        "Paint where it is wrong, then press the button; what you see is used as it is, strength included.</p></div>"
    )


def kernel(visit: Visit, photo: Photo | None) -> str:
    """The kernel that was found, enlarged, with how far to trust it."""
    if photo is None or photo.confidence is None or photo.model == "":
        return ""
    return (
        f'<figure class=kernel><img src="{_address(visit, photo, "kernel.png")}" alt="The kernel that was found: the '
        f'path of a point of light during the exposure"><figcaption>The kernel that was found, confidence '
        f"{photo.confidence:.0%}. Does it look like one thin path? If not, the result cannot be trusted; try another "
        "size.</figcaption></figure>"
    )


def status(message: str = "", problems: Iterable[str] = ()) -> str:
    """What happened, read out by screen readers."""
    lines = "".join(f"<li>{escape(problem)}</li>" for problem in problems)
    alert = f"<ul class=problems role=alert>{lines}</ul>" if lines else ""
    return f"<div class=status role=status aria-live=polite>{escape(message)}</div>{alert}"


def _address(visit: Visit, photo: Photo, file: str) -> str:
    return f"visit/{visit.token}/{photo.number}/{file}?{photo.runs}"
