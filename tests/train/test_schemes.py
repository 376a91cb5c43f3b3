"""What each way of training learns, and what it leaves alone."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from twofold.contracts import EXPOSURE, RAIN_REGION, DataError, Sample
from twofold.losses import l1, l2
from twofold.nets.guide import Guide
from twofold.nets.prenet import PReNet
from twofold.nets.unet import UNet
from twofold.restorers.guided import Guided, Plain
from twofold.train.learner import Diverged, Learner
from twofold.train.schemes import (
    Frozen,
    GuidedTraining,
    Naive,
    Scheme,
    Supervised,
    load_state,
    state_of,
    steered,
)


def rainy(seed: int, size: int = 24) -> Sample:
    """A smooth picture with bright columns, and where they are."""
    generator = torch.Generator().manual_seed(seed)
    clean = nn.functional.interpolate(torch.rand(2, 3, 4, 4, generator=generator) * 0.6, size=size, mode="bilinear")
    region = (torch.rand(2, 1, 1, size, generator=generator) < 0.2).float().expand(-1, -1, size, -1)
    return Sample(clean, (clean + 0.3 * region).clamp(0, 1), region.contiguous())


def guided(seed: int = 0, *, stage: bool = False) -> Guided:
    torch.manual_seed(seed)
    net = PReNet(guidance=1, recurrences=2, width=8) if stage else UNet(guidance=1, widths=(16, 16), blocks=(1, 1))
    return Guided(Guide(RAIN_REGION, width=8, stage=stage), net)


def learner(module: nn.Module, rate: float = 3e-3) -> Learner:
    return Learner(module.parameters(), lambda parameters: torch.optim.Adam(parameters, rate), clip=1.0)


def values(module: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def same(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def psnr_after(scheme: Scheme, draws: tuple[list[Sample], ...], steps: int) -> float:
    for _ in range(steps):
        scheme.step(*draws)
    sample = draws[-1][0]
    with torch.no_grad():
        restored = scheme.restorer(sample.observed).image
    return float(-10 * torch.log10((restored - sample.clean).square().mean()))


def schemes() -> dict[str, tuple[Scheme, int]]:
    """Each with the number of draws it takes."""
    torch.manual_seed(0)
    plain = Plain(UNet(widths=(16, 16), blocks=(1, 1)))
    one, two, three = guided(), guided(), guided()
    return {
        "supervised": (Supervised(plain, l1, learner(plain)), 1),
        "guided": (GuidedTraining(one, l1, learner(one.guide), learner(one.net)), 2),
        "naive": (Naive(two, l1, learner(two)), 1),
        "frozen": (Frozen(three, l1, learner(three.guide), learner(three.net), pretraining=50), 2),
    }


@pytest.mark.parametrize("name", ["supervised", "guided", "naive", "frozen"])
def test_each_scheme_overfits_one_sample_to_30_db(name: str) -> None:
    scheme, draws = schemes()[name]
    sample = rainy(1)
    before = psnr_after(scheme, ([sample],) * draws, 0)
    assert before < 22
    assert psnr_after(scheme, ([sample],) * draws, 250) > 30


def test_guided_training_cuts_the_restoration_loss_off_the_guide() -> None:
    """θ moves exactly as if the guide were trained alone on g: fed by the observation, its g does not depend on ω."""
    together, alone = guided(), guided()
    scheme = GuidedTraining(together, l1, learner(together.guide), learner(together.net))
    only_guide = learner(alone.guide)
    for step in range(5):
        scheme.step([rainy(step)], [rainy(100 + step)])
        sample = rainy(step)
        assert sample.guidance is not None
        only_guide.descend(l2(alone.guide(sample.observed), sample.guidance))
    assert same(values(together.guide), values(alone.guide))


def test_naive_training_lets_the_restoration_loss_move_the_guide() -> None:
    together, alone = guided(), guided()
    naive = Naive(together, l1, learner(together))
    only_guide = learner(alone.guide)
    sample = rainy(0)
    assert sample.guidance is not None
    for _ in range(3):
        naive.step([sample])
        only_guide.descend(l2(alone.guide(sample.observed), sample.guidance))
    assert not same(values(together.guide), values(alone.guide))


def test_a_stage_guide_depends_on_the_reconstruction() -> None:
    """With the stage kind g depends on ω: other reconstruction weights, another guide."""
    first, second = guided(stage=True), guided(stage=True)
    for p in second.net.parameters():
        p.data += 0.05
    for restorer in (first, second):
        scheme = GuidedTraining(restorer, l1, learner(restorer.guide), learner(restorer.net))
        scheme.step([rainy(0)], ())
    assert not same(values(first.guide), values(second.guide))


def test_the_halves_of_a_step_train_only_their_own_parameters() -> None:
    restorer = guided()
    scheme = GuidedTraining(restorer, l1, learner(restorer.guide), learner(restorer.net))
    theta, omega = values(restorer.guide), values(restorer.net)
    scheme.step([rainy(0)], ())
    assert not same(theta, values(restorer.guide))
    assert same(omega, values(restorer.net))
    theta = values(restorer.guide)
    scheme.step((), [rainy(0)])
    assert same(theta, values(restorer.guide))
    assert not same(omega, values(restorer.net))


def test_the_frozen_control_trains_the_guide_first_and_then_never() -> None:
    restorer = guided()
    scheme = Frozen(restorer, l1, learner(restorer.guide), learner(restorer.net), pretraining=2)
    for step in range(2):
        assert set(scheme.step([rainy(step)], [rainy(step)])) == {"guidance"}
    theta = values(restorer.guide)
    assert set(scheme.step([rainy(3)], [rainy(3)])) == {"restoration"}
    assert same(theta, values(restorer.guide))


def test_a_scheme_restored_from_its_state_goes_on_bit_for_bit() -> None:
    restorer, twin = guided(), guided(seed=9)
    first = GuidedTraining(restorer, l1, learner(restorer.guide), learner(restorer.net))
    second = GuidedTraining(twin, l1, learner(twin.guide), learner(twin.net))
    first.step([rainy(0)], [rainy(1)])
    load_state(second, copy.deepcopy(state_of(first)))
    for scheme in (first, second):
        scheme.step([rainy(2)], [rainy(3)])
    assert same(values(restorer), values(twin))


def test_a_guide_cannot_be_trained_without_true_maps() -> None:
    restorer = guided()
    scheme = GuidedTraining(restorer, l1, learner(restorer.guide), learner(restorer.net))
    with pytest.raises(DataError, match="true guidance maps"):
        scheme.step([rainy(0)._replace(guidance=None)], ())


def test_a_loss_that_is_not_finite_stops_training_before_the_weights_change() -> None:
    restorer = guided()
    scheme = Supervised(restorer, l1, learner(restorer))
    before = values(restorer)
    broken = rainy(0)
    with pytest.raises(Diverged, match="learning_rate"):
        scheme.step([broken._replace(clean=broken.clean * float("nan"))])
    assert same(before, values(restorer))


def test_steering_scales_map_and_removal_alike() -> None:
    sample = rainy(0)
    assert sample.guidance is not None
    guidance, target = steered(sample, sample.guidance, 1.0, torch.Generator().manual_seed(4), RAIN_REGION)
    for b in range(2):
        share = guidance[b].max()
        expected = sample.observed[b] + share * (sample.clean[b] - sample.observed[b])
        torch.testing.assert_close(target[b], expected)
        assert 0 <= share <= 1
    untouched, target = steered(sample, sample.guidance, 0.0, torch.Generator().manual_seed(4), RAIN_REGION)
    torch.testing.assert_close(untouched, sample.guidance)
    torch.testing.assert_close(target, sample.clean)


def test_a_steered_exposure_asks_for_the_brightness_of_so_many_stops() -> None:
    clean = torch.full((4, 3, 8, 8), 0.4)
    stops = torch.full((4, 1, 8, 8), 2.0)
    sample = Sample(clean, clean / 4, stops)
    guidance, target = steered(sample, stops, 1.0, torch.Generator().manual_seed(0), EXPOSURE)
    torch.testing.assert_close(target, (sample.observed * guidance.exp2()).clamp(max=1.0))
    assert guidance.unique().numel() == 4
