"""Which mixture of losses should train your network? Their weights follow hypergradients while the network is trained.

    python examples/loss_search.py [--steps 200]

The lower level trains a small U-Net to remove noise by six weighted losses, one update per step; the upper level
differentiates the error on other photographs through that update in the weights. Pass any network and any upper loss
to `Search`. A quarter of a minute on one core.
"""

import argparse
from pathlib import Path

import torch
from skimage import data as photographs

from twofold import losses
from twofold.data.batches import Batches
from twofold.data.crops import CropCache
from twofold.data.sources import SyntheticCrops
from twofold.degrade.additive import GaussianNoise
from twofold.nets.unet import UNet
from twofold.search.scheme import Search
from twofold.solve import OneStepUnrolled
from twofold.space.loss_space import LossSpace, searchable
from twofold.train.learner import Learner

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=200)
parser.add_argument("--output", type=Path, default=Path("loss.yaml"))
arguments = parser.parse_args()


def crops(*pictures: object, seed: int) -> Batches:
    cache = CropCache([torch.from_numpy(picture.copy()).permute(2, 0, 1) for picture in pictures])
    return Batches(SyntheticCrops(cache, GaussianNoise((0.05, 0.2)), 48), 4, seed=seed)


seen = crops(photographs.coffee(), photographs.rocket(), seed=0)
held = crops(photographs.chelsea(), photographs.astronaut(), seed=1)
torch.manual_seed(0)
net = UNet(channels=3, guidance=0, widths=[16, 32], blocks=[1, 1])
space = LossSpace(searchable(losses.PLAIN))
search = Search(
    restorer=net,
    space=space,
    what="loss",
    upper=losses.l2,
    strategy=OneStepUnrolled(1e-3),
    searcher=Learner(space.parameters(), lambda p: torch.optim.Adam(p, 0.02)),
    learner=Learner(net.parameters(), lambda p: torch.optim.Adam(p, 1e-3)),
    warmup=arguments.steps // 4,
)
for step in range(arguments.steps):
    facts = search.step([seen(step)], [held(step)])
    if step % 40 == 39:
        weights = "  ".join(f"{name.removeprefix('weight/')} {facts[name]:.2f}" for name in facts if "weight/" in name)
        print(f"step {step + 1:3}   held-out error {facts.get('upper', float('nan')):.5f}   {weights}")
space.derive().write(arguments.output)  # `twofold train RECIPE --loss loss.yaml` reads it, for any model
print(arguments.output)
