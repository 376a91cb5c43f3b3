"""Bilevel Meta Optimization in its three applications, compared with its baselines; and the claims that follow.

    python benchmarks/paper_c.py --data DATA --json benchmarks/results/paper_c.json

Parts: counter (small problems on which aggregation matters), sparse (convergence on synthetic codes), patches
(photographs with salt-and-pepper noise), deconvolution, rain, rain_shallow, joint (both levels settle together). Each
is run for every seed: of weights, of crops, of noise; the test photographs stay. Data: BSDS500 to train, Kodak24 to
test, Rain100 for rain; without --data scikit-image's photographs and drawn rain. Patches need scikit-learn (the
dictionary). Plots, of the first seed, are written beside the JSON.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness import parser, read, table, write
from paper_c_claims import judged_claims
from paper_c_codes import patches, patches_table, sparse, sparse_table
from paper_c_joint import joint, joint_table
from paper_c_pictures import deconvolution, rain, rain_shallow, ways_table
from paper_c_training import Photos, photos
from twofold.solve import Harmonic, aggregated_step


def minimum(
    follow: Callable[[Tensor, Tensor], Tensor], upper: Callable[..., Tensor], sizes: tuple[int, int], **how: Any
) -> tuple[Tensor, float]:
    """argmin over x of φ_K(x), and its minimum; φ_K is quadratic here, so that one step of Newton finds it."""

    def phi(x: Tensor) -> Tensor:
        y, leads = x.new_zeros(sizes[1]), Harmonic(how["first"])
        for k in range(how["steps"]):
            y = aggregated_step(lambda v: follow(x, v), lambda v: upper(x, v), y, mu=how["mu"], step=leads(k))
        return upper(x, y)

    zero = torch.zeros(sizes[0], dtype=torch.float64)
    slope = torch.autograd.functional.jacobian(phi, zero)  # type: ignore[no-untyped-call]
    curvature = torch.autograd.functional.hessian(phi, zero)  # type: ignore[no-untyped-call]
    x = -torch.linalg.solve(curvature, slope)  # type: ignore[no-untyped-call]
    return x, float(phi(x))


def counter(_: Photos, out: Path, seed: int) -> dict[str, Any]:
    """BDA's example, and a random one of its kind.

    BDA: T(y) = (y₁ − ½ (y₁ − x), y₂), upper loss ½ (x − y₂)² + ½ (y₁ − 1)²; the answer is x = 1. Random: T one gradient
    step on ½‖A y − x‖², A 3 × 8, upper loss ½‖y − c‖²; the answer is x = A c, with an upper loss of 0.
    """
    generator = torch.Generator().manual_seed(seed)
    A, c = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((3, 8), (8,)))
    length = 1 / float(torch.linalg.matrix_norm(A, 2)) ** 2
    facts: dict[str, Any] = {}
    for steps in (16, 64, 256):
        row: dict[str, float] = {}
        for way, mu in (("unrolled", 0.0), ("BMO", 0.5)):
            x, loss = minimum(
                lambda x, y: torch.stack([y[0] - 0.5 * (y[0] - x[0]), y[1]]),
                lambda x, y: 0.5 * (x[0] - y[1]) ** 2 + 0.5 * (y[0] - 1) ** 2,
                (1, 2),
                first=1.0,
                steps=steps,
                mu=mu,
            )
            row |= {way: round(float(x[0]), 4), f"upper_loss_{way}": loss}
            loss = minimum(
                lambda x, y: y - length * A.mT @ (A @ y - x),
                lambda x, y: 0.5 * (y - c).square().sum(),
                (3, 8),
                first=0.5,
                steps=steps,
                mu=mu,
            )[1]
            row[f"random_upper_loss_{way}"] = loss
        facts[str(steps)] = row
    print("counter:", facts, flush=True)
    return facts


def claims_table(facts: dict[str, Any]) -> str:
    return table(["", "claim", "", "numbers"], [list(line) for line in judged_claims(facts)])


def tables(result: dict[str, Any]) -> dict[str, str]:
    makers: dict[str, Callable[[dict[str, Any]], str]] = {
        "sparse": sparse_table,
        "patches": patches_table,
        **{name: partial(ways_table, part=name) for name in ("deconvolution", "rain", "rain_shallow")},
        "joint": joint_table,
    }
    done = result["seeds"]["0"]
    missing = table(["not measured"], [["run the command above"]])
    made = {f"paper_c_{name}": make(result) if name in done else missing for name, make in makers.items()}
    return {**made, "paper_c_claims": claims_table(result)}


PARTS: dict[str, Callable[[Photos, Path, int], dict[str, Any]]] = {
    "counter": counter,
    "sparse": sparse,
    "patches": patches,
    "deconvolution": deconvolution,
    "rain": rain,
    "rain_shallow": rain_shallow,
    "joint": joint,
}


def main() -> None:
    options = parser(__doc__, json_required=True)
    options.add_argument("--data", type=Path, help="folder with clean/BSDS500, clean/Kodak24, rain/Rain100")
    options.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    options.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options.add_argument("--resume", action="store_true", help="keep the parts that the JSON has already")
    arguments = options.parse_args()
    torch.set_num_threads(1)
    facts, material = read(arguments.json), photos(arguments.data)
    facts["data"] = "BSDS500, Kodak24, Rain100" if arguments.data else "photographs of scikit-image"
    for seed in arguments.seeds:
        for name in arguments.only:
            done = facts.setdefault("seeds", {}).setdefault(str(seed), {})
            if arguments.resume and name in done:
                continue
            began = time.process_time()
            done[name] = PARTS[name](material, arguments.json, seed)
            done[name]["cpu_seconds"] = round(time.process_time() - began)
            write(arguments.json, facts)


if __name__ == "__main__":
    main()
