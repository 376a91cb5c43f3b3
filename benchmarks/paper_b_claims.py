"""The claims of paper B (Zhu et al. 2022) from the seeds of `paper_b.py`: means, paired differences, tables."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import stdev
from typing import Any

from harness import gained, seeds_needed, span, table
from twofold.evaluate import interval
from twofold.space.genotype import Genotype, agreement

TASKS = ("lowlight", "underwater", "haze")
RESULTS = tuple(f"paper_b-{task}" for task in TASKS)


def summary(seeds: Sequence[dict[str, Any]], ops_per_branch: int) -> dict[str, Any]:
    """Means over the seeds with Student's intervals, and of the paired differences that the claims are about."""

    def of(values: Sequence[float]) -> dict[str, Any]:
        span = interval(list(values))
        return {"mean": sum(values) / len(values), "interval": None if span is None else list(span)}

    def each(part: str, name: str, key: str, *inner: str) -> list[float]:
        found = []
        for seed in seeds:
            node = seed[part][name]
            for step in inner:
                node = node[step]
            found.append(float(node[key]))
        return found

    def apart(a: Sequence[float], b: Sequence[float]) -> dict[str, Any]:
        return of([x - y for x, y in zip(a, b, strict=True)])

    keys = ("psnr", "ssim", "perceptual_squeeze")
    first = seeds[0]
    table5 = {name: {k: of(each("table5", name, k)) for k in (*keys, "parameters")} for name in first["table5"]}
    combine = {name: {k: of(each("combine", name, k)) for k in (*keys, "parameters")} for name in first["combine"]}
    fig6 = {
        name: {
            **{way: {k: of(each("fig6", name, k, way)) for k in keys} for way in ("ones", "searched")},
            "gain": {k: apart(each("fig6", name, k, "searched"), each("fig6", name, k, "ones")) for k in keys},
        }
        for name in first["fig6"]
    }

    def over(other: str) -> dict[str, Any]:
        return apart(each("table5", "hierarchical", "psnr"), each("table5", other, "psnr"))

    weights = [seed["loss"]["hierarchical"] for seed in seeds]
    same = agreement([Genotype(seed["genotype"], ops_per_branch) for seed in seeds]) if len(seeds) > 1 else None
    result: dict[str, Any] = {
        "fig6": fig6,
        "table5": table5,
        "combine": combine,
        "claims": {
            "B1 searched weights over all ones, same found network": over("hierarchical, all ones"),
            "B2 found network over the supernet": over("supernet"),
            "B2 found network over 3-C of as many parameters": over("3-C, as many parameters"),
            "B2 found network over 3-RC": over("3-RC"),
            "B3 hierarchical over synchronous": over("synchronous"),
            "B5 one round over two, equally many steps": over("hierarchical, two rounds"),
            "B4 division over subtraction": apart(
                each("combine", "divide", "psnr"), each("combine", "subtract", "psnr")
            ),
            "B4 division over none": apart(each("combine", "divide", "psnr"), each("combine", "none", "psnr")),
        },
        "weights": {name: of([w[name] for w in weights]) for name in weights[0]},
        "same_choice": None if same is None else same[0],
        "chance": None if same is None else same[1],
        "skip_ratio": {
            name: of([seed["table5"][name]["skip_ratio"] for seed in seeds]) for name in ("hierarchical", "synchronous")
        },
    }
    if all("black_box" in seed for seed in seeds):
        result["black_box"] = {name: {k: of(each("black_box", name, k)) for k in keys} for name in first["black_box"]}
        result["trials"] = [seed["black_box"]["TPE"]["trials"] for seed in seeds]
    return result


def by_task(result: dict[str, Any]) -> dict[str, Any]:
    """The summaries of the three tasks, and how many seeds they are of."""
    found = {task: result[f"paper_b-{task}"] for task in TASKS}
    return {
        f"{task}, {len(facts['seeds'])} seeds": {**facts["summary"], "untouched": facts["untouched"]}
        for task, facts in found.items()
    }


def losses_table(result: dict[str, Any]) -> str:
    """Fig. 6: all weights 1 against searched ones, for three networks."""
    body = []
    for task, summary in by_task(result).items():
        for name, facts in summary["fig6"].items():
            scores = (
                f"{facts[way]['psnr']['mean']:.2f} / {facts[way]['ssim']['mean']:.3f}" for way in ("ones", "searched")
            )
            perceptual = f"{facts['gain']['perceptual_squeeze']['mean']:+.3f}"
            body.append([task, name, *scores, gained(facts["gain"]["psnr"]), perceptual])
    head = ["task", "network", "all ones (PSNR / SSIM)", "searched", "gain in dB (95 %)", "perceptual-squeeze"]
    return table(head, body)


def networks_table(result: dict[str, Any]) -> str:
    """Table 5 at a small scale, and what combines the branches."""
    found = by_task(result)
    first = next(iter(found.values()))
    body = [
        [
            name,
            f"{first[part][name]['parameters']['mean']:,.0f}",
            *(f"{s[part][name]['psnr']['mean']:.2f} / {s[part][name]['ssim']['mean']:.3f}" for s in found.values()),
        ]
        for part in ("table5", "combine")
        for name in first[part]
        if name != "divide"  # the 3-RC network above it
    ]
    untouched = [f"{s['untouched']['psnr']:.2f} / {s['untouched']['ssim']:.3f}" for s in found.values()]
    return table(["network", "parameters (low light)", *found], [["untouched", "", *untouched], *body])


def claims_table(result: dict[str, Any]) -> str:
    """The claims B1 to B4 as differences in dB."""
    found = by_task(result)
    claims = next(iter(found.values()))["claims"]
    body = [[claim, *(gained(summary["claims"][claim]) for summary in found.values())] for claim in claims]
    return table(["dB, mean (95 %)", *found], body)


CLAIMED = {
    "B1 searched weights over all ones": (("table5", "hierarchical"), ("table5", "hierarchical, all ones")),
    "B2 found network over the supernet": (("table5", "hierarchical"), ("table5", "supernet")),
    "B2 found network over 3-C": (("table5", "hierarchical"), ("table5", "3-C, as many parameters")),
    "B3 hierarchical over synchronous": (("table5", "hierarchical"), ("table5", "synchronous")),
    "B4 division over subtraction": (("combine", "divide"), ("combine", "subtract")),
    "B4 division over none": (("combine", "divide"), ("combine", "none")),
}
HALF = 0.15  # dB: half of the interval that is asked for


def power(result: dict[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """By claim and task: standard deviation of the difference over seeds, the seeds that `HALF` needs, CPU hours."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for claim, (one, other) in CLAIMED.items():
        for task in TASKS:
            facts = result[f"paper_b-{task}"]
            gains = [seed[one[0]][one[1]]["psnr"] - seed[other[0]][other[1]]["psnr"] for seed in facts["seeds"]]
            needed = seeds_needed(stdev(gains), HALF)
            hours = facts["cpu_seconds"] / len(facts["seeds"]) * needed / 3600
            found.setdefault(claim, {})[task] = {"deviation": stdev(gains), "seeds": needed, "hours": hours}
    return found


def power_table(result: dict[str, Any]) -> str:
    """What would decide each claim at the size that was measured."""
    body = [
        [claim, *(f"{f['deviation']:.2f} dB, {f['seeds']} seeds, {f['hours']:.1f} h" for f in by.values())]
        for claim, by in power(result).items()
    ]
    return table([f"for ± {HALF} dB", *TASKS], body)


def stability_table(result: dict[str, Any]) -> str:
    """What the seeds of one search agree on."""

    def weighed(facts: dict[str, Any]) -> str:
        return f"{facts['mean']:.2f} ({span(facts['interval'])})"

    found = by_task(result)
    weights = next(iter(found.values()))["weights"]
    body = [
        *([f"λ of `{name}`", *(weighed(summary["weights"][name]) for summary in found.values())] for name in weights),
        ["places at which two seeds agree", *(f"{summary['same_choice']:.0%}" for summary in found.values())],
    ]
    return table(["mean (95 %)", *found], body)


def black_box_table(result: dict[str, Any]) -> str:
    """The hypergradient against black-box searches of equal CPU time, paired by seed; tasks where both were run."""
    keys, body = ("psnr", "ssim", "perceptual_squeeze"), []
    for task in TASKS:
        seeds = result[f"paper_b-{task}"]["seeds"]
        if not all("black_box" in seed for seed in seeds):
            continue
        ways = {"all ones": [seed["fig6"]["HNU (3-RC)"]["ones"] for seed in seeds]}
        ways |= {way: [seed["black_box"][way] for seed in seeds] for way in seeds[0]["black_box"]}
        ours = [seed["psnr"] for seed in ways["hypergradient"]]
        for way, scores in ways.items():
            line = [f"{task}, {len(seeds)} seeds", way]
            line += [f"{sum(score[key] for score in scores) / len(scores):.4g}" for key in keys]
            gains = [score["psnr"] - other for score, other in zip(scores, ours, strict=True)]
            gain = {"mean": sum(gains) / len(gains), "interval": interval(gains)}
            body.append([*line, "" if way == "hypergradient" else gained(gain)])
    head = ["task", "weights of 3-RC's loss", "PSNR", "SSIM", "perceptual-squeeze", "over hypergradient, dB (95 %)"]
    return table(head, body)


def tables(result: dict[str, Any]) -> dict[str, str]:
    return {
        "paper_b_losses": losses_table(result),
        "paper_b_networks": networks_table(result),
        "paper_b_claims": claims_table(result),
        "paper_b_stability": stability_table(result),
        "paper_b_power": power_table(result),
        "paper_b_black_box": black_box_table(result),
    }
