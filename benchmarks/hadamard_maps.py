"""Is the divisor of a searched network a map of transmission or light? What happens when it is scaled?

    python benchmarks/hadamard_maps.py --data DATA --json benchmarks/results/hadamard_maps.json

Paper B divides, F_u / F_v, because the degraded picture is u * v with v the transmission (haze) or the illumination
(low light). It does not say that the divisor found in features is that v. Here v is known, since haze and darkness are
drawn: the true map is compared, at the size of the units, with the mean over the channels of each unit's divisor, with
the one channel that fits best on other pictures, and with a linear function (ridge regression) of all channels of all
divisors, fitted on other pictures. Steering: every divisor is raised to a power s, which is 1 for the network as it is
and 0 for one that divides by nothing. Half a minute on one core.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from harness import interval_of, means, parser, span, table, write
from twofold import zoo
from twofold.contracts import Sample
from twofold.data.crops import CropCache
from twofold.data.depth import WithDepth
from twofold.data.folders import Folder
from twofold.data.sources import Crops, Source, SyntheticCrops
from twofold.degrade.hadamard import Haze, LowLight
from twofold.metrics import PROTOCOLS
from twofold.nets.hadamard import Divide, HadamardNet

SIDE, FIT, TEST = 256, 10, 10
BETA = 1.2
STRENGTHS = (0.0, 0.5, 0.8, 1.0, 1.2, 1.5)
MODELS = {"haze": "dehaze-hnu", "lowlight": "lowlight"}


def source(task: str, asked: argparse.Namespace) -> Source:
    """NYU's photographs under haze of one density; Kodak's in the dark, with an uneven light."""
    if task == "haze":
        haze = Haze(beta=(BETA, BETA), airlight=(0.85, 0.85))
        folders = WithDepth("haze/NYUv2/clean", "haze/NYUv2/depth", unit="maximum", every=10, keep="picked", haze=haze)
        return folders.build(asked.data, Crops(SIDE))
    dark = LowLight(exposure=(0.03, 0.1), unevenness=1.2)
    return SyntheticCrops(CropCache.of(Folder("clean/Kodak24").files(asked.data)), dark, SIDE)


def true_map(task: str, sample: Sample) -> Tensor:
    """The transmission, or the illumination of the encoded picture, at the size of the units: `(h, w)`."""
    assert sample.guidance is not None
    v = torch.exp(-BETA * sample.guidance) if task == "haze" else torch.exp2(-sample.guidance)
    return F.avg_pool2d(v, 4)[0, 0]


def divisors(net: HadamardNet, observed: Tensor) -> Tensor:
    """`(units, channels, h, w)`: what each unit divides by."""
    seen: list[Tensor] = []
    hooks = []
    for unit in net.units:
        assert unit.divisor is not None
        assert isinstance(unit.combine, Divide)
        divisor = unit.combine.divisor
        hooks.append(unit.divisor.register_forward_hook(lambda _, inputs, v, f=divisor: seen.append(f(v[0]))))
    net(observed)
    for hook in hooks:
        hook.remove()
    edge = net.border // 4
    return torch.stack([d[:, edge : d.shape[1] - edge, edge : d.shape[2] - edge] for d in seen])


def correlation(a: Tensor, b: Tensor) -> float:
    x, y = a.flatten() - a.mean(), b.flatten() - b.mean()
    return float((x * y).sum() / (x.norm() * y.norm()).clamp_min(1e-12))


def ridge(features: Tensor, truth: Tensor, weight: float = 1e-2) -> Tensor:
    """Coefficients `(C + 1,)` of the linear function of features `(N, C)` that is nearest to truth `(N,)`."""
    design = torch.cat([features, torch.ones_like(features[:, :1])], 1).double()
    gram = design.mT @ design / len(design) + weight * torch.eye(design.shape[1], dtype=torch.float64)
    return torch.linalg.solve(gram, design.mT @ truth.double() / len(design)).float()


@torch.no_grad()
def read_off(net: HadamardNet, task: str, samples: Sequence[Sample]) -> dict[str, Any]:
    """Correlations with the true map: means over the test pictures, with intervals over pictures."""
    found = [(divisors(net, sample.observed), true_map(task, sample)) for sample in samples]
    fit, test = found[:FIT], found[FIT:]
    units, channels = fit[0][0].shape[:2]
    by_channel = torch.tensor(
        [[[correlation(d[u, c], v) for c in range(channels)] for u in range(units)] for d, v in fit]
    )
    best = int(by_channel.mean(0).abs().flatten().argmax())
    spread = torch.cat([d.flatten(0, 1).flatten(1).T for d, _ in fit])
    scale = spread.std(0).clamp_min(1e-6)
    weights = ridge(spread / scale, torch.cat([v.flatten() for _, v in fit]))

    def linear(d: Tensor) -> Tensor:
        x = d.flatten(0, 1).flatten(1).T / scale
        return (x @ weights[:-1] + weights[-1]).view(d.shape[-2:])

    def of(values: list[float]) -> dict[str, Any]:
        return {"mean": sum(values) / len(values), "interval": interval_of(values)}

    return {
        "mean divisor of unit": {str(u + 1): of([correlation(d[u].mean(0), v) for d, v in test]) for u in range(units)},
        "best channel": {
            "place": f"unit {best // channels + 1}, channel {best % channels}",
            **of([correlation(d.flatten(0, 1)[best], v) for d, v in test]),
        },
        "linear function": of([correlation(linear(d), v) for d, v in test]),
        "luminance of the degraded picture": of(
            [
                correlation(F.avg_pool2d(s.observed.mean(1), 4)[0], v)
                for s, (_, v) in zip(samples[FIT:], test, strict=True)
            ]
        ),
    }


@torch.no_grad()
def steered(net: HadamardNet, samples: Sequence[Sample]) -> dict[str, dict[str, float]]:
    """By strength: PSNR, SSIM, mean brightness and contrast (standard deviation) of the result."""
    plain = [unit.combine for unit in net.units]
    found = {}
    for strength in STRENGTHS:
        for unit, combine in zip(net.units, plain, strict=True):
            unit.combine = replace(combine, divisor=lambda v, f=combine.divisor, s=strength: f(v) ** s)
        rows = []
        for sample in samples:
            restored = net(sample.observed).clamp(0, 1)
            score = PROTOCOLS["rgb"].score(restored, sample.clean)
            row = {"psnr": score.psnr.item(), "ssim": score.ssim.item()}
            rows.append({**row, "brightness": restored.mean().item(), "contrast": restored.std().item()})
        found[f"{strength:g}"] = means(rows)
    for unit, combine in zip(net.units, plain, strict=True):
        unit.combine = combine
    return found


def maps_table(result: dict[str, Any]) -> str:
    """Correlation of the divisors with the true map."""
    body = []
    for task, facts in result.items():
        found = facts["read_off"]
        unit, strongest = max(found["mean divisor of unit"].items(), key=lambda item: abs(item[1]["mean"]))
        rows = {f"mean divisor of the strongest unit ({unit})": strongest}
        rows |= {f"best channel ({found['best channel']['place']})": found["best channel"]}
        rows |= {name: found[name] for name in ("linear function", "luminance of the degraded picture")}
        body += [[task, name, f"{f['mean']:+.2f} ({span(f['interval'], sign='+')})"] for name, f in rows.items()]
    return table(["task", "map", "correlation with the true map (95 % over pictures)"], body)


def strengths_table(result: dict[str, Any]) -> str:
    """What raising the divisors to a power does."""
    body = []
    for task, facts in result.items():
        for what in ("psnr", "ssim", "brightness", "contrast"):
            digits = 2 if what == "psnr" else 3
            body.append([f"{task}: {what}", *(f"{found[what]:.{digits}f}" for found in facts["steered"].values())])
    return table(["power of the divisor", *(f"{s:g}" for s in STRENGTHS)], body)


def tables(result: dict[str, Any]) -> dict[str, str]:
    return {"hadamard_maps": maps_table(result), "hadamard_strengths": strengths_table(result)}


def main() -> None:
    asked = parser(__doc__, data="haze/NYUv2 and clean/Kodak24").parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {}
    for task, name in MODELS.items():
        restorer: Any = zoo.load_restorer(name)
        net: HadamardNet = restorer.net.float().eval()
        draw = source(task, asked)
        samples = [draw(torch.Generator().manual_seed(n)) for n in range(FIT + TEST)]
        result[task] = {"model": name, "read_off": read_off(net, task, samples), "steered": steered(net, samples[FIT:])}
        print(json.dumps(result[task], indent=1), flush=True)
    write(asked.json, result)


if __name__ == "__main__":
    main()
