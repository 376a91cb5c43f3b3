"""Rain as the second layer of a picture: both layers together are a fixed point, and both are returned.

    python examples/rain_layers.py [--data FOLDER] [--output rain_layers.png]

Trains on rain drawn over photographs of scikit-image (or of a folder). A few minutes on one core.
"""

import argparse
from pathlib import Path

import torch
from skimage import data as photographs

from twofold import images, losses
from twofold.data.batches import Batches
from twofold.data.crops import CropCache
from twofold.data.sources import SyntheticCrops
from twofold.degrade.additive import RainStreaks
from twofold.restorers.fixed_point import RainLayers, RidgeDenoiser
from twofold.sheets import contact_sheet
from twofold.solve import KrasnoselskiiMann
from twofold.train.learner import Learner
from twofold.train.meta import MetaTraining

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--data", type=Path, help="a folder of photographs to train on")
parser.add_argument("--output", type=Path, default=Path("rain_layers.png"))
parser.add_argument("--steps", type=int, default=80)
arguments = parser.parse_args()

if arguments.data:
    pictures = [(images.read(p).pixels[0] * 255).round().byte() for p in images.find([arguments.data])[:50]]
else:
    pictures = [torch.from_numpy(f().copy()).permute(2, 0, 1) for f in (photographs.coffee, photographs.rocket)]

degrade = RainStreaks()
batches = Batches(SyntheticCrops(CropCache(pictures), degrade, 40), 4)
torch.manual_seed(0)
# The rain's filters may also shrink the layer as a whole: most pixels are dry.
restorer = RainLayers(
    RidgeDenoiser(channels=3, filters=16), RidgeDenoiser(channels=3, filters=16, size=7, keep_mean=False)
)
learner = Learner(restorer.parameters(), lambda p: torch.optim.Adam(p, 1e-2))
scheme = MetaTraining(restorer, losses.l2, learner, iterations=24, mu=0.1)
for step in range(arguments.steps):
    facts = scheme.step([batches(step)])
    if step % 20 == 0:
        shown = ("restoration", "gradient", "residual/0", "residual/23", "contraction")
        print(f"step {step:3}: " + ", ".join(f"{name} {facts[name]:.4g}" for name in shown))

cat = torch.from_numpy(photographs.chelsea()[40:240, 80:280].copy()).permute(2, 0, 1).float()[None] / 255
test = degrade(cat, torch.Generator().manual_seed(1))
for steps in (240, 24):  # far beyond the trained depth, where the layers are smoother than they should be, and at it
    restorer.solver = KrasnoselskiiMann(relaxation=1.0, steps=steps, tolerance=0.0)
    with torch.no_grad():
        restored = restorer(test.observed)
    before, after = (-10 * (x - test.clean).square().mean().log10() for x in (test.observed, restored.image))
    print(f"{steps:3} steps: {before:.2f} dB → {after:.2f} dB, residual {restored.report.residual.item():.2g}")
rain = restored.report.value[1]
row = [x.clamp(0, 1) for x in (test.observed, restored.image, rain, test.clean)]
images.write(
    arguments.output, images.Picture(contact_sheet(["observed", "picture", "rain", "clean"], [row], height=200))
)
print(arguments.output)
