"""The shapes that the parts promise one another, and what is refused at their borders."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from twofold import contracts
from twofold.contracts import DEPTH, NOISE_LEVEL, RAIN_REGION, GuidanceKind, ImageError, TwofoldError, check_images

KINDS = [NOISE_LEVEL, RAIN_REGION, DEPTH]


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 1, 7)])
def test_what_is_a_batch_of_pictures_passes_untouched(shape: tuple[int, ...]) -> None:
    images = torch.rand(shape)
    assert check_images(images) is images


@pytest.mark.parametrize(
    ("images", "reason"),
    [
        ("photo.png", "expected a tensor, got str"),
        (torch.zeros(3, 4, 4), r"got \(3, 4, 4\)"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), "uint8"),
        (torch.zeros(1, 2, 4, 4), "expected 1 or 3 channels, got 2"),
        (torch.zeros(1, 4, 4, 4), "expected 1 or 3 channels, got 4"),
        (torch.zeros(1, 3, 0, 4), "no pixels"),
        (torch.full((1, 3, 4, 4), torch.nan), "NaN"),
        (torch.full((1, 3, 4, 4), -torch.inf), "infinite"),
    ],
)
def test_what_is_no_batch_of_pictures_is_refused_in_one_line(images: object, reason: str) -> None:
    with pytest.raises(ImageError, match=reason) as caught:
        check_images(images, name="observed")  # type: ignore[arg-type]
    assert str(caught.value).startswith("observed: ")
    assert "\n" not in str(caught.value)


def test_a_number_of_channels_can_be_demanded() -> None:
    with pytest.raises(ImageError, match="expected 3 channels, got 1"):
        check_images(torch.zeros(1, 1, 4, 4), channels=3)


def test_one_except_clause_catches_everything_a_user_can_fix() -> None:
    family = [contracts.ImageError, contracts.DataError, contracts.ConfigError, contracts.WeightsError]
    assert all(issubclass(error, TwofoldError) and issubclass(error, ValueError) for error in family)


@given(st.sampled_from(KINDS), st.floats(0, 5), st.floats(0, 1.5))
def test_a_scaled_map_stays_inside_the_range_of_its_kind(kind: GuidanceKind, value: float, strength: float) -> None:
    highest = torch.inf if kind.high is None else kind.high
    scaled = kind.scaled(torch.full((1, 1, 1, 1), min(value, highest)), strength).item()
    assert kind.low <= scaled <= highest
    assert scaled == pytest.approx(min(value, highest) * strength, abs=1e-6) or scaled == highest


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_white_is_a_legal_value_of_a_map(kind: GuidanceKind) -> None:
    assert kind.low < kind.white <= (torch.inf if kind.high is None else kind.high)
