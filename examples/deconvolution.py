"""Deblurring as a fixed point: a closed-form step on the data, then a denoiser that is certified to be non-expansive.

    python examples/deconvolution.py [--data FOLDER] [--output deconvolution.png]

Trains through 8 iterations of T on photographs of scikit-image (or of a folder), then restores with 80: the residual
keeps falling and the picture does not change. A few minutes on one core.
"""

import argparse
from pathlib import Path

import torch
from skimage import data as photographs

from twofold import images, losses
from twofold.data.batches import Batches
from twofold.data.crops import CropCache
from twofold.data.sources import SyntheticCrops
from twofold.degrade.additive import GaussianNoise
from twofold.degrade.blur import Blur, CameraShake
from twofold.restorers.fixed_point import Deconvolution, RidgeDenoiser
from twofold.sheets import contact_sheet
from twofold.solve import KrasnoselskiiMann
from twofold.train.learner import Learner
from twofold.train.meta import MetaTraining

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--data", type=Path, help="a folder of photographs to train on")
parser.add_argument("--output", type=Path, default=Path("deconvolution.png"))
parser.add_argument("--steps", type=int, default=80)
arguments = parser.parse_args()

if arguments.data:
    pictures = [(images.read(p).pixels[0] * 255).round().byte() for p in images.find([arguments.data])[:50]]
else:
    pictures = [torch.from_numpy(f().copy()).permute(2, 0, 1) for f in (photographs.coffee, photographs.rocket)]
pictures = [p.float().mean(0, keepdim=True).byte() for p in pictures]

degrade = Blur(CameraShake(size=9, extent=(3.0, 8.0)), GaussianNoise((0.01, 0.02)))
batches = Batches(SyntheticCrops(CropCache(pictures), degrade, 64, margin=8), 2)
torch.manual_seed(0)
restorer = Deconvolution(RidgeDenoiser(filters=16, layers=2), penalty=0.05)
learner = Learner(restorer.parameters(), lambda p: torch.optim.Adam(p, 1e-2))
scheme = MetaTraining(restorer, losses.l2, learner, iterations=8, mu=0.1)
for step in range(arguments.steps):
    facts = scheme.step([batches(step)])
    if step % 20 == 0:
        shown = ("restoration", "gradient", "residual/0", "residual/7", "contraction")
        print(f"step {step:3}: " + ", ".join(f"{name} {facts[name]:.4g}" for name in shown))

cat = torch.from_numpy(photographs.chelsea()[40:240, 80:280].mean(2)).float()[None, None] / 255
test = degrade(cat, torch.Generator().manual_seed(1))
for steps in (8, 80):
    restorer.solver = KrasnoselskiiMann(relaxation=1.0, steps=steps, tolerance=0.0)
    with torch.no_grad():
        restored = restorer(test.observed, kernel=test.kernel)
    before, after = (-10 * (x - test.clean).square().mean().log10() for x in (test.observed, restored.image))
    print(f"{steps:2} steps: {before:.2f} dB → {after:.2f} dB, residual {restored.report.residual.item():.2g}")
row = [x.clamp(0, 1).expand(-1, 3, -1, -1) for x in (test.observed, restored.image, test.clean)]
images.write(arguments.output, images.Picture(contact_sheet(["observed", "restored", "clean"], [row], height=200)))
print(arguments.output)
