"""Paper B's experiments at a small scale: does a searched loss, a searched network, a division help? (Zhu et al. 2022)

    python benchmarks/paper_b.py --data DATA --task lowlight --json benchmarks/results/paper_b-lowlight.json
    python benchmarks/paper_b.py --data DATA --task lowlight --json paper_b-lowlight-gpu.json --steps 20000 \\
      --search-steps 4000 --width 32 --units 7 --ops 4 --pictures 0 --crop 128 --batch 8 --mbllen --device cuda

The second one, for a GPU, has the published size: seven units of two branches with four operations each, width 32, on
all pictures, and MBLLEN itself.

Trained on the pictures that the shipped search of the task takes, measured on the middle of those that its final recipe
holds out (LOL, EUVP, HazeRD), by the protocol `rgb`. Everything that is compared sees the same batches, from the same
seed, for equally many steps. The file is written after every seed.

fig6: three networks, all weights 1 against weights searched for that network. table5: the searched loss for all; the
supernet itself, uniform operations, both searches, and 3x3 networks with as many parameters as those that were found.
combine: division, subtraction and neither, at equal parameters. black_box: Optuna over the same weights for as many CPU
seconds as the search took, its objective the judge's loss on the validation half after a short training.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import paper_b_claims
from harness import parser, rounded, write
from paper_b_claims import summary
from paper_b_networks import MBLLEN, EnhancementNet
from twofold import images
from twofold.contracts import Sample
from twofold.data.batches import SECOND_STREAM, Batches
from twofold.data.sources import Source
from twofold.losses import Loss, LossSpec
from twofold.metrics import PROTOCOLS
from twofold.nets.hadamard import COMBINATIONS, HadamardNet
from twofold.nets.perceptual import DirectionDistance, perceptual_squeeze
from twofold.nets.unet import UNet
from twofold.search import judge as judges
from twofold.search.halves import split_source
from twofold.search.judge import judged
from twofold.search.recipe import HierarchicalSpec, JudgeRecipe, SearchRecipe, Stage, SupernetSpec
from twofold.search.scheme import Found, Search
from twofold.settings import checked
from twofold.space.genotype import Genotype, derive, entropy, uniform_genotype
from twofold.train import reading
from twofold.train.learner import Learner, Machine, Optimizer, Schedule

tables, RESULTS = paper_b_claims.tables, paper_b_claims.RESULTS

HELD_OUT = {"lowlight": "lol", "underwater": "euvp", "haze": "hazerd"}  # task → validation group of its final recipe


@dataclass(frozen=True)
class Bench:
    """Everything that all experiments of a seed share."""

    asked: argparse.Namespace
    recipe: SearchRecipe
    root: Path
    whole: Source
    seen: Source
    held: Source
    test: Sequence[Sample]
    judge: nn.Module
    distance: DirectionDistance

    @property
    def device(self) -> torch.device:
        return torch.device(self.asked.device)

    def pairs(self, seed: int) -> Callable[[int], tuple[list[Sample], list[Sample]]]:
        """Batches of both halves."""
        streams = [
            Batches(half, self.recipe.data.batch, seed=seed + shift, device=self.device, ahead=False)
            for half, shift in ((self.seen, 0), (self.held, SECOND_STREAM))
        ]
        return lambda n: ([streams[0](n)], [streams[1](n)])

    def hadamard(self, genotype: Genotype, combine: str = "divide", width: int = 0) -> HadamardNet:
        return genotype.network(width=width or self.asked.width, combine=COMBINATIONS[combine])

    def uniform(self, op: str, *, branches: int = 2, ops: int = 0) -> Genotype:
        """The paper's controls: residual operations in the units, plain ones elsewhere."""
        return uniform_genotype(
            op,
            op.replace("RC", "C"),
            units=self.asked.units,
            ops_per_branch=ops or self.asked.ops,
            branches=branches,
        )

    def search(self, stage: Stage, net: nn.Module, given: LossSpec | None, seed: int) -> tuple[LossSpec, float]:
        """Runs one stage on `net`, in place; the loss at its end, and the CPU seconds it took."""
        began = time.process_time()
        recipe = self.recipe.model_copy(update={"seed": seed})
        space = recipe.loss.build(self.root, self.device, seed=seed, given=given)
        scheme = Search.with_optimizers(recipe, stage.what, net, space, judged(self.judge), Machine())
        batches = self.pairs(seed)
        for n in range(stage.steps):
            scheme.step(*batches(n))
        return space.derive(), time.process_time() - began

    def supernet(self, seed: int) -> HadamardNet:
        net = self.recipe.model_copy(update={"seed": seed}).build_net()
        assert isinstance(net, HadamardNet)
        return net.to(self.device, memory_format=torch.channels_last)

    def trained(
        self, make: Callable[[], nn.Module], loss: Loss, seed: int, *, steps: int = 0, source: Source | None = None
    ) -> nn.Module:
        """A network trained from the seed; of a supernet, logits and all."""
        steps = steps or self.asked.steps
        torch.manual_seed(seed)
        net = make().to(self.device, memory_format=torch.channels_last)
        optimizer = Optimizer(learning_rate=1e-3)
        schedule = Schedule(warmup=10).build(steps)
        learner = Learner(net.parameters(), optimizer.build, schedule=schedule, clip=5.0)
        batches = Batches(source or self.whole, self.recipe.data.batch, seed=seed + 7, device=self.device, ahead=False)
        for n in range(steps):
            sample = batches(n)
            learner.descend(loss(net(sample.observed), sample.clean))
        return net.eval()

    def alternation(self, rounds: int, seed: int) -> tuple[Found, float]:
        """Eq. (4): loss and architecture in turn, in all as many steps as one round; CPU seconds."""
        began = time.process_time()
        steps = max(self.asked.search_steps // rounds, 1)
        recipe = self.recipe.model_copy(update={"seed": seed, "warmup": steps // 3})
        batches, found = self.pairs(seed), Found()
        for stage in HierarchicalSpec(loss=steps, architecture=steps, rounds=rounds).stages():
            scheme = Search.of_stage(
                recipe, stage, self.root, found=found, upper=judged(self.judge), device=self.device
            )
            for n in range(steps):
                scheme.step(*batches(n))
            found = scheme.found(found)
        return found, time.process_time() - began

    def loss(self, file: LossSpec) -> Loss:
        return file.build(self.root / "features")

    @torch.no_grad()
    def score(self, net: nn.Module) -> dict[str, float]:
        rows = []
        for sample in self.test:
            restored = net(sample.observed.to(self.device)).cpu().clamp(0, 1)
            found = PROTOCOLS["rgb"].score(restored, sample.clean)
            apart = self.distance.cpu()(restored, sample.clean)
            rows.append({"psnr": found.psnr.item(), "ssim": found.ssim.item(), "perceptual_squeeze": apart.item()})
        facts = {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}
        return {**facts, "parameters": sum(p.numel() for p in net.parameters())}


def ones(found: LossSpec) -> LossSpec:
    """The same losses with every weight 1."""
    return LossSpec(dict.fromkeys(found.weights, 1.0), found.layers)


def one_seed(bench: Bench, seed: int) -> dict[str, Any]:
    asked = bench.asked
    short = Stage("loss", "loss", asked.search_steps)
    channels = asked.width
    makers: dict[str, Callable[[], nn.Module]] = {
        **({"MBLLEN": MBLLEN} if asked.mbllen else {"MBLLEN-like": lambda: EnhancementNet(width=16)}),
        "U-Net": lambda: UNet(channels=3, guidance=0, widths=[16, 32, 32], blocks=[1, 1, 1]),
        "HNU (3-RC)": lambda: bench.hadamard(bench.uniform("3-RC")),
    }
    fig6: dict[str, Any] = {}
    black: dict[str, Any] = {}
    for name, make in makers.items():
        torch.manual_seed(seed)
        net = make().to(bench.device, memory_format=torch.channels_last)
        found, seconds = bench.search(short, net, None, seed)
        fig6[name] = {
            "weights": dict(found.weights),
            "search_seconds": seconds,
            "ones": bench.score(bench.trained(make, bench.loss(ones(found)), seed)),
            "searched": bench.score(bench.trained(make, bench.loss(found), seed)),
        }
        say(seed, name, fig6[name]["ones"], fig6[name]["searched"])
        if asked.optuna and name == "HNU (3-RC)":
            black = {"hypergradient": fig6[name]["searched"], **black_box(bench, make, found, seconds, seed)}

    found, seconds = bench.search(short, bench.supernet(seed), None, seed)
    loss = bench.loss(found)
    hierarchical = bench.supernet(seed)
    more = bench.search(Stage("architecture", "architecture", asked.search_steps), hierarchical, found, seed)[1]
    synchronous = bench.supernet(seed)
    together, both = bench.search(Stage("synchronous", "both", 2 * asked.search_steps), synchronous, None, seed)
    genotype, other = derive(hierarchical), derive(synchronous)
    twice, alternating = bench.alternation(2, seed)
    assert twice.genotype is not None
    assert twice.loss is not None
    both_rounds = twice.genotype
    matched = matched_width(bench, sum(p.numel() for p in bench.hadamard(genotype).parameters()))
    nets: dict[str, tuple[Callable[[], nn.Module], LossSpec]] = {
        "supernet": (lambda: bench.supernet(seed), found),
        **{op: ((lambda op=op: bench.hadamard(bench.uniform(op))), found) for op in ("1-C", "3-C", "1-RC", "3-RC")},
        "3-C, as many parameters": (lambda: bench.hadamard(bench.uniform("3-C"), width=matched), found),
        "synchronous": (lambda: bench.hadamard(other), together),
        "hierarchical": (lambda: bench.hadamard(genotype), found),
        "hierarchical, two rounds": (lambda: bench.hadamard(both_rounds), twice.loss),
        "hierarchical, all ones": (lambda: bench.hadamard(genotype), ones(found)),
    }
    table5: dict[str, Any] = {}
    for name, (make, file) in nets.items():
        table5[name] = bench.score(bench.trained(make, bench.loss(file), seed))
        say(seed, name, table5[name])
    table5["hierarchical, two rounds"] |= {
        "skip_ratio": both_rounds.skip_ratio,
        "search_seconds": alternating,
    }
    table5["synchronous"] |= {"skip_ratio": other.skip_ratio, "entropy": entropy(synchronous), "search_seconds": both}
    table5["hierarchical"] |= {
        "skip_ratio": genotype.skip_ratio,
        "entropy": entropy(hierarchical),
        "search_seconds": seconds + more,
    }
    doubled = bench.uniform("3-RC", branches=1, ops=2 * asked.ops)
    combine = {
        "divide": table5["3-RC"],
        "subtract": bench.score(bench.trained(lambda: bench.hadamard(bench.uniform("3-RC"), "subtract"), loss, seed)),
        "none": bench.score(bench.trained(lambda: bench.hadamard(doubled, "none"), loss, seed)),
    }
    say(seed, "combine", *combine.values())
    result = {
        "fig6": fig6,
        "table5": table5,
        "combine": combine,
        "loss": {"hierarchical": dict(found.weights), "synchronous": dict(together.weights)},
        "genotype": {name: list(row) for name, row in genotype.groups.items()},
        "width": channels,
    }
    return {**result, "black_box": black} if black else result


def black_box(bench: Bench, make: Callable[[], nn.Module], found: LossSpec, budget: float, seed: int) -> dict[str, Any]:
    """TPE and random search over the weights for `budget` CPU seconds each; the network trained with the best."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    pairs = bench.pairs(seed)
    samples = [sample for n in range(16) for sample in pairs(n)[1]]

    def objective(trial: Any) -> float:
        weights = {name: trial.suggest_float(name, 0.0, 3.0) for name in found.weights}
        file = LossSpec(weights, found.layers)
        net = bench.trained(make, bench.loss(file), seed, steps=max(bench.asked.steps // 4, 1), source=bench.seen)
        upper = judged(bench.judge)
        with torch.no_grad():
            return sum(upper(net(s.observed), s.clean).item() for s in samples) / len(samples)

    results: dict[str, Any] = {}
    samplers = {
        "TPE": optuna.samplers.TPESampler(n_startup_trials=4, seed=seed),  # a third of what the budget allows
        "random": optuna.samplers.RandomSampler(seed=seed + 1000),
    }
    for name, sampler in samplers.items():
        study = optuna.create_study(sampler=sampler)
        began = time.process_time()
        while time.process_time() - began < budget or not study.trials:
            study.optimize(objective, n_trials=1)
        best = LossSpec(dict(study.best_params), found.layers)
        score = bench.score(bench.trained(make, bench.loss(best), seed))
        results[name] = {**score, "trials": len(study.trials), "weights": dict(best.weights)}
        say(seed, name, results[name])
    return results


def matched_width(bench: Bench, parameters: int) -> int:
    """The even width at which a 3-C network has nearest to so many parameters."""
    sizes = {
        width: sum(p.numel() for p in bench.hadamard(bench.uniform("3-C"), width=width).parameters())
        for width in range(4, 2 * bench.asked.width + 1, 2)
    }
    return min(sizes, key=lambda width: abs(sizes[width] - parameters))


def say(seed: int, name: str, *scores: dict[str, Any]) -> None:
    print(f"seed {seed}  {name}: " + "  ".join(f"{s['psnr']:.2f} dB" for s in scores), flush=True)


def middle(picture: Tensor, side: int) -> Tensor:
    top, left = ((length - side) // 2 for length in picture.shape[-2:])
    return picture[..., max(top, 0) : max(top, 0) + side, max(left, 0) : max(left, 0) + side]


def held_out(recipe: SearchRecipe, root: Path, side: int) -> list[Sample]:
    """The middles, `side` pixels wide, of the pictures that the task's final recipe holds out."""
    group = reading.read_recipe(recipe.final).data.validation[HELD_OUT[recipe.task]]
    test = []
    for pair in group.pairs(root):
        observed, clean = (middle(images.read(path).pixels, side) for path in (pair.observed, pair.clean))
        test.append(Sample(clean, observed))
    return test


def prepared(asked: argparse.Namespace, folder: Path) -> Bench:
    tree = reading.tree_of(f"search-{asked.task}")
    tree["net"] = {"kind": "supernet", "width": asked.width, "units": asked.units, "ops_per_branch": asked.ops}
    tree["data"] |= {"crop": asked.crop, "batch": asked.batch, "pictures": asked.pictures}
    tree["warmup"] = asked.search_steps // 3
    tree["loss_optimizer"]["learning_rate"] = tree["architecture_optimizer"]["learning_rate"] = asked.rate
    recipe = checked(SearchRecipe, tree)
    assert isinstance(recipe.net, SupernetSpec)
    path = asked.judge
    if path is None:
        judges.train_judge(checked(JudgeRecipe, reading.tree_of(recipe.judge)), asked.data, folder, device=asked.device)
        path = folder / "judge.safetensors"
    judge, _ = judges.competent(path, task=recipe.task, train=recipe.data.train)
    whole = recipe.data.source(asked.data)
    seen, held = split_source(whole, pictures=recipe.data.pictures)
    test = held_out(recipe, asked.data, asked.test_side)
    device = torch.device(asked.device)
    distance = perceptual_squeeze(asked.data / "features")
    return Bench(asked, recipe, asked.data, whole, seen, held, test, judge.to(device), distance)


def main() -> None:
    options = parser(__doc__, data="what the recipe search-TASK names")
    options.add_argument("--task", choices=HELD_OUT, default="lowlight")
    options.add_argument("--judge", type=Path, help="a judge of the task; without it one is trained beside --json")
    options.add_argument("--seeds", type=int, default=5)
    options.add_argument("--steps", type=int, default=240, help="of every training that is scored")
    options.add_argument("--search-steps", type=int, default=120, help="of each stage; a third of them warms up")
    options.add_argument("--rate", type=float, default=0.02, help="of what is searched")
    options.add_argument("--width", type=int, default=16)
    options.add_argument("--units", type=int, default=3)
    options.add_argument("--ops", type=int, default=2, help="operations in a branch of a unit")
    options.add_argument("--crop", type=int, default=48)
    options.add_argument("--batch", type=int, default=1)
    options.add_argument("--pictures", type=int, default=64)
    options.add_argument("--test-side", type=int, default=192)
    options.add_argument(
        "--mbllen", action="store_true", help="Fig. 6 with MBLLEN itself, not a small network of its kind"
    )
    options.add_argument("--device", default="cpu")
    options.add_argument("--no-optuna", dest="optuna", action="store_false")
    asked = options.parse_args()
    bench = prepared(asked, (asked.json or Path("paper_b.json")).parent / f"judge-{asked.task}")
    settings = {name: value for name, value in vars(asked).items() if not isinstance(value, Path)}
    untouched = bench.score(nn.Identity())
    began, seeds = time.process_time(), []
    for seed in range(asked.seeds):
        seeds.append(one_seed(bench, seed))
        result = {
            "summary": summary(seeds, asked.ops),
            "untouched": untouched,
            "pictures": len(bench.test),
            "settings": settings,
            "cpu_seconds": round(time.process_time() - began, 1),
            "seeds": seeds,
        }
        write(asked.json, rounded(result))
    print(json.dumps(rounded(result["summary"]["claims"]), indent=1))


if __name__ == "__main__":
    main()
