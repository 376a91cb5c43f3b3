"""The claims of paper A (Gao et al. 2022) from the runs of `paper_a.py`: means, paired differences, tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from harness import gained, interval_of, table

LEVELS = (0.006, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07)
ASSUMED = (0.01, 0.02, 0.03, 0.04, 0.05)
TRUE = 0.03
UNEVEN = ("estimated map", "its mean", "its root mean square", "true map", "true mean", "true root mean square")
"""Which map is given where the noise is uneven."""
WAYS = {
    "deblur": [("none", 6), ("guided", 6), ("none", 9), ("guided", 9), ("naive", 9), ("frozen", 9)],
    "haze": [("none", 0), ("guided", 0)],
}
"""(way, layers of the denoiser) of each part."""
Runs = Sequence[dict[str, Any]]


def percent(level: float) -> str:
    return f"{100 * level:g}"


def values(runs: Runs, way: str, layers: int, *keys: str) -> dict[int, float]:
    """seed → the number that stands under these keys of what was found."""
    found = {}
    for run in runs:
        if (run["way"], run["layers"]) == (way, layers):
            fact = run["found"]
            for key in keys:
                fact = fact[key]
            found[run["seed"]] = fact
    return found


def mean(numbers: dict[int, float]) -> float | None:
    return float(f"{sum(numbers.values()) / len(numbers):.5g}") if numbers else None


def gain(one: dict[int, float], other: dict[int, float], digits: int = 3) -> dict[str, Any]:
    """Mean of `one` − `other`, paired by seed, and its 95 % interval.

    >>> gain({0: 30.0, 1: 31.0}, {0: 29.0, 1: 30.0})
    {'mean': 1.0, 'interval': [1.0, 1.0], 'n': 2}
    """
    gains = [value - other[seed] for seed, value in sorted(one.items()) if seed in other]
    return {
        "mean": round(sum(gains) / len(gains), digits) if gains else None,
        "interval": interval_of(gains, digits),
        "n": len(gains),
    }


COMPARED = {
    "A1, tiny: guided − none": (("guided", 6), ("none", 6)),
    "A1, general: guided − none": (("guided", 9), ("none", 9)),
    "A2: tiny guided − general none": (("guided", 6), ("none", 9)),
    "A3: guided − naive": (("guided", 9), ("naive", 9)),
    "control: guided − frozen": (("guided", 9), ("frozen", 9)),
}


def steered(psnr: Callable[..., dict[int, float]]) -> dict[str, Any]:
    """A4 and A5. psnr: keys of what was found → numbers by seed, or by picture."""
    own, uneven_map = psnr("levels", percent(TRUE)), psnr("uneven", "estimated map")
    return {
        "A4": {
            "adaptive": mean(own),
            "assumed": {
                at: {"psnr": mean(psnr("assumed", at)), "adaptive gains": gain(own, psnr("assumed", at))}
                for at in map(percent, ASSUMED)
            },
        },
        "A5": {
            name: {
                "psnr": mean(psnr("uneven", name)),
                "estimated map gains": gain(uneven_map, psnr("uneven", name)),
            }
            for name in UNEVEN
        },
    }


def summary_of_model(found: dict[str, Any]) -> dict[str, Any]:
    """A trained model: every level, and A4 and A5 with intervals over the pictures."""

    def psnr(*keys: str) -> dict[int, float]:
        fact = found
        for key in keys:
            fact = fact[key]
        return dict(enumerate(fact["pictures"]))

    names = [percent(level) for level in LEVELS]
    return {
        "psnr": {name: found["levels"][name]["psnr"] for name in names},
        "level told": {name: found["told"][name]["psnr"] for name in names},
        **steered(psnr),
        "maps": {name: {fact: found["levels"][name][fact] for fact in ("level", "deviation", "g")} for name in names},
    }


def summary_of_deblur(runs: Runs) -> dict[str, Any]:
    names = [percent(level) for level in LEVELS]
    return {
        "psnr": {
            f"{way}, {layers} layers": {name: mean(values(runs, way, layers, "levels", name, "psnr")) for name in names}
            for way, layers in WAYS["deblur"]
        },
        "level told": {name: mean(values(runs, "guided", 9, "told", name, "psnr")) for name in names},
        "gains": {
            title: {name: gain(*(values(runs, *which, "levels", name, "psnr") for which in both)) for name in names}
            for title, both in COMPARED.items()
        },
        **steered(lambda *keys: values(runs, "guided", 9, *keys, "psnr")),
        "maps": {
            way: {
                name: {fact: mean(values(runs, way, 9, "levels", name, fact)) for fact in ("level", "deviation", "g")}
                for name in names
            }
            for way in ("guided", "naive", "frozen")
        },
    }


def summary_of_haze(runs: Runs) -> dict[str, Any]:
    table = {}
    for name, facts in runs[0]["found"].items():
        none, guided = (values(runs, way, 0, name, "psnr") for way in ("none", "guided"))
        table[name] = {
            "input": facts["input_psnr"],
            "none": mean(none),
            "guided": mean(guided),
            "A7: guided − none": gain(guided, none),
        }
    return table


def settled(curve: Sequence[float], share: float = 0.9, width: int = 5) -> float:
    """Share of the updates after which a loss has done `share` of its fall: running means of `width` of its parts, from
    the first part to the mean of the last `width`.

    >>> settled([10.0, 1.0, 1.0, 1.0], width=1), settled([8.0, 6.0, 4.0, 2.0], width=1)
    (0.5, 1.0)
    """
    means = [sum(part) / len(part) for part in (curve[max(0, i + 1 - width) : i + 1] for i in range(len(curve)))]
    limit = curve[0] - share * (curve[0] - means[-1])
    return next(i + 1 for i, value in enumerate(means) if value <= limit) / len(curve)


def convergence(runs: Runs, layers: int) -> dict[str, Any]:
    """Fig. 4: when f and g of the guided runs have settled (see `settled`), and f − g, paired by seed."""
    curves = {run["seed"]: run["curves"] for run in runs if (run["way"], run["layers"]) == ("guided", layers)}
    f = {seed: settled(both["restoration"]) for seed, both in curves.items()}
    g = {seed: settled(both["guidance"]) for seed, both in curves.items()}
    return {"f": mean(f), "g": mean(g), "f − g": gain(f, g)}


def decline(runs: Runs, way: str, layers: int) -> dict[int, float]:
    """§5.2.1: what PSNR loses from 5 %, the highest level of the training, to 7 %, by seed."""
    five, seven = (values(runs, way, layers, "levels", at, "psnr") for at in ("5", "7"))
    return {seed: psnr - seven[seed] for seed, psnr in five.items()}


def stability(runs: Runs) -> dict[str, Any]:
    """By rival of the guided network of nine layers: both declines, and rival − guided, paired by seed."""
    guided = decline(runs, "guided", 9)
    return {
        way: {"guided": mean(guided), "rival": mean(decline(runs, way, 9)), "gain": gain(decline(runs, way, 9), guided)}
        for way in ("none", "naive", "frozen")
    }


def training_table(result: dict[str, Any]) -> str:
    """When f and g settle, and what 7 % of noise costs."""
    runs, hazed = result["deblur"]["runs"], result["haze"]["runs"]
    body = []
    for name, found in (
        ("deconvolution, 6 layers", convergence(runs, 6)),
        ("deconvolution, 9 layers", convergence(runs, 9)),
        ("haze", convergence(hazed, 0)),
    ):
        body.append([f"{name}: settled after", f"f {found['f']:.0%}", f"g {found['g']:.0%}", gained(found["f − g"])])
    for way, found in stability(runs).items():
        body.append(
            [
                f"loss from 5 to 7 %, guided and {way}",
                f"{found['guided']:.2f} dB",
                f"{found['rival']:.2f} dB",
                gained(found["gain"]),
            ]
        )
    return table(["", "", "", "difference (95 %, three seeds)"], body)


SUMMARIES = {"deblur": summary_of_deblur, "haze": summary_of_haze}


def psnr_table(result: dict[str, Any]) -> str:
    """Deconvolution at every noise level by every way of training."""
    content = result
    found, model = (content[part]["summary"] for part in ("deblur", "model"))
    ways = {**found["psnr"], "guided, 9 layers, true level given": found["level told"]}
    ways |= {"the shipped `deblur`": model["psnr"], "`deblur`, true level given": model["level told"]}
    head = ["PSNR, noise of", *(f"{level} %" for level in found["level told"])]
    return table(head, [[way, *(f"{psnr:.2f}" for psnr in by.values())] for way, by in ways.items()])


def gains_table(result: dict[str, Any]) -> str:
    """What each claim compares: ours with its interval, and the paper's below."""
    content = result
    found, printed = content["deblur"]["summary"]["gains"], content["papers"]
    sides = {
        "A1, tiny: guided − none": ("guidance, tiny (6 layers)", "no guidance, tiny (6 layers)"),
        "A1, general: guided − none": ("guidance, general (9 layers)", "no guidance, general (9 layers)"),
        "A2: tiny guided − general none": ("guidance, tiny (6 layers)", "no guidance, general (9 layers)"),
        "A3: guided − naive": ("hyper-training", "naive f+g"),
    }
    body = []
    for title, by in found.items():
        body.append([title, *(gained(facts) for facts in by.values())])
        if title in sides:
            one, other = (printed[f"Levin: {side}"] for side in sides[title])
            keys = [f"noise {level} %" for level in by]
            body.append(["the paper, Levin", *(f"{one[k] - other[k]:+.2f}" if k in one else "" for k in keys)])
    return table(["PSNR, noise of", *(f"{level} %" for level in next(iter(found.values())))], body)


def assumed_table(result: dict[str, Any]) -> str:
    """Noise of 3 %, another level assumed."""
    content = result
    printed, body = content["papers"], []
    levels = list(content["model"]["summary"]["A4"]["assumed"])
    for name, part in (("`deblur`", "model"), ("small network, three seeds", "deblur")):
        found = content[part]["summary"]["A4"]
        cells = [f"{facts['psnr']:.2f}" for facts in found["assumed"].values()]
        body.append([name, *cells, f"{found['adaptive']:.2f}"])
        gains = [gained(facts["adaptive gains"]) for facts in found["assumed"].values()]
        body.append([f"{name}: estimated − assumed", *gains, ""])
    for name, facts in content["model"]["classical"].items():
        cells = [f"{facts['assumed'][at]['psnr']:.2f}" for at in levels]
        body.append([name, *cells, f"{facts['estimated']['psnr']:.2f}"])
    for method in ("IRCNN", "FDN"):
        by = printed[f"Sun-misjudged: {method}"]
        body.append([f"the paper, Sun: {method}", *(f"{by[f'assumed {at} %']:.2f}" for at in levels), ""])
    adaptive = printed["Sun-misjudged: IRHG"]["assumed 3 %"]
    body.append(["the paper, Sun: IRHG", *[""] * len(levels), f"{adaptive:.2f}"])
    return table(["PSNR at 3 %, assumed", *(f"{at} %" for at in levels), "estimated"], body)


def uneven_table(result: dict[str, Any]) -> str:
    """Quadrants of 1 to 4 %."""
    content = result
    model, small = (content[part]["summary"]["A5"] for part in ("model", "deblur"))
    body = []
    for name in model:
        body.append([name])
        for facts in (model[name], small[name]):
            body[-1] += [
                f"{facts['psnr']:.2f}",
                "" if name == "estimated map" else gained(facts["estimated map gains"]),
            ]
    head = ["what steers", "`deblur`", "estimated map − this (95 %)", "small network", "estimated map − this (95 %)"]
    return table(head, body)


def maps_table(result: dict[str, Any]) -> str:
    """How good the estimated maps are."""
    content = result
    found = {"`deblur`": content["model"]["summary"]["maps"]}
    found |= {f"small, `{way}`": by for way, by in content["deblur"]["summary"]["maps"].items()}
    body = []
    for way, by in found.items():
        body.append([f"{way}: mean of the map, %", *(f"{100 * facts['level']:.2f}" for facts in by.values())])
        body.append([f"{way}: √g, %", *(f"{100 * facts['g'] ** 0.5:.2f}" for facts in by.values())])
    return table(["noise of", *(f"{level} %" for level in found["`deblur`"])], body)


def haze_table(result: dict[str, Any]) -> str:
    """Dehazing with and without the map of depth."""
    content = result
    body = [
        [name, *(f"{facts[key]:.2f}" for key in ("input", "none", "guided")), gained(facts["A7: guided − none"])]
        for name, facts in content["haze"]["summary"].items()
    ]
    for place in ("indoor", "outdoor"):
        none, guided = (content["papers"][f"SOTS-{place}: {method}"][""] for method in ("GridDehazeNet", "IRHG"))
        body.append([f"the paper, SOTS {place}", "", f"{none:.2f}", f"{guided:.2f}", f"{guided - none:+.2f}"])
    return table(["PSNR", "input", "without depth", "guided", "A7: gain (95 %)"], body)


def tables(result: dict[str, Any]) -> dict[str, str]:
    return {
        "paper_a_psnr": psnr_table(result),
        "paper_a_gains": gains_table(result),
        "paper_a_assumed": assumed_table(result),
        "paper_a_uneven": uneven_table(result),
        "paper_a_maps": maps_table(result),
        "paper_a_haze": haze_table(result),
        "paper_a_training": training_table(result),
    }
