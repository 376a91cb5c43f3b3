"""Training the judge of a loss search, and refusing one that is not accurate enough.

A judge classifies crops as clear or degraded. It is trained on the training half of the images; its accuracy is
measured on the validation half and stored in the header of its file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from twofold.contracts import ConfigError, Sample, WeightsError
from twofold.data.batches import Batches
from twofold.data.specs import SourceSpec
from twofold.files import replacing, write_text
from twofold.losses import Loss
from twofold.nets.judge import clear_loss, verdict_loss
from twofold.nets.perceptual import read_tensors
from twofold.search.recipe import JudgeRecipe, JudgeSpec, SearchRecipe
from twofold.settings import Settings
from twofold.train.learner import Learner, Machine, learner_of, machine_of
from twofold.train.loop import JsonLines, Run, fit
from twofold.train.run import keep_recipe
from twofold.train.schemes import Draw, Report

MIN_ACCURACY = 0.9  # on held-out crops
MIN_NEGATIVE_ACCURACY = 0.5  # required share of counterfeits classified as degraded, if trained with any


class JudgeFacts(Settings):
    """What is known of a judge. accuracy: on `held_out` pictures, half of them clean, none of a training picture.

    caught: share of counterfeits that it classifies as degraded; None where its training had none. train: what it was
    trained on, which decides the halves of the pictures.
    """

    judge: JudgeSpec
    task: str
    recipe: str
    seed: int
    accuracy: float
    caught: float | None
    held_out: int
    crop: int
    train: list[SourceSpec]
    terms: str


@dataclass
class JudgeTraining:
    """Cross entropy on the clean and the degraded crop of every sample, and on counterfeits if they have a weight.

    Clear pictures count as much as all others together.
    """

    restorer: nn.Module  # the judge, under the attribute name that `fit` expects
    learner: Learner
    counterfeits: float = 0.0
    seed: int = 0
    machine: Machine = field(default_factory=Machine)

    def step(self, *draws: Draw) -> dict[str, float]:
        ((sample,),) = draws
        verdict, clear = verdicts(self.restorer, sample)
        says_clear, says_degraded = (
            verdict_loss(part, label) for part, label in zip(verdict.chunk(2), clear.chunk(2), strict=True)
        )
        if self.counterfeits:
            generator = torch.Generator().manual_seed(self.seed + self.learner.schedule.last_epoch)
            false = self.restorer(counterfeit(sample, generator))
            more = verdict_loss(false, torch.zeros_like(false))
            says_degraded = (says_degraded + self.counterfeits * more) / (1 + self.counterfeits)
        loss = (says_clear + says_degraded) / 2
        self.learner.descend(loss)
        return {"verdict": loss.item(), "accuracy": _right(verdict, clear)}


def counterfeit(sample: Sample, generator: torch.Generator) -> Tensor:
    """Pictures `(B, 3, H, W)` with artefacts of networks: noisy, blurred, blocky, or partly restored.

    A judge trained on clear and degraded pictures alone classifies noise and the output of an untrained network as
    clear; a search would then find the loss that produces them.
    """
    degraded = []
    for clean, observed in zip(sample.clean[:, None], sample.observed[:, None], strict=True):
        kind, amount = torch.rand(2, generator=generator).tolist()
        if kind < 0.25:
            noise = torch.randn(clean.shape, generator=generator).to(clean)
            degraded.append(clean + (0.03 + 0.3 * amount) * noise)
        elif kind < 0.75:
            small = F.avg_pool2d(clean, 2 if amount < 0.5 else 4)
            mode = "bilinear" if kind < 0.5 else "nearest"
            degraded.append(F.interpolate(small, size=clean.shape[2:], mode=mode))
        else:
            degraded.append(observed + 0.6 * amount * (clean - observed))
    return torch.cat(degraded)


def verdicts(judge: nn.Module, sample: Sample) -> tuple[Tensor, Tensor]:
    """(logits, labels) of all crops of a sample, the clean ones first."""
    logits = judge(torch.cat([sample.clean, sample.observed]))
    clear = torch.cat([torch.ones(len(sample.clean)), torch.zeros(len(sample.observed))])
    return logits, clear.to(logits)


def _right(logits: Tensor, clear: Tensor) -> float:
    return float(((logits > 0) == (clear > 0.5)).float().mean())


def train_judge(
    recipe: JudgeRecipe,
    root: Path,
    folder: Path,
    *,
    device: str = "auto",
    minutes: float = 5.0,
    reports: Sequence[Report] = (),
) -> dict[str, Any]:
    """Trains a judge on the data below `root`; writes judge.safetensors to `folder`; returns its facts.

    Raises: ConfigError if `folder` holds a run of another recipe; DataError if the data cannot be used.
    """
    machine = machine_of("float32", device)
    share = machine.shard
    keep_recipe(recipe, folder, write=share.rank == 0)
    torch.manual_seed(recipe.seed)
    judge = machine.place(recipe.judge.build(root))
    learner = learner_of(judge.parameters(), recipe.optimizer, recipe.schedule, recipe.steps, machine)
    seen, held = recipe.data.halves(root)
    drawn = Batches(seen, recipe.data.batch, seed=recipe.seed, share=share, device=machine.device)
    main = share.rank == 0
    fit(
        JudgeTraining(judge, learner, recipe.counterfeits, recipe.seed, machine),
        lambda n: ([drawn(n)],),
        until=recipe.steps,
        run=Run(folder, minutes=minutes, validate_every=recipe.steps, main=main),
        reports=[*reports, JsonLines(folder / "log.jsonl")] if main else reports,
    )
    batches = Batches(held, recipe.data.batch, seed=recipe.seed + 1, device=machine.device, ahead=False)
    facts = JudgeFacts(
        judge=recipe.judge,
        task=recipe.task,
        recipe=recipe.name,
        seed=recipe.seed,
        accuracy=accuracy(judge, batches, count=recipe.held_out),
        caught=caught(judge, batches, count=recipe.held_out) if recipe.counterfeits else None,
        held_out=2 * recipe.data.batch * -(-recipe.held_out // recipe.data.batch),
        crop=recipe.data.crop,
        train=recipe.data.train,
        terms=recipe.terms,
    )
    if main:
        digest = save_judge(folder / "judge.safetensors", judge, facts)
        write_text(
            folder / "result.json", json.dumps({**facts.model_dump(mode="json"), "sha256": digest}, indent=2) + "\n"
        )
    if share.ranks > 1:
        from accelerate import PartialState

        PartialState().wait_for_everyone()  # the other ranks read what the first one wrote
    return facts.model_dump(mode="json")


def train_judge_of(
    recipe: SearchRecipe, root: Path, folder: Path, *, device: str = "auto", reports: Sequence[Report] = ()
) -> Path:
    """The path of the judge that a search names, trained in `folder`; an interrupted training there is continued.

    Raises: ConfigError where another one lies there.
    """
    train_judge(recipe.judge_recipe(), root, folder, device=device, reports=reports)
    return folder / "judge.safetensors"


def verdict_of(
    recipe: SearchRecipe, judge: Path | None, device: torch.device | str = "cpu"
) -> tuple[Loss, dict[str, Any]]:
    """The upper loss of a search of losses: how far the judge at `judge` is from calling the restored picture clear.

    With it come the facts of the judge and the SHA-256 of its file, which trace a search back to it.

    Raises: ConfigError where there is no judge, or as `competent`.
    """
    if judge is None:
        raise ConfigError(f"a search of a loss needs a judge; `twofold train {recipe.judge}` makes one")
    module, admitted = competent(judge, task=recipe.task, train=recipe.data.train)
    facts = {**admitted.model_dump(mode="json"), "sha256": hashlib.sha256(judge.read_bytes()).hexdigest()}
    return judged(module.to(device, memory_format=torch.channels_last)), facts  # type: ignore[call-overload]


def judged(judge: nn.Module) -> Loss:
    """The upper loss that any judge gives: (restored, clean) → how far it is from calling the restored picture clear.

    The judge is frozen.
    """
    judge.eval().requires_grad_(False)
    return lambda restored, clean: clear_loss(judge(restored))


def accuracy(judge: nn.Module, batches: Callable[[int], Sample], *, count: int) -> float:
    """Share of right verdicts on the clean and degraded crops of the first batches, at least `count` samples."""
    return _mean(judge, batches, count, lambda sample, n: _right(*verdicts(judge, sample)))


def caught(judge: nn.Module, batches: Callable[[int], Sample], *, count: int) -> float:
    """Share of `counterfeit` pictures that are not called clear, of at least `count` samples."""

    def share(sample: Sample, n: int) -> float:
        false = judge(counterfeit(sample, torch.Generator().manual_seed(n)))
        return float((false <= 0).float().mean())

    return _mean(judge, batches, count, share)


@torch.no_grad()
def _mean(
    judge: nn.Module, batches: Callable[[int], Sample], count: int, fact: Callable[[Sample, int], float]
) -> float:
    judge.eval()
    found: list[float] = []
    done = 0
    while done < count:
        sample = batches(len(found))
        found.append(fact(sample, len(found)))
        done += len(sample.clean)
    return sum(found) / len(found)


def save_judge(path: Path, judge: nn.Module, facts: JudgeFacts) -> str:
    """Writes the weights with the facts in the header; returns the SHA-256 of the file."""
    tensors = {name: value.detach().contiguous().cpu() for name, value in judge.state_dict().items()}
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={"twofold_judge": facts.model_dump_json()})
    return hashlib.sha256(path.read_bytes()).hexdigest()


def load_judge(path: Path) -> tuple[nn.Module, JudgeFacts]:
    """A judge, frozen and in evaluation mode, with what is known of it.

    Raises: WeightsError where the file is missing, damaged or holds no judge.
    """
    if path.suffix != ".safetensors" or not path.is_file():
        raise WeightsError(f"no judge at {path}; `twofold train judge-TASK` makes a judge.safetensors")
    state = read_tensors(path)
    with safe_open(path, framework="pt") as file:
        header = (file.metadata() or {}).get("twofold_judge")
    if header is None:
        raise WeightsError(f"{path} holds no judge; `twofold train judge-TASK` makes one")
    try:
        facts = TypeAdapter(JudgeFacts).validate_json(header)
        judge = facts.judge.build()
        judge.load_state_dict(state)
    except (ValidationError, RuntimeError) as error:
        raise WeightsError(f"{path} is a judge that this version does not know; train it again") from error
    return judge.eval().requires_grad_(False), facts


def competent(path: Path, *, task: str, train: Sequence[SourceSpec]) -> tuple[nn.Module, JudgeFacts]:
    """The judge at `path`, if it may judge a search for `task` on the pictures of `train`.

    Raises: ConfigError where it was trained for another task or on other pictures; where it calls less than 90 % of
    held-out crops right, or most counterfeits clear: a search would then minimise the judge's errors instead of
    restoring pictures.
    """
    judge, facts = load_judge(path)
    if facts.task != task:
        raise ConfigError(f"{path} judges {facts.task}, and this search is for {task}; train one for it")
    if facts.train != list(train):
        raise ConfigError(
            f"{path} was trained on other pictures than this search takes, and may have seen those that it is to "
            "judge; give both recipes the same data.train, and train it again"
        )
    if facts.accuracy < MIN_ACCURACY:
        raise ConfigError(
            f"{path} calls {facts.accuracy:.1%} of {facts.held_out} held-out crops right, and a search takes at least "
            f"{MIN_ACCURACY:.0%}: a search would exploit its errors; train it longer"
        )
    if facts.caught is not None and facts.caught < MIN_NEGATIVE_ACCURACY:
        raise ConfigError(
            f"{path} calls {1 - facts.caught:.0%} of the counterfeits clear (noise, blocks, pictures half restored), "
            "and a search would find the loss that makes such pictures; train it longer, or raise counterfeits"
        )
    return judge, facts
