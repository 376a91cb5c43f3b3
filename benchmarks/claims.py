"""One table of the three papers' claims: evidence (scale, seeds, interval, file) and verdict, from the results.

A comparison holds where its 95 % interval lies above 0, does not hold where it lies below, and is undecided where it
contains 0; then the table says how many seeds of the same size would make the interval ± 0.15 dB.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness import gained, table
from paper_a_claims import convergence, stability
from paper_b_claims import CLAIMED, HALF, TASKS, power
from paper_c_claims import judged_claims

RESULTS = ("paper_a", "guidance", *(f"paper_b-{task}" for task in TASKS), "search-lowlight", "search-underwater",
    "search-haze", "paper_c")  # fmt: skip
SMALL_A = "deconvolution of Set12, 2 stages of width 16, 800 steps, 3 seeds"
SMALL_B = "3 units of width 16, 240 steps of one 48-pixel crop, 5 seeds"
SMALL_C = "4 to 6 small images, 60 training steps, 3 seeds"


def verdict(gains: Mapping[str, Mapping[str, Any]], unit: str) -> str:
    """How many of the comparisons hold, are contradicted and are undecided, in words.

    >>> verdict({"a": {"interval": [0.1, 0.2]}, "b": {"interval": [-0.1, 0.2]}}, "tasks")
    'holds for 1 of 2 tasks (a); undecided for 1 (b), because the interval contains 0'
    """
    held = [name for name, facts in gains.items() if facts["interval"][0] > 0]
    failed = [name for name, facts in gains.items() if facts["interval"][1] < 0]
    rest = [name for name in gains if name not in (*held, *failed)]
    said = []
    if held:
        said.append(f"holds for {len(held)} of {len(gains)} {unit} ({', '.join(held)})")
    if failed:
        said.append(f"**does not hold** for {len(failed)} of {len(gains)} {unit} ({', '.join(failed)})")
    if rest:
        of = f" of {len(gains)} {unit}" if not said else ""
        said.append(f"undecided for {len(rest)}{of} ({', '.join(rest)}), because the interval contains 0")
    return "; ".join(said)


def shown(gains: Mapping[str, Mapping[str, Any]], digits: int = 2) -> str:
    return "; ".join(f"{name} {gained(facts, digits)}" for name, facts in gains.items())


def levels(gains: Mapping[str, Mapping[str, Any]], chosen: Sequence[str] = ()) -> dict[str, Mapping[str, Any]]:
    return {f"{level} %": facts for level, facts in gains.items() if not chosen or level in chosen}


def claims_a(result: dict[str, Any]) -> list[list[str]]:
    found, model = result["paper_a"]["deblur"]["summary"], result["paper_a"]["model"]["summary"]
    gains, ends = found["gains"], ("0.6", "3", "7")
    body = []
    for number, claim, key in (
        ("A1", "guidance improves the restoration at every noise level", "A1, general: guided − none"),
        ("A2", "a small guided network does as well as a larger unguided one", "A2: tiny guided − general none"),
        ("A3", "Algorithm 1 is better than joint (naive) training", "A3: guided − naive"),
    ):
        evidence = f"{SMALL_A}; dB: {shown(levels(gains[key], ends))}; `paper_a.json`"
        said = verdict(levels(gains[key]), "levels")
        if number == "A3":
            control = levels(gains["control: guided − frozen"])
            said += f". Control, guide trained first and frozen: Algorithm 1 is better for {better(control)} levels"
        body.append([number, claim, evidence, said])
    assumed = {f"assumed {at} %": facts["adaptive gains"] for at, facts in found["A4"]["assumed"].items() if at != "3"}
    evidence = f"{SMALL_A}; noise of 3 %, estimated − assumed, dB: {shown(assumed)}; `paper_a.json`"
    body.append(["A4", "an estimated noise level beats a wrongly assumed one", evidence, verdict(assumed, "levels")])
    uneven = {name: model["A5"][name]["estimated map gains"] for name in ("its mean", "its root mean square")}
    evidence = (
        f"shipped `deblur`, 12 images, intervals over images; map − constant, dB: {shown(uneven)}; `paper_a.json`"
    )
    body.append(["A5", "for uneven noise a map beats one number", evidence, verdict(uneven, "constants")])
    rain = result["guidance"]["summary"]["ways"]["guided"]
    gain = {
        name: {"mean": rain[name]["over_none"], "interval": rain[name]["over_none_interval"]}
        for name in ("light", "heavy")
    }
    evidence = f"rain, two-level U-Net, 1,200 steps, 3 seeds, dB: {shown(gain)}; `guidance.json`. PReNet: not measured"
    body.append(["A6", "rain: guidance helps, most on heavy rain", evidence, verdict(gain, "sets")])
    haze = {name: facts["A7: guided − none"] for name, facts in result["paper_a"]["haze"]["summary"].items()}
    evidence = f"GridDehazeNet of 94,000 parameters, 400 steps, 3 seeds, dB: {shown(haze)}; `paper_a.json`"
    body.append(["A7", "haze: guidance gains 0.03 to 0.04 dB", evidence, verdict(haze, "sets")])
    return [*body, *further_claims_a(result["paper_a"])]


def further_claims_a(result: dict[str, Any]) -> list[list[str]]:
    """What the paper says beside its tables: Fig. 4, §5.2.1, §5.3, §5.4."""
    runs, body = result["deblur"]["runs"], []
    settled = {
        "deconvolution": convergence(runs, 9)["f − g"],
        "haze": convergence(result["haze"]["runs"], 0)["f − g"],
    }
    evidence = (
        f"{SMALL_A}; haze as A7; share of the updates until 90 % of the fall, f − g: {shown(settled)}; `paper_a.json`"
    )
    said = verdict(settled, "tasks")
    body.append(["Fig. 4", "the guidance loss g converges faster than the restoration loss f", evidence, said])
    calm = {way: facts["gain"] for way, facts in stability(runs).items() if way != "frozen"}
    evidence = f"{SMALL_A}; dB lost from 5 % to 7 %, rival − guided: {shown(calm)}; `paper_a.json`"
    claim = "§5.2.1", "at 7 % of noise, never seen in training, the guided network stays stable"
    body.append([*claim, evidence, verdict(calm, "rivals")])
    truths = result["truths"]["summary"]
    scale = "paper's guide, 400 updates, 3 seeds, 40 pictures never seen"
    region = {name.removeprefix("rain region, "): f["error gains"] for name, f in truths.items() if "rain" in name}
    evidence = f"{scale}; drawn heavy rain; squared error, taught − estimated: {shown(region, 3)}; `paper_a.json`"
    claim = "§5.3", "an estimated rain region is more accurate than the inaccurate truth it learned from"
    useful = [name for name, f in truths.items() if "rain" in name and f["estimated"]["error"] < f["constant"]["error"]]
    said = (
        f"{verdict(region, 'kinds of inaccuracy')}. Better than the best constant map: {len(useful)} of {len(region)}"
    )
    body.append([*claim, evidence, said])
    (depth,) = (facts for name, facts in truths.items() if "depth" in name)
    both = {"accuracy": depth["error gains"], "detail": depth["detail gains"]}
    evidence = (
        f"{scale}; NYU depth reduced 16 times; squared error, taught − estimated {gained(both['accuracy'], 3)}; "
        f"correlation of details with the accurate depth, estimated − taught {gained(both['detail'])}; `paper_a.json`"
    )
    claim = "§5.4", "an estimated depth is finer than the coarse truth it learned from"
    body.append([*claim, evidence, verdict(both, "measures")])
    return body


def better(gains: Mapping[str, Mapping[str, Any]]) -> str:
    return f"{sum(facts['interval'][0] > 0 for facts in gains.values())} of {len(gains)}"


def precision(undecided: Mapping[str, Mapping[str, Any]], needed: Mapping[str, Mapping[str, float]]) -> str:
    """What would decide comparisons, or how small a difference they leave."""
    halves = {task: (facts["interval"][1] - facts["interval"][0]) / 2 for task, facts in undecided.items()}
    wide = [f"{task} {needed[task]['seeds']}" for task, half in halves.items() if half > HALF]
    narrow = [task for task, half in halves.items() if half <= HALF]
    said = f"; ± {HALF} dB takes so many seeds of this size: {', '.join(wide)}" if wide else ""
    return said + (f"; known to ± {HALF} dB: {', '.join(narrow)}" if narrow else "")


def claims_b(result: dict[str, Any]) -> list[list[str]]:
    body, needed = [], power(result)
    for (number, claim), title, key in zip(
        (
            ("B1", "searched loss weights beat all weights 1"),
            ("B2", "the found network beats the supernet"),
            ("", "… and 3-C of as many parameters"),
            ("B3", "hierarchical beats synchronous search"),
            ("B4", "division beats subtraction"),
            ("", "… and no second branch"),
        ),
        CLAIMED,
        (
            "B1 searched weights over all ones, same found network",
            "B2 found network over the supernet",
            "B2 found network over 3-C of as many parameters",
            "B3 hierarchical over synchronous",
            "B4 division over subtraction",
            "B4 division over none",
        ),
        strict=True,
    ):
        gains = {task: result[f"paper_b-{task}"]["summary"]["claims"][key] for task in TASKS}
        evidence = f"{SMALL_B}; dB: {shown(gains)}; `paper_b-*.json`"
        said = verdict(gains, "tasks")
        said += precision(
            {task: facts for task, facts in gains.items() if "undecided" in verdict({"": facts}, "")}, needed[title]
        )
        body.append([number, claim, evidence, said])
    weights = {task: result[f"search-{task}"]["loss"] for task in TASKS}
    evidence = "; ".join(f"{task} {found['tv']:.2f}, {found['laplacian']:.2f}" for task, found in weights.items())
    least = min(min(found["tv"], found["laplacian"]) for found in weights.values())
    said = "**does not hold**: neither is near 0 on any task" if least > 0.1 else "holds on some task"
    evidence = f"shipped searches, 400 steps, one seed; λ: {evidence}; `search-*.json`"
    body.append(["B5", "λ of total variation and Laplacian fall to 0", evidence, said])
    return body


def claims_c(result: dict[str, Any]) -> list[list[str]]:
    """The verdicts of paper_c_claims.py, which asks every application for the interval over seeds."""
    body = []
    for number, claim, verdict_, numbers in judged_claims(result["paper_c"]):
        scale = SMALL_C if number != "5" else "random problems of 8 variables, 3 seeds"
        body.append([f"C{number}", claim, f"{scale}; {numbers}; `paper_c.json`", verdict_])
    return body


def tables(result: dict[str, Any]) -> dict[str, str]:
    body = [*claims_a(result), *claims_b(result), *claims_c(result)]
    return {"claims": table(["", "claim", "evidence (95 % intervals)", "verdict"], body)}
