"""The checkable claims of `paper_c.py` and what the seeds say of each: Student's 95 % interval against a bound.

A number holds where the interval over seeds lies on the right side of its bound, fails where it lies on the wrong
side, and is undecided where the interval contains the bound; a claim about several applications asks it of each.
"""

from __future__ import annotations

from typing import Any

from harness import half_interval
from paper_c_training import mean_and_half, of_seeds

APPLICATIONS = ("deconvolution", "rain", "rain_shallow")
RATE = -0.5
"""‖u − T(u)‖ = O(1/√k) for an averaged T, and min ‖∇φ‖ = O(1/√t) for gradient descent at a constant rate."""
LEFT = 10**RATE
"""What that rate leaves after ten times as many steps."""


def judge(values: list[float], bound: float, *, below: bool = True) -> str:
    """
    >>> judge([0.1, 0.12, 0.11], 0.3), judge([0.1, 0.12, 0.11], 0.3, below=False), judge([0.1, 0.5, 0.3], 0.3)
    ('holds', 'does not hold', 'undecided')
    """
    mean = sum(values) / len(values)
    half = half_interval(values) if len(values) > 1 else float("inf")
    low, high = mean - half, mean + half
    right, wrong = (high < bound, low > bound) if below else (low > bound, high < bound)
    return "holds" if right else "does not hold" if wrong else "undecided"


def all_of(said: dict[str, str]) -> str:
    """One verdict of several, with the names of those that do not hold.

    >>> all_of({"a": "holds", "b": "undecided", "c": "undecided"})
    'holds for 1 of 3; undecided for 2 (b; c)'
    """
    parts = []
    for verdict, shown in (("holds", "holds"), ("does not hold", "**does not hold**"), ("undecided", "undecided")):
        names = [name for name, found in said.items() if found == verdict]
        if names:
            listed = "" if verdict == "holds" else f" ({'; '.join(names)})"
            parts.append(f"{shown} for {len(names)}{' of ' + str(len(said)) if not parts else ''}{listed}")
    return "; ".join(parts)


def numbers(found: dict[str, list[float]], form: str) -> str:
    return "; ".join(f"{name} {mean_and_half(values, form)}" for name, values in found.items())


def judged_claims(facts: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Number, claim, verdict, numbers: means ± half of the interval over seeds."""
    done = facts["seeds"]["0"]
    applications = [name for name in APPLICATIONS if name in done]
    ours = {
        **{name: (name, "BMO") for name in applications},
        "ADMM ∘ denoiser": ("deconvolution", "ADMM ∘ certified denoiser, BMO"),
    }

    def of(key: str) -> dict[str, list[float]]:
        return {name: of_seeds(facts, part, "ways", way, key) for name, (part, way) in ours.items()}

    slopes, left, factors = of("change_slope"), of("residual_left"), of("contraction_factor")
    slopes["sparse coding"] = of_seeds(facts, "joint", "sparse coding", "residual_slope")
    left["sparse coding"] = of_seeds(facts, "joint", "sparse coding", "residual_left")
    training = {name: of_seeds(facts, part, "training", way) for name, (part, way) in ours.items()}
    joint = facts["seeds"]["0"]["joint"]
    settled = {
        f"{name} {what}": of_seeds(facts, "joint", name, key)
        for name in joint
        if name != "cpu_seconds"
        for what, key in (("‖∇φ‖", "gradient_slope"), ("‖Δw‖", "change_slope"))
    }
    lower = {name: of_seeds(facts, "joint", name, "residual_left") for name in joint if name != "cpu_seconds"}
    loose = [(part, way) for part in applications for way in facts["seeds"]["0"][part]["ways"] if "plain" in way]
    leads = {name: of_seeds(facts, name, "bmo_leads", "unrolled, certified denoiser") for name in applications}
    random = {way: of_seeds(facts, "counter", "256", f"random_upper_loss_{way}") for way in ("unrolled", "BMO")}
    ratio = [b / a for a, b in zip(random["unrolled"], random["BMO"], strict=True)]
    bda = facts["seeds"]["0"]["counter"]["256"]
    lines = [
        (
            "1",
            "‖u_{k+1} − u_k‖ / ‖u_k‖ → 0",
            all_of({name: judge(values, RATE) for name, values in slopes.items()}),
            f"slope of its logarithm over log k, from the trained depth to ten times it (theory: at most {RATE}): "
            + numbers(slopes, ".2f")
            + ". Largest share of the residual that any training step left: "
            + numbers(training, ".2f"),
        ),
        (
            "2",
            "the residual falls with K",
            all_of({name: judge(values, LEFT) for name, values in left.items()}),
            f"share left after ten times the trained depth (O(1/√k): {LEFT:.2f}): " + numbers(left, ".1e"),
        ),
        (
            "3",
            "both levels settle together: ‖∇φ_K‖ and ‖w_{t+1} − w_t‖ → 0 at a constant rate",
            all_of(
                {name: judge(values, RATE) for name, values in settled.items()}
                | {name: judge(values, LEFT) for name, values in lower.items()}
            ),
            f"slope over log t of the running minimum, last half of the rounds (theory: at most {RATE}): "
            + numbers(settled, ".2f")
            + f". Residual left by ten times as many steps of T at the end (at most {LEFT:.2f}): "
            + numbers(lower, ".1e"),
        ),
        (
            "4a",
            "a non-expansive net keeps converging beyond the trained depth",
            all_of(
                {name: all_or_worst(judge(values, 1.0), judge(left[name], LEFT)) for name, values in factors.items()}
            ),
            "factor at rest (below 1): " + numbers(factors, ".3f"),
        ),
    ]
    for part, way in loose:
        factor = of_seeds(facts, part, "ways", way, "contraction_factor")
        share = of_seeds(facts, part, "ways", way, "residual_left")
        failed = sum(s > LEFT or f >= 1 for s, f in zip(share, factor, strict=True))
        lines.append(
            (
                "4b",
                f"an unconstrained net does not: {part}, {way}",
                f"does not converge for {failed} of {len(share)} seeds",
                f"share of the residual left {', '.join(f'{v:.1e}' for v in share)}; factor at rest "
                + ", ".join(f"{v:.3f}" for v in factor),
            )
        )
    lines += [
        (
            "5",
            "where fixed points are many, mu > 0 reaches a lower upper loss than mu = 0",
            judge(ratio, 0.1),
            f"random problems, K = 256: upper loss of BMO as a share of unrolling's {mean_and_half(ratio, '.1e')} "
            f"(asked: below 0.1); BDA's example: x = {bda['BMO']} against {bda['unrolled']} (truth 1)",
        ),
        (
            "6",
            "joint training is better than separate training at depths beyond the trained one",
            all_of({name: judge(values, 0.0, below=False) for name, values in leads.items()}),
            "BMO less unrolled, same net, dB: " + numbers(leads, "+.2f"),
        ),
    ]
    return lines


def all_or_worst(*verdicts: str) -> str:
    return "does not hold" if "does not hold" in verdicts else "undecided" if "undecided" in verdicts else "holds"
