"""Writes the tables of README and docs from the files that commands made.

    python docs/tables.py            writes them
    python docs/tables.py --check    exits 1 if one is not what its file says

A table stands between `<!-- table NAME -->` and `<!-- end -->`; the function of that name below makes it.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
WEIGHTS = ROOT / "src" / "twofold" / "weights"


def rows(head: list[str], body: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *body])


def result(name: str) -> dict[str, Any]:
    return dict(json.loads((RESULTS / f"{name}.json").read_text()))


def models() -> str:
    """Every card: validation pictures, before → after."""
    body = []
    for path in sorted(WEIGHTS.glob("*.json")):
        card = json.loads(path.read_text())
        for dataset, n in card["numbers"].items():
            body.append(
                [
                    f"`{card['name']}`",
                    f"{card['bytes'] / 1e6:.1f} MB",
                    f"{dataset} ({n['pictures']:.0f} held-out pictures)",
                    f"`{card['protocol']}`",
                    f"{n['input_psnr']:.2f} / {n['input_ssim']:.4f}",
                    f"**{n['psnr']:.2f}** / {n['ssim']:.4f}",
                ]
            )
    return rows(["model", "size", "measured on", "protocol", "untouched (PSNR / SSIM)", "restored"], body)


def guidance() -> str:
    """Ways of training with and without guidance: PSNR with its interval over seeds, the gain, the guide's error."""
    ways = result("guidance")["summary"]["ways"]
    body = []
    for way, facts in ways.items():
        line = [f"`{way}`", f"{facts['theta_updates']:,}", f"{facts['cpu_seconds']:.0f} s"]
        for rain in ("light", "heavy"):
            found = facts[rain]
            line.append(f"{found['psnr']:.2f} ({span(found['psnr_interval'])})")
            gain = found.get("over_none")
            line.append("" if gain is None else f"{gain:+.2f} ({span(found['over_none_interval'], sign='+')})")
            line.append(f"{found['g']:.3f}" if "g" in found else "")
        body.append(line)
    constant = [f"{next(iter(ways.values()))[rain]['g_constant']:.3f}" for rain in ("light", "heavy")]
    body.append(["best constant map", "", "", "", "", constant[0], "", "", constant[1]])
    head = ["way", "θ-updates", "CPU time"]
    for rain in ("light", "heavy"):
        head += [f"{rain}: PSNR (95 %)", "over `none` (95 %)", "g"]
    return rows(head, body)


def guidance_rivals() -> str:
    """Every way against the guided scheme, paired by seed."""
    body = []
    for way, facts in result("guidance")["summary"]["ways"].items():
        gains = [facts[rain] for rain in ("light", "heavy") if "over_guided" in facts[rain]]
        if gains:
            shown = [f"{g['over_guided']:+.2f} ({span(g['over_guided_interval'], sign='+')})" for g in gains]
            body.append([f"`{way}` − `guided`", *shown])
    return rows(["PSNR, paired by seed (95 %)", "light", "heavy"], body)


def span(ends: list[float] | None, sign: str = "") -> str:
    return "one seed" if ends is None else " … ".join(f"{end:{sign}.2f}" for end in ends)


def restore_speed() -> str:
    """What each ingredient of running a network brings, PReNet at two sizes."""
    speed = result("restore")["speed"]
    body = []
    for variant, large in speed["512"]["variants"].items():
        small = speed["256"]["variants"][variant]
        cells = [f"{row['cpu_seconds']:.2f} s ({row['speedup']:.1f}×)" for row in (large, small)]
        body.append([variant, *cells])
    return rows(["PReNet, CPU seconds of one thread", "512 × 512", "256 × 256"], body)


def steering() -> str:
    """How much of the rain goes at each strength, and what that does to PSNR."""
    found = result("steering")["strengths"]
    head = ["strength", *found["light"]]
    body = []
    for rain, by in found.items():
        body.append([f"{rain}: share of the rain removed", *(f"{facts['removed']:.0%}" for facts in by.values())])
        body.append([f"{rain}: PSNR", *(f"{facts['psnr']:.2f}" for facts in by.values())])
    return rows(head, body)


def classical_deblur() -> str:
    """Deconvolution without weights, told the kernel."""
    body = [
        [percent(level), *(f"{facts[name]:.2f}" for name in ("input", "wiener", "richardson_lucy", "hyper_laplacian"))]
        for level, facts in result("classical")["deblur"].items()
    ]
    return rows(["noise", "input", "Wiener", "Richardson-Lucy, 10 steps", "hyper-Laplacian"], body)


def classical_blind() -> str:
    """Deconvolution by an estimated kernel."""
    body = [
        [
            percent(level),
            *(f"{facts[name]:.2f}" for name in ("input", "estimated_kernel", "true_kernel", "similarity")),
            f"{facts['gained']:.0%}",
        ]
        for level, facts in result("classical")["blind"].items()
    ]
    head = ["noise", "input", "estimated kernel", "true kernel", "similarity of kernels", "pictures that gained"]
    return rows(head, body)


def classical_haze() -> str:
    """The dark channel prior."""
    names = {"RESIDE_sample20": "RESIDE_sample20, outdoor", "HazeRD75": "HazeRD, 75 pictures"}
    body = [
        [names[name], *(f"{facts[key]:.2f}" for key in ("input", "dark_channel_0.95", "dark_channel_0.8"))]
        for name, facts in result("classical")["haze"].items()
    ]
    return rows(["", "input", "keep = 0.95 (published, default)", "keep = 0.8"], body)


def shipped_deblur() -> str:
    """The shipped model against what needs no weights, told the kernel."""
    names = ("input", "wiener", "hyper_laplacian", "deblur")
    body = [
        [
            percent(level),
            *(f"{facts[name]:.2f}" for name in names),
            f"{facts['gain']:+.2f} ({span(facts['gain_interval'], sign='+')})",
        ]
        for level, facts in result("shipped")["deblur"]["noise"].items()
    ]
    return rows(["noise", "input", "Wiener", "hyper-Laplacian", "`deblur`", "lead (95 %)"], body)


def shipped_assumed() -> str:
    """Told a wrong noise level, where 3 % is true; the last line estimates it."""
    found = result("shipped")["deblur"]
    names = ("wiener", "hyper_laplacian", "deblur_told")
    body = [
        [percent(level), *(f"{facts[name]:.2f}" for name in names)] for level, facts in found["assumed_at_0.03"].items()
    ]
    own = found["noise"]["0.03"]
    body.append(["estimated", f"{own['wiener']:.2f}", f"{own['hyper_laplacian']:.2f}", f"**{own['deblur']:.2f}**"])
    return rows(["assumed noise", "Wiener", "hyper-Laplacian", "`deblur`"], body)


def shipped_haze() -> str:
    """The shipped models against the dark channel prior."""
    body = []
    for name, models in result("shipped")["haze"].items():
        for model, facts in models.items():
            fitted = (f"{facts[f'{method}, exposure fitted']:.2f}" for method in ("dark_channel_0.8", model))
            body.append(
                [
                    f"{name} ({facts['pictures']} pictures)",
                    *(f"{facts[key]:.2f}" for key in ("input", "dark_channel_0.95", "dark_channel_0.8")),
                    f"`{model}` {facts[model]:.2f}",
                    f"{facts['gain']:+.2f} ({span(facts['gain_interval'], sign='+')})",
                    " / ".join(fitted),
                ]
            )
    head = ["", "input", "dark channel, keep = 0.95", "keep = 0.8", "model", "lead over the better one (95 %)"]
    return rows([*head, "exposure fitted: keep = 0.8 / model"], body)


def large() -> str:
    """What photographs of 1, 3 and 12 megapixels take of a shipped model."""
    found = result("large")["models"]
    sizes = list(next(iter(found.values())))
    body = [
        [f"`{name}`", *(f"{facts[n]['cpu_seconds']:.0f} s, {facts[n]['bytes'] / 2**30:.1f} GiB" for n in sizes)]
        for name, facts in found.items()
    ]
    return rows(["model", *(f"{n} megapixels" if n != "1" else "1 megapixel" for n in sizes)], body)


def percent(level: str) -> str:
    return f"{100 * float(level):g} %"


def paper_a_psnr() -> str:
    """Deconvolution at every noise level by every way of training."""
    content = result("paper_a")
    found, model = (content[part]["summary"] for part in ("deblur", "model"))
    ways = {**found["psnr"], "guided, 9 layers, level told": found["level told"]}
    ways |= {"the shipped `deblur`": model["psnr"], "`deblur`, level told": model["level told"]}
    head = ["PSNR, noise of", *(f"{level} %" for level in found["level told"])]
    return rows(head, [[way, *(f"{psnr:.2f}" for psnr in by.values())] for way, by in ways.items()])


def paper_a_gains() -> str:
    """What each claim compares: ours with its interval, and the paper's below."""
    content = result("paper_a")
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
    return rows(["PSNR, noise of", *(f"{level} %" for level in next(iter(found.values())))], body)


def gained(facts: dict[str, Any]) -> str:
    return f"{facts['mean']:+.2f} ({span(facts['interval'], sign='+')})"


def paper_a_assumed() -> str:
    """Noise of 3 %, another level assumed."""
    content = result("paper_a")
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
    return rows(["PSNR at 3 %, assumed", *(f"{at} %" for at in levels), "estimated"], body)


def paper_a_uneven() -> str:
    """Quadrants of 1 to 4 %."""
    content = result("paper_a")
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
    return rows(head, body)


def paper_a_maps() -> str:
    """How good the estimated maps are."""
    content = result("paper_a")
    found = {"`deblur`": content["model"]["summary"]["maps"]}
    found |= {f"small, `{way}`": by for way, by in content["deblur"]["summary"]["maps"].items()}
    body = []
    for way, by in found.items():
        body.append([f"{way}: mean of the map, %", *(f"{100 * facts['level']:.2f}" for facts in by.values())])
        body.append([f"{way}: √g, %", *(f"{100 * facts['g'] ** 0.5:.2f}" for facts in by.values())])
    return rows(["noise of", *(f"{level} %" for level in found["`deblur`"])], body)


def paper_a_haze() -> str:
    """Dehazing with and without the map of depth."""
    content = result("paper_a")
    body = [
        [name, *(f"{facts[key]:.2f}" for key in ("input", "none", "guided")), gained(facts["A7: guided − none"])]
        for name, facts in content["haze"]["summary"].items()
    ]
    for place in ("indoor", "outdoor"):
        none, guided = (content["papers"][f"SOTS-{place}: {method}"][""] for method in ("GridDehazeNet", "IRHG"))
        body.append([f"the paper, SOTS {place}", "", f"{none:.2f}", f"{guided:.2f}", f"{guided - none:+.2f}"])
    return rows(["PSNR", "input", "without depth", "guided", "A7: gain (95 %)"], body)


def train_steps() -> str:
    """A training step of ours against the plain loop."""
    names = {
        "derain": "`derain`, guided U-Net",
        "paper-a-rain100h": "`paper-a-rain100h`, PReNet",
        "paper-a-deconvolution": "`paper-a-deconvolution`, unfolded network",
        "paper-a-sots-indoor": "`paper-a-sots-indoor`, GridDehazeNet",
    }
    body = [
        [
            names[case],
            ", ".join(facts["changes"]),
            *(f"{facts[f'{way}_seconds']:.2f} s" for way in ("plain", "ours")),
            f"{facts['speedup']:.1f}×",
        ]
        for case, facts in result("train")["steps"].items()
    ]
    return rows(["recipe", "changed", "plain loop", "ours", "ratio"], body)


def hypergradient_unrolled() -> str:
    """Exact unrolled hypergradients over 64 steps: time against TorchOpt, memory."""
    ways = {
        "twofold": "`Unrolled`",
        "twofold, √T states": "`Unrolled`, every 8th state kept",
        "twofold, 4 together": "`Unrolled`, 4 steps together",
        "torchopt": "TorchOpt",
        "higher": "higher",
    }
    found = result("hypergradient")["unrolled"]
    body = []
    for key, name in ways.items():
        line = [name]
        for facts in found.values():
            ratio = facts["seconds"][key] / facts["seconds"]["torchopt"]
            line += [f"{1e3 * facts['seconds'][key]:,.0f} ms ({ratio:.2f}×)", f"{facts['peak_mib'][key]:.3g} MiB"]
        body.append(line)
    return rows(["64 steps", *(f"{name}: {what}" for name in found for what in ("time", "memory"))], body)


def hypergradient_costs() -> str:
    """What the other strategies cost, in gradients of the lower loss."""
    found = result("hypergradient")["costs"]
    names = {
        "lower_gradients_an_implicit_iteration": "an iteration of `Neumann` or `ConjugateGradient`",
        "lower_gradients_of_the_cross_derivative_of_one_step": "the cross derivative of `OneStepUnrolled`",
    }
    body = [
        [f"{name}, `{cross}`", *(f"{facts[f'{key}, {way}']:.2f}" for facts in found.values())]
        for key, name in names.items()
        for way, cross in (("exact", "Exact"), ("differences", "CentralDifference"))
    ]
    return rows(["gradients of the lower loss", *found], body)


def convergence() -> str:
    """Rates and contraction factors, measured and predicted."""
    found = result("convergence")
    body = [
        [
            f"{name}: squared residual against k",
            f"slope {facts['slope']:.2f}, R² {facts['r_squared']:.4f}",
            "slope ≤ −1",
        ]
        for name, facts in found["rates"].items()
    ]
    body += [
        [f"{name}: contraction factor", f"{facts['measured']:.4f}", f"{facts['predicted']:.4f}"]
        for name, facts in found["factors"].items()
    ]
    learned = found["sparse_coding"]["mean_iterations"]
    body += [[f"{name}: iterations to a gap of 1e-6", f"{count:,.0f}", ""] for name, count in learned.items()]
    return rows(["", "measured", "theory"], body)


def gkm() -> str:
    """The recipes of Bilevel Meta Optimization."""
    body = [
        [
            f"`{name}`",
            f"{facts['parameters']:,}",
            f"{facts['turns']} in {facts['cpu_seconds']} s",
            f"{facts['dataset']}, `{facts['protocol']}`",
            f"{facts['input_psnr']:.2f} / {facts['input_ssim']:.3f}",
            f"{facts['psnr']:.2f} / {facts['ssim']:.3f}",
            f"{facts['last_tenth']['contraction']:.3f}",
        ]
        for name, facts in result("gkm").items()
    ]
    head = [
        "recipe",
        "parameters",
        "turns",
        "4 pictures of",
        "untouched (PSNR / SSIM)",
        "restored",
        "factor in training",
    ]
    return rows(head, body)


TASKS = ("lowlight", "underwater", "haze")


def searches() -> str:
    """What the three shipped searches found, and what they took."""
    found = {task: result(f"search-{task}") for task in TASKS}
    judges = [result(f"judge-{task}") for task in TASKS]
    names = list(dict.fromkeys(name for facts in found.values() for name in facts["loss"]))
    stages = [facts["stages"].values() for facts in found.values()]
    seconds = [facts["cpu_seconds"] for facts in found.values()]  # None: one of the stages collapsed
    body = [
        ["judge, right on held-out crops", *(f"{judge['accuracy']:.1%}" for judge in judges)],
        ["judge, counterfeits caught", *(f"{judge['caught']:.1%}" for judge in judges)],
        *([f"λ of `{name}`", *(f"{facts['loss'].get(name, 0.0):.2f}" for facts in found.values())] for name in names),
        [
            "feature layers",
            *(", ".join(map(str, next(iter(facts["layers"].values()), []))) for facts in found.values()),
        ],
        ["places given to SC", *(f"{facts['skip_ratio']:.0%}" for facts in found.values())],
        ["parameters of the network", *(f"{facts['parameters']:,}" for facts in found.values())],
        ["turns", *(" + ".join(str(stage["turns"]) for stage in both) for both in stages)],
        ["CPU seconds of one core", *("" if s is None else f"{s:.0f}" for s in seconds)],
        ["a tenth of the turns on crops of 128×128, CPU seconds", "", f"{result('search-128')['cpu_seconds']:.0f}", ""],
    ]
    return rows(["", *found], body)


def decay() -> str:
    """Stage 1 with the published weight decay of λ, and without."""
    pairs = {task: (result(f"search-{task}")["loss"], result(f"undecayed-{task}")["loss"]) for task in TASKS}
    names = list(dict.fromkeys(name for both in pairs.values() for name in both[0]))
    body = [[f"λ of `{name}`", *(f"{a[name]:.2f} / {b[name]:.2f}" for a, b in pairs.values())] for name in names]
    return rows(["decay 0.0001 / 0", *pairs], body)


def paper_b() -> dict[str, Any]:
    """The summaries of the three tasks, and how many seeds they are of."""
    found = {task: result(f"paper_b-{task}") for task in TASKS}
    return {
        f"{task}, {len(facts['seeds'])} seeds": {**facts["summary"], "untouched": facts["untouched"]}
        for task, facts in found.items()
    }


def paper_b_losses() -> str:
    """Fig. 6: all weights 1 against searched ones, for three networks."""
    body = []
    for task, summary in paper_b().items():
        for name, facts in summary["fig6"].items():
            scores = (
                f"{facts[way]['psnr']['mean']:.2f} / {facts[way]['ssim']['mean']:.3f}" for way in ("ones", "searched")
            )
            perceptual = f"{facts['gain']['perceptual_squeeze']['mean']:+.3f}"
            body.append([task, name, *scores, gained(facts["gain"]["psnr"]), perceptual])
    head = ["task", "network", "all ones (PSNR / SSIM)", "searched", "gain in dB (95 %)", "perceptual-squeeze"]
    return rows(head, body)


def paper_b_networks() -> str:
    """Table 5 at a small scale, and what combines the branches."""
    found = paper_b()
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
    return rows(["network", "parameters (low light)", *found], [["untouched", "", *untouched], *body])


def paper_b_claims() -> str:
    """The claims B1 to B4 as differences in dB."""
    found = paper_b()
    claims = next(iter(found.values()))["claims"]
    body = [[claim, *(gained(summary["claims"][claim]) for summary in found.values())] for claim in claims]
    return rows(["dB, mean (95 %)", *found], body)


def paper_b_stability() -> str:
    """What the seeds of one search agree on."""

    def weighed(facts: dict[str, Any]) -> str:
        return f"{facts['mean']:.2f} ({span(facts['interval'])})"

    found = paper_b()
    weights = next(iter(found.values()))["weights"]
    body = [
        *([f"λ of `{name}`", *(weighed(summary["weights"][name]) for summary in found.values())] for name in weights),
        ["places at which two seeds agree", *(f"{summary['same_choice']:.0%}" for summary in found.values())],
    ]
    return rows(["mean (95 %)", *found], body)


def paper_b_black_box() -> str:
    """The hypergradient against black-box searches of equal CPU time."""
    keys = ("psnr", "ssim", "perceptual_squeeze")
    found = result("paper_b-lowlight")["summary"]
    ways = {"all ones": found["fig6"]["HNU (3-RC)"]["ones"], **found["black_box"]}
    body = [[way, *(f"{facts[key]['mean']:.4g}" for key in keys)] for way, facts in ways.items()]
    return rows(["weights of 3-RC's loss", "PSNR", "SSIM", "perceptual-squeeze"], body)


def controls() -> str:
    """The shipped searched models, and their recipes trained in full with one thing of the search taken back."""
    found = result("controls")
    changes = list(
        dict.fromkeys(change for facts in found.values() for change in facts if change not in ("found", "sha256"))
    )
    body = []
    for name, facts in found.items():
        for part, ours in facts["found"].items():
            cells = [f"{ours['psnr']:.2f} / {ours['ssim']:.3f}"]
            for change in changes:
                if change not in facts:
                    cells += ["", ""]
                    continue
                other = facts[change]["sets"][part]
                lead = f"{other['lead']:+.2f} ({span(other['interval'], sign='+')})"
                cells += [f"{other['psnr']:.2f} / {other['ssim']:.3f}", lead]
            body.append([f"`{name}`, {part}", *cells])
    head = [cell for change in changes for cell in (change, "found leads by (95 %)")]
    return rows(["PSNR / SSIM", "found", *head], body)


def bilevel(problem: str) -> str:
    """Calls to three levels of suboptimality, CPU seconds, and where the budget ended; our methods, then the peers."""
    body = []
    found = result("bilevel")["problems"].get(problem)
    if found is None:
        return rows([problem], [["not measured: run the command above"]])
    for method, facts in found["methods"].items():
        cells = facts["reached"].values()
        line = [f"`{method}`" if method.isidentifier() else method]
        line += ["" if cell is None else f"{cell['calls']:.0f} ({cell['products']:.0f})" for cell in cells]
        one = facts["reached"]["0.01"]
        line.append("" if one is None else f"{one['seconds']:.2f} s")
        low, high = facts["final_quartiles"]
        body.append([*line, f"{facts['final']:.1e} ({low:.0e} … {high:.0e})", f"{facts['upper_step']:g}"])
    targets = [f"calls to {target} (products)" for target in ("10 %", "1 %", "0.1 %")]
    table = rows(["", *targets, "CPU to 1 %", "suboptimality at the end (quartiles)", "upper step"], body)
    return f"{table}\n\n![Suboptimality: {problem}](pictures/bilevel-{problem}.png)"


def bilevel_left_out() -> str:
    found = result("bilevel")
    body = [[problem, "all", reason] for problem, reason in found["skipped"].items()]
    for problem, facts in found["problems"].items():
        body += [[problem, f"`{method}`", reason] for method, reason in facts["skipped"].items()]
    return rows(["problem", "method", "left out because"], body or [["", "", "nothing was"]])


TABLES: dict[str, Callable[[], str]] = {
    "controls": controls,
    "decay": decay,
    "paper_b_black_box": paper_b_black_box,
    "paper_b_stability": paper_b_stability,
    "searches": searches,
    "paper_b_losses": paper_b_losses,
    "paper_b_networks": paper_b_networks,
    "paper_b_claims": paper_b_claims,
    "hypergradient_unrolled": hypergradient_unrolled,
    "hypergradient_costs": hypergradient_costs,
    "convergence": convergence,
    "bilevel_quadratics": lambda: bilevel("quadratics"),
    "bilevel_regularisation": lambda: bilevel("regularisation"),
    "bilevel_cleaning": lambda: bilevel("cleaning"),
    "bilevel_left_out": bilevel_left_out,
    "gkm": gkm,
    "models": models,
    "guidance": guidance,
    "guidance_rivals": guidance_rivals,
    "restore_speed": restore_speed,
    "steering": steering,
    "shipped_deblur": shipped_deblur,
    "shipped_assumed": shipped_assumed,
    "shipped_haze": shipped_haze,
    "large": large,
    "classical_deblur": classical_deblur,
    "classical_blind": classical_blind,
    "classical_haze": classical_haze,
    "paper_a_psnr": paper_a_psnr,
    "paper_a_gains": paper_a_gains,
    "paper_a_assumed": paper_a_assumed,
    "paper_a_uneven": paper_a_uneven,
    "paper_a_maps": paper_a_maps,
    "paper_a_haze": paper_a_haze,
    "train_steps": train_steps,
}


def renewed(text: str) -> str:
    """The text with every table between its marks made anew."""

    def table(found: re.Match[str]) -> str:
        return f"{found[1]}\n{TABLES[found[2]]()}\n{found[3]}"

    return re.sub(r"(<!-- table (\w+) -->)\n.*?(<!-- end -->)", table, text, flags=re.DOTALL)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit code 1 where a page is not up to date"
    )
    check = parser.parse_args().check
    stale = []
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = path.read_text()
        new = renewed(text)
        if new != text:
            stale.append(path.relative_to(ROOT))
            if not check:
                path.write_text(new)
    for path in stale:
        print(f"{path}: {'not what its files say; run make docs' if check else 'written'}")
    return 1 if stale and check else 0


if __name__ == "__main__":
    sys.exit(main())
