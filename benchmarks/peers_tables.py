"""The tables of `peers`: every task with the papers' printed numbers, leads by picture, gaps between sets, networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from harness import interval_of, span, table
from peers_networks import PEERS
from twofold.evaluate import paper_rows

RESULTS = ("peers",)

LEAD = {
    "rain": "derain",
    "haze": "dehaze",
    "lowlight": "lowlight",
    "underwater": "underwater",
    "deconvolution": "deblur",
}
"""The shipped model that the others of a task are compared with."""

PRINTED = {
    "rain": ("Rain100L", "Rain100H"),
    "haze": ("SOTS-indoor", "SOTS-outdoor", "SIHR"),
    "lowlight": ("LOL",),
    "underwater": ("UIEB",),
    "deconvolution": ("Levin",),
}
"""Data sets of the papers by task."""

SETTINGS = ("", "noise 1 %", "noise 3 %", "noise 5 %")
"""Of the printed numbers; the validation sets of deconvolution have the same noise."""

NAMES = {
    "light": "Rain100 light, held-out scenes",
    "heavy": "Rain100 heavy, held-out scenes",
    "rain1400": "Rain1400, another generator of rain",
    "hazerd": "HazeRD, held-out scenes",
    "reside": "RESIDE_sample20, outdoor",
    "indoor": "NYU, held-out scenes, drawn haze",
    "lol": "LOL, held-out pairs of its training part",
    "camera": "pairs of another camera",
    "dusk": "Kodak, drawn darkness",
    "euvp": "EUVP, held-out pairs",
    "uieb": "UIEB",
    "set12-1%": "Set12, noise 1 %",
    "set12-3%": "Set12, noise 3 %",
    "set12-5%": "Set12, noise 5 %",
}
SEEN = {peer.name: peer.may_have_seen for peer in PEERS}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _psnr(facts: dict[str, Any], method: str, dataset: str) -> float:
    return _mean(facts["scores"][method][dataset]["psnr"])


def _shown(facts: dict[str, Any], method: str, dataset: str = "") -> str:
    """The name of a method, and whether it may have seen the pictures."""
    if method == "input":
        return "untouched"
    kind = facts["methods"][method]["kind"]
    if kind == "peer":
        return method + " †" * (dataset in SEEN.get(method, ()))
    return f"**`{method}`**" if kind == "ours" else f"`{method}`, no weights"


def _ahead(facts: dict[str, Any], lead: str, method: str, dataset: str) -> str:
    """By how much the lead is ahead of a method, picture by picture, with the 95 % interval of the mean."""
    if lead == method or lead not in facts["scores"]:
        return ""
    both = (facts["scores"][name][dataset]["psnr"] for name in (lead, method))
    differences = [ours - theirs for ours, theirs in zip(*both, strict=True)]
    return f"{_mean(differences):+.2f} ({span(interval_of(differences), sign='+')})"


def task_table(task: str, facts: dict[str, Any]) -> str:
    """Every method on every validation set, the best first; then what the papers print for other pictures."""
    lead, body = LEAD[task], []
    for dataset in facts["sets"]:
        ranked = sorted(facts["scores"], key=lambda name, at=dataset: _psnr(facts, name, at), reverse=True)
        for method in ranked:
            score = facts["scores"][method][dataset]
            body.append(
                [
                    f"{NAMES.get(dataset, dataset)} ({len(score['psnr'])}), `{facts['protocol']}`",
                    _shown(facts, method, dataset),
                    f"{_mean(score['psnr']):.2f}",
                    f"{_mean(score['ssim']):.4f}",
                    _ahead(facts, lead, method, dataset),
                ]
            )
    if not facts["sets"]:
        body.append(["the validation sets", "not measured yet", "", "", ""])
    for dataset in PRINTED[task]:
        for row in paper_rows(dataset):
            if row.setting in SETTINGS and row.source != "Table 5":  # Table 5 of paper B is an ablation
                where = ", ".join(filter(None, (row.dataset, row.setting, row.pictures)))
                protocol = f"`{row.protocol}`" if row.protocol else "protocol not stated"
                printed = f"printed: {row.paper}, {row.source}"
                body.append([f"{where}; {protocol}", row.method, f"{row.psnr:.2f}", f"{row.ssim:.4f}", printed])
    return table(["pictures, protocol", "method", "PSNR", "SSIM", f"`{lead}` is ahead by (95 %)"], body)


def gap_table(result: dict[str, Any]) -> str:
    """Between the validation sets of a task: where each network, and what leads without one, is worst and best."""
    body = []
    for task, facts in result.items():
        for method, about in facts["methods"].items():
            if about["kind"] == "classical" and method != LEAD[task]:
                continue
            levels = {name: _psnr(facts, method, name) for name in facts["sets"]}
            gains = {name: level - _psnr(facts, "input", name) for name, level in levels.items()}
            worst, best = min(levels, key=levels.__getitem__), max(levels, key=levels.__getitem__)
            least, most = min(gains, key=gains.__getitem__), max(gains, key=gains.__getitem__)
            body.append(
                [
                    _shown(facts, method),
                    f"{levels[worst]:.2f} ({worst})",
                    f"{levels[best]:.2f} ({best})",
                    f"{levels[best] - levels[worst]:.2f}",
                    f"{gains[least]:+.2f} ({least})",
                    f"{gains[most]:+.2f} ({most})",
                ]
            )
    return table(["network", "lowest PSNR", "highest PSNR", "spread", "least gain", "largest gain"], body)


def network_table(result: dict[str, Any]) -> str:
    """Size and speed of everything that was measured."""
    body = []
    for task, facts in result.items():
        for method, about in facts["methods"].items():
            time = about.get("cpu_seconds_per_megapixel")
            shown = [_shown(facts, method), task, f"{about['parameters']:,}", "" if time is None else f"{time:.3g}"]
            body.append([*shown, f"`{about['digest'][:12]}`" if about["parameters"] else ""])
    return table(["method", "task", "parameters", "processor seconds a megapixel", "SHA-256 of the weights"], body)


def peer_table(result: dict[str, Any]) -> str:
    """Where the peers come from, and what they were trained on."""
    measured = {method for facts in result.values() for method in facts["methods"]}
    body = [
        [
            peer.name,
            f"{peer.paper}; `github.com/{peer.repository}` at `{peer.commit}`, licence: {peer.licence}",
            peer.trained,
            ", ".join(NAMES[name] for name in peer.may_have_seen) or "none that is known",
        ]
        for peer in PEERS
        if peer.name in measured
    ]
    return table(["network", "paper and repository", "trained on", "validation pictures it may have seen (†)"], body)


def tables(results: dict[str, Any]) -> dict[str, str]:
    result, nothing = results["peers"], {"sets": {}, "methods": {}, "scores": {}}
    return {
        **{f"results_{task}": task_table(task, result.get(task, nothing)) for task in LEAD},
        "results_gaps": gap_table(result),
        "results_networks": network_table(result),
        "results_peers": peer_table(result),
    }
