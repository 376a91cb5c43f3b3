"""What guidance is worth: one small network learns to remove rain in six ways, at equal budget, over several seeds.

Equal budget: every way takes the same number of ω-updates from the same start on the same crops in the same order. The
θ-updates differ, and are listed. Pairs of Rain100, light and heavy; every fifth scene is kept for validation.

    python benchmarks/guidance.py --data DATA --json benchmarks/results/guidance.json

A file that is there already is gone on with, if its settings are the same. Takes half an hour on one core.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness import binned, interval_of, parser, read, span, table, write
from twofold import images
from twofold.contracts import Sample
from twofold.data.pairs import Pair
from twofold.degrade.additive import rain_region
from twofold.metrics import PROTOCOLS
from twofold.restorers.guided import Guided
from twofold.train import data as material
from twofold.train import reading
from twofold.train import recipe as recipes
from twofold.train.learner import Learner, Machine, machine_of
from twofold.train.run import build_scheme
from twofold.train.schemes import Draw, Loss

WAYS = {
    "none": "the map is zero everywhere: the network without guidance",
    "latent": "the guide is trained by the restoration loss alone and never sees a true map",
    "naive": "f + g, one step for all parameters",
    "guided": "Algorithm 1: θ on g, then ω on f with the map detached",
    "frozen": "θ on g first, then ω on f with θ frozen",
    "oracle": "the true map is given, in training and at test: an upper bound",
}


@dataclass
class Given:
    """ω alone, steered by a map that is a rule of the sample."""

    restorer: Guided
    loss: Loss
    learner: Learner
    machine: Machine
    rule: Callable[[Sample], Tensor]

    def step(self, *draws: Draw) -> dict[str, float]:
        (sample,) = draws[0]
        with self.machine.autocast():
            restored = self.restorer(sample.observed, guidance=self.rule(sample)).image
        loss = self.loss(restored.float(), sample.clean)
        self.learner.descend(loss)
        return {"restoration": loss.item()}


def zero(sample: Sample) -> Tensor:
    return torch.zeros_like(sample.observed[:, :1])


def truth(sample: Sample) -> Tensor:
    return rain_region(sample.observed, sample.clean)


START = "He et al. 2015"
"""How the guides' weights are drawn; runs of a file with another start are not gone on with."""
RULES = {"none": zero, "oracle": truth}


def recipe_of(way: str, seed: int, steps: int) -> recipes.Recipe:
    scheme: dict[str, Any] = {"kind": way if way in ("naive", "guided") else "supervised"}
    if way == "frozen":
        scheme, steps = {"kind": "frozen", "pretraining": 0.5}, 2 * steps
    pairs = [{"root": "rain/Rain100", "observed": rain, "clean": "clean", "every": 5} for rain in ("light", "heavy")]
    return reading.parse(
        {
            "name": way,
            "task": "rain",
            "seed": seed,
            "model": {
                "kind": "guided",
                "guidance": "rain_region",
                "guide": {"width": 32},
                "net": {"kind": "unet", "widths": [16, 32], "blocks": [1, 1]},
            },
            "scheme": scheme,
            "loss": {"l1": 1.0, "negative_ssim": 0.2},
            "data": {
                "crop": 64,
                "batch": 8,
                "train": [{"kind": "pairs", "guidance": "rain_region", "pairs": pairs}],
                "validation": {pair["observed"]: {**pair, "keep": "picked"} for pair in pairs},
            },
            "optimizer": {"learning_rate": 0.001, "clip": 0.5},
            "guide_optimizer": {"learning_rate": 0.001},
            "schedule": {"kind": "cosine", "warmup": 50},
            "steps": steps,
            "average": 0.0,
            "protocol": "y-matlab",
        }
    )


def trained(way: str, seed: int, steps: int, root: Path) -> dict[str, Any]:
    """One run: its scores on both sets, the guide's error, what it cost."""
    recipe = recipe_of(way, seed, steps)
    machine = machine_of(recipe.precision, "cpu")
    torch.manual_seed(seed)
    restorer = recipe.model.build().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    draws = material.batches(recipe, root, machine)
    if way in RULES:
        learner = Learner(
            restorer.net.parameters(),
            lambda parameters: torch.optim.Adam(parameters, recipe.optimizer.learning_rate),
            schedule=recipe.schedule.build(steps),
            clip=recipe.optimizer.clip,
            machine=machine,
        )
        scheme: Any = Given(restorer, recipe.loss.build(root / "features"), learner, machine, RULES[way])
    else:
        scheme = build_scheme(recipe, restorer, machine)
    began = time.process_time()
    losses: dict[str, list[float]] = {}
    for n in range(recipe.steps):
        for name, loss in scheme.step(*draws(n)).items():
            losses.setdefault(name, []).append(loss)
    seconds = time.process_time() - began
    own_guide = way not in RULES
    return {
        "way": way,
        "seed": seed,
        "omega_updates": steps,
        "theta_updates": steps if own_guide else 0,
        "cpu_seconds": round(seconds, 1),
        "theta_sha256": fingerprint(restorer.guide) if own_guide else None,
        "curves": {name: binned(values) for name, values in losses.items()},
        "sets": {name: scores(restorer, pairs, way) for name, pairs in material.validation(recipe, root).items()},
    }


def fingerprint(module: nn.Module) -> str:
    return hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in module.state_dict().values())).hexdigest()


@torch.no_grad()
def scores(restorer: nn.Module, pairs: list[Pair], way: str) -> dict[str, float]:
    """Means over the pictures; g, and g of the best constant map, which is the variance of the true one."""
    rows = []
    for pair in pairs:
        sample = Sample(images.read(pair.clean).pixels, images.read(pair.observed).pixels)
        given = RULES[way](sample) if way in RULES else None
        restored = restorer(sample.observed, guidance=given)
        after = PROTOCOLS["y-matlab"].score(restored.image, sample.clean)
        before = PROTOCOLS["y-matlab"].score(sample.observed, sample.clean)
        region = truth(sample)
        rows.append(
            {
                "psnr": after.psnr.item(),
                "ssim": after.ssim.item(),
                "input_psnr": before.psnr.item(),
                "region": region.mean().item(),
            }
        )
        if given is None:
            rows[-1]["g"] = (restored.guidance - region).square().mean().item()
    found = {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}
    found["g_constant"] = found["region"] * (1 - found["region"])
    return found


def summary(runs: list[dict[str, Any]], seeds: int) -> dict[str, Any]:
    """Per way and set: mean and 95 % interval over seeds of PSNR, and of the difference to `none` and to `guided`."""
    table: dict[str, Any] = {}
    for way in WAYS:
        mine = sorted((run for run in runs if run["way"] == way), key=lambda run: run["seed"])
        if len(mine) < seeds:
            continue
        row: dict[str, Any] = {fact: mine[0][fact] for fact in ("omega_updates", "theta_updates")}
        row["cpu_seconds"] = round(sum(run["cpu_seconds"] for run in mine) / seeds, 1)
        for name in mine[0]["sets"]:
            sets = [run["sets"][name] for run in mine]
            facts: dict[str, Any] = {key: round(sum(s[key] for s in sets) / seeds, 4) for key in sets[0]}
            facts["psnr_interval"] = interval_of([s["psnr"] for s in sets], 4)
            for other in ("none", "guided"):
                rivals = {run["seed"]: run["sets"][name]["psnr"] for run in runs if run["way"] == other}
                if way != other and len(rivals) == seeds:
                    gains = [run["sets"][name]["psnr"] - rivals[run["seed"]] for run in mine]
                    facts[f"over_{other}"] = round(sum(gains) / seeds, 4)
                    facts[f"over_{other}_interval"] = interval_of(gains, 4)
            row[name] = facts
        table[way] = row
    prints = {way: [run["theta_sha256"] for run in runs if run["way"] == way] for way in WAYS}
    same = bool(prints["guided"]) and prints["guided"] == prints["frozen"]
    return {"theta_guided_equals_theta_frozen_bit_for_bit": same, "ways": table}


def guidance_table(result: dict[str, Any]) -> str:
    """Ways of training with and without guidance: PSNR with its interval over seeds, the gain, the guide's error."""
    ways = result["summary"]["ways"]
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
    return table(head, body)


def guidance_rivals_table(result: dict[str, Any]) -> str:
    """Every way against the guided scheme, paired by seed."""
    body = []
    for way, facts in result["summary"]["ways"].items():
        gains = [facts[rain] for rain in ("light", "heavy") if "over_guided" in facts[rain]]
        if gains:
            shown = [f"{g['over_guided']:+.2f} ({span(g['over_guided_interval'], sign='+')})" for g in gains]
            body.append([f"`{way}` − `guided`", *shown])
    return table(["PSNR, paired by seed (95 %)", "light", "heavy"], body)


def tables(result: dict[str, Any]) -> dict[str, str]:
    return {
        "guidance": guidance_table(result),
        "guidance_rivals": guidance_rivals_table(result),
    }


def main() -> None:
    options = parser(__doc__, data="rain/Rain100")
    options.add_argument("--steps", type=int, default=1200, help="ω-updates of each run")
    options.add_argument("--seeds", type=int, default=3)
    asked = options.parse_args()
    torch.set_num_threads(1)
    recipe = recipe_of("guided", 0, asked.steps).model_dump(exclude={"name", "about", "terms", "seed", "scheme"})
    kept = read(asked.json)
    runs = kept["runs"] if kept.get("recipe") == recipe and kept.get("guides_start") == START else []
    done = {(run["way"], run["seed"]) for run in runs}
    for seed in range(asked.seeds):
        for way in WAYS:
            if (way, seed) in done:
                continue
            runs.append(trained(way, seed, asked.steps, asked.data))
            found = {name: round(facts["psnr"], 3) for name, facts in runs[-1]["sets"].items()}
            print(f"seed {seed}  {way:13s}{found}  {runs[-1]['cpu_seconds']} s", flush=True)
            result = {
                "summary": summary(runs, asked.seeds),
                "ways": WAYS,
                "recipe": recipe,
                "guides_start": START,
                "runs": runs,
            }
            write(asked.json, result)


if __name__ == "__main__":
    main()
