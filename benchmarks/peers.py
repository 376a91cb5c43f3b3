"""The shipped models beside other people's networks, on the same pictures by the same protocol, in one run.

    THP_MEM_ALLOC_ENABLE=1 python benchmarks/peers.py --data DATA --peers FOLDER
        --json benchmarks/results/peers.json [--task rain haze]

FOLDER holds clones of the repositories that `PEERS` names, each under its own name (FOLDER/PReNet), at the commit named
there. Only those are listed whose weights are part of the repository. Their code and weights are used for measuring
and are no part of this project.

Pictures and protocol of a task are the validation sets of a shipped recipe. Scores are kept by picture in the JSON
file, with the SHA-256 of the weights that made them: a later run measures only what has changed (--again: everything).
Without --peers the rows of the peers stay as they are. Processor seconds are of one thread in plain float32 without
fused layers for all alike, the least of interleaved runs on one picture. Huge pages (the variable above) and zeros in
place of weights that are denormal numbers change no result and save every network time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from harness import cpu_seconds, parser, read, write
from peers_networks import PEERS, Peer
from twofold import api, zoo
from twofold.contracts import Restored, Sample
from twofold.data.pairs import read_pair
from twofold.evaluate import Case
from twofold.metrics import PROTOCOLS
from twofold.train import data as material
from twofold.train import reading
from twofold.train import recipe as recipes

RECIPES = {
    "rain": "derain",
    "haze": "dehaze",
    "lowlight": "lowlight",
    "underwater": "underwater-hnu",
    "deconvolution": "deblur",
}
"""The recipe on whose validation sets, and by whose protocol, a task is measured."""

TIMED = (256, 384)
"""Height and width of the picture on which processor time is measured."""


class Candidate(NamedTuple):
    """What is measured. kind: "ours", "classical" or "peer". digest: changes whenever the results may."""

    name: str
    kind: str
    digest: str
    parameters: int
    restore: Callable[..., Restored]


def ours(task: str) -> list[Candidate]:
    """Every shipped model of a task, and the restorers without weights."""
    found = []
    for card in zoo.cards().values():
        if card.task == task:
            model = api.load(card.name, device="cpu", precision="exact")
            digest = card.sha256 or hashlib.sha256(card.model.model_dump_json().encode()).hexdigest()
            kind = "ours" if card.parameters else "classical"
            found.append(Candidate(card.name, kind, digest, card.parameters, model))
    return found


def theirs(task: str, folder: Path | None, chosen: Sequence[Peer] = PEERS) -> list[Candidate]:
    """Every peer of a task whose weights are in `folder`; a line is printed for each that is left out."""
    found = []
    for peer in chosen:
        if peer.task != task or folder is None:
            continue
        weights = peer.place(folder) / peer.weights
        if not weights.is_file():
            print(f"{peer.name}: left out, no file {weights}; clone github.com/{peer.repository}", flush=True)
            continue
        built = peer.load(folder)
        digest = hashlib.sha256(weights.read_bytes()).hexdigest()
        parameters = sum(values.numel() for values in built.network.parameters())
        found.append(Candidate(peer.name, "peer", digest, parameters, built.restored))
    return found


def samples(cases: Sequence[Case]) -> list[Sample]:
    """The pictures of a validation set."""
    return [case[1] if isinstance(case, tuple) else Sample(*reversed(read_pair(case))) for case in cases]


def scored(restore: Callable[..., Restored], pictures: Sequence[Sample], protocol: str) -> dict[str, list[float]]:
    """`{psnr: [...], ssim: [...]}` by picture. Raises: RuntimeError where something restored is not finite."""
    found: dict[str, list[float]] = {"psnr": [], "ssim": []}
    for one in pictures:
        with torch.no_grad():
            restored = restore(one.observed, **({} if one.kernel is None else {"kernel": one.kernel})).image
        if not torch.isfinite(restored).all():
            raise RuntimeError("the restored picture holds NaN or infinite values")
        score = PROTOCOLS[protocol].score(restored, one.clean)
        found["psnr"].append(round(score.psnr.item(), 4))
        found["ssim"].append(round(score.ssim.item(), 4))
    return found


def untouched(observed: Tensor, kernel: Tensor | None = None) -> Restored:
    return Restored(observed)


def seconds(candidates: Sequence[Candidate], sets: dict[str, Sequence[Case]], rounds: int) -> dict[str, float]:
    """Processor seconds for each megapixel by candidate, interleaved."""
    height, width = TIMED
    observed, kernel = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0)), {}
    for cases in sets.values():
        if not isinstance(cases[0], tuple):
            continue
        if (given := cases[0][1].kernel) is not None:
            observed, kernel = observed[:, :1], {"kernel": given}
    work = {one.name: lambda one=one: one.restore(observed, **kernel) for one in candidates}  # type: ignore[misc]
    found = cpu_seconds(work, rounds)
    return {name: float(f"{1e6 * spent / (height * width):.3g}") for name, spent in found.items()}


def measured(
    task: str, data: Path, peers: Path | None, before: dict[str, Any], *, again: bool, rounds: int
) -> Iterator[dict[str, Any]]:
    """The facts of a task, after every method and at the end. What `before` holds of the same weights, set and
    protocol is kept; without a folder of peers, all of theirs.
    """
    recipe = reading.read_recipe(RECIPES[task])
    sets = material.validation(recipe, data)
    settings = {name: _setting(recipe, name) for name in sets}
    candidates = [*ours(task), *theirs(task, peers)]
    digests = {one.name: one.digest for one in candidates} | {"input": ""}
    facts: dict[str, Any] = {"protocol": recipe.protocol, "sets": settings, "methods": {}, "scores": {}}
    for name, scores in {} if again else before.get("scores", {}).items():
        about = before["methods"].get(name, {"kind": "input", "digest": ""})
        kept = peers is None and about["kind"] == "peer"
        if kept or digests.get(name) == about["digest"]:
            facts["scores"][name] = {key: scores[key] for key in sets if settings[key] == before["sets"].get(key)}
            if name != "input":
                facts["methods"][name] = about
    pictures: dict[str, list[Sample]] = {}
    for one in [Candidate("input", "input", "", 0, untouched), *candidates]:
        missing = [name for name in sets if name not in facts["scores"].get(one.name, {})]
        for name in missing:
            pictures[name] = pictures.get(name) or samples(sets[name])
            scores = scored(one.restore, pictures[name], recipe.protocol)
            facts["scores"].setdefault(one.name, {})[name] = scores
            print(f"{one.name} on {name}: {sum(scores['psnr']) / len(scores['psnr']):.2f} dB", flush=True)
        if missing and one.name != "input":
            facts["methods"][one.name] = {"kind": one.kind, "digest": one.digest, "parameters": one.parameters}
            yield facts
    if any("cpu_seconds_per_megapixel" not in facts["methods"][one.name] for one in candidates):
        for name, spent in seconds(candidates, sets, rounds).items():
            facts["methods"][name]["cpu_seconds_per_megapixel"] = spent
    yield facts


def _setting(recipe: recipes.Recipe, name: str) -> str:
    """A digest of what the scores on a set depend on."""
    chosen = {"protocol": True, "data": {"limit": True, "validation": {name}, "degraded": {name}}}
    content = recipe.model_dump(mode="json", include=chosen)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def main() -> None:
    made = parser(__doc__, data="the validation sets of the shipped recipes", json_required=True)
    made.add_argument("--peers", type=Path, help="folder with clones of the peers' repositories")
    made.add_argument("--task", nargs="+", choices=RECIPES, default=list(RECIPES))
    made.add_argument("--again", action="store_true", help="measure everything, whatever the file holds")
    made.add_argument("--rounds", type=int, default=2, help="of the measurement of time")
    options = made.parse_args()
    torch.set_num_threads(1)
    for task in options.task:
        found = read(options.json)
        before = found.get(task, {})
        for facts in measured(task, options.data, options.peers, before, again=options.again, rounds=options.rounds):
            write(options.json, found | {task: facts})


if __name__ == "__main__":
    main()
