"""Which mixture of losses should train your network? Their weights are moved by hypergradients, while it is trained.

    python examples/loss_search.py [--turns 200]

The lower level trains a small U-Net against noise by six weighted losses, one step a turn; the upper level asks,
through that step, how the weights should change for a smaller error on other photographs. Any network and any upper
loss will do: give yours to `Search`. A quarter of a minute on one core.
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
from twofold.search.loss_space import PLAIN, LossSpace
from twofold.solve import OneStepUnrolled
from twofold.train.schemes import Learner
from twofold.train.search import Search

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--turns", type=int, default=200)
parser.add_argument("--output", type=Path, default=Path("loss.yaml"))
arguments = parser.parse_args()


def crops(*pictures: object, seed: int) -> Batches:
    cache = CropCache([torch.from_numpy(picture.copy()).permute(2, 0, 1) for picture in pictures])
    return Batches(SyntheticCrops(cache, GaussianNoise((0.05, 0.2)), 48), 4, seed=seed)


seen = crops(photographs.coffee(), photographs.rocket(), seed=0)
held = crops(photographs.chelsea(), photographs.astronaut(), seed=1)
torch.manual_seed(0)
net, space = UNet(channels=3, guidance=0, widths=[16, 32], blocks=[1, 1]), LossSpace(PLAIN)
search = Search(
    restorer=net,
    space=space,
    what="loss",
    upper=losses.l2,
    strategy=OneStepUnrolled(1e-3),
    searcher=Learner(space.parameters(), lambda p: torch.optim.Adam(p, 0.02)),
    learner=Learner(net.parameters(), lambda p: torch.optim.Adam(p, 1e-3)),
    warmup=arguments.turns // 4,
)
for turn in range(arguments.turns):
    facts = search.step([seen(turn)], [held(turn)])
    if turn % 40 == 39:
        weights = "  ".join(f"{name.removeprefix('weight/')} {facts[name]:.2f}" for name in facts if "weight/" in name)
        print(f"turn {turn + 1:3}   held-out error {facts.get('upper', float('nan')):.5f}   {weights}")
space.derive().write(arguments.output)  # `twofold train RECIPE --loss loss.yaml` reads it, for any model
print(arguments.output)
