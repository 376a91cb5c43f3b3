"""The judge: names, verdicts, second derivatives, and that it can learn what it is for."""

import pytest
import torch

from twofold.nets.judge import Judge, ResNetJudge, clear_loss, verdict_loss


def test_resnet_has_the_names_and_size_of_the_standard_weight_files():
    judge = ResNetJudge()
    state = judge.state_dict()
    assert sum(p.numel() for p in judge.parameters()) == 23_508_032 + 2_049  # the field's 25,557,032 less its fc
    for name in ("conv1.weight", "layer1.0.downsample.0.weight", "layer4.2.bn3.running_var", "layer3.5.conv2.weight"):
        assert name in state
    assert len([name for name in state if not name.startswith("fc")]) == 318


@pytest.mark.parametrize("make", [Judge, ResNetJudge])
def test_a_verdict_is_one_logit_a_picture_and_its_own(make):
    torch.manual_seed(0)
    judge = make().eval()
    pictures = torch.rand(3, 3, 40, 56)
    verdicts = judge(pictures)
    assert verdicts.shape == (3,)
    torch.testing.assert_close(judge(pictures[1:2])[0], verdicts[1], atol=1e-4, rtol=1e-4)


def test_the_losses_are_cross_entropies():
    logit = torch.tensor([-2.0, 0.0, 3.0])
    torch.testing.assert_close(clear_loss(logit), -torch.sigmoid(logit).log().mean())
    torch.testing.assert_close(verdict_loss(logit, torch.ones(3)), clear_loss(logit))


def test_the_small_judge_has_second_derivatives_in_the_picture():
    torch.manual_seed(0)
    judge = Judge(width=4).double()
    picture = torch.rand(1, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: clear_loss(judge(x)), (picture,), nondet_tol=1e-9)


def test_the_small_judge_learns_to_tell_haze_from_clear():
    torch.manual_seed(0)
    judge = Judge(width=8)
    optimizer = torch.optim.Adam(judge.parameters(), 3e-3)
    generator = torch.Generator().manual_seed(1)

    def batch(n):
        clear = torch.rand(n, 3, 24, 24, generator=generator)
        hazy = 0.4 * torch.rand(n, 3, 24, 24, generator=generator) + 0.3
        return torch.cat([clear, hazy]), torch.cat([torch.ones(n), torch.zeros(n)])

    for _ in range(40):
        pictures, clear = batch(8)
        optimizer.zero_grad()
        verdict_loss(judge(pictures), clear).backward()
        optimizer.step()
    pictures, clear = batch(32)
    assert ((judge(pictures) > 0) == (clear > 0.5)).float().mean() > 0.95
