"""Contact sheets: pictures side by side under their titles."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

LONGEST = 8192
"""Pixels along a side: every format of pictures holds them (WebP, the narrowest, 16383), and so does memory."""

_GAP, _TITLE, _LEAST = 6, 22, 8


def contact_sheet(
    titles: Sequence[str], rows: Sequence[Sequence[Tensor]], *, height: int = 240, longest: int = LONGEST
) -> Tensor:
    """One picture `(1, 3, H, W)` of rows of pictures `(1, C, h, w)` in [0, 1], or uint8, each scaled to `height`.

    C is 1 or 3. Where the rows would make a side longer than `longest`, they stand in several stacks side by side;
    where that is not enough either, all pictures are shown smaller.

    >>> row = [torch.zeros(1, 1, 9, 9), torch.ones(1, 3, 9, 9)]
    >>> contact_sheet(["a", "b"], [row], height=30).shape
    torch.Size([1, 3, 64, 78])
    >>> contact_sheet(["a", "b"], [row, row], height=30, longest=160).shape
    torch.Size([1, 3, 100, 78])
    >>> contact_sheet(["a", "b"], [row, row, row, row], height=30, longest=160).shape
    torch.Size([1, 3, 100, 156])
    """
    stacks = _stacks(rows, height, longest)
    while sum(_across(stack, height) for stack in stacks) > longest and height > _LEAST:
        height = max(_LEAST, height * 9 // 10)
        stacks = _stacks(rows, height, longest)
    high = _TITLE + len(stacks[0]) * (height + _GAP) + _GAP
    sheet = torch.ones(3, high, sum(_across(stack, height) for stack in stacks))
    left = 0
    for stack in stacks:
        _draw(sheet[..., left:], titles, stack, height)
        left += _across(stack, height)
    return sheet[None]


def small(picture: Tensor, *, height: int = 240) -> Tensor:
    """RGB `(1, 3, h, w)` uint8, at most `height` high: what to keep of a large picture until its sheet is drawn."""
    return (_scaled(picture, min(height, picture.shape[-2])) * 255).round().to(torch.uint8)[None]


def _stacks(rows: Sequence[Sequence[Tensor]], height: int, longest: int) -> list[Sequence[Sequence[Tensor]]]:
    """The rows in order, in as few stacks as `longest` allows; the first is the highest."""
    most = max(1, (longest - _TITLE - _GAP) // (height + _GAP))
    each = math.ceil(len(rows) / math.ceil(len(rows) / most))
    return [rows[start : start + each] for start in range(0, len(rows), each)]


def _widths(stack: Sequence[Sequence[Tensor]], height: int) -> list[int]:
    """Of the columns."""
    return [max(_width(picture, height) for picture in column) for column in zip(*stack, strict=True)]


def _across(stack: Sequence[Sequence[Tensor]], height: int) -> int:
    widths = _widths(stack, height)
    return sum(widths) + _GAP * (len(widths) + 1)


def _draw(sheet: Tensor, titles: Sequence[str], stack: Sequence[Sequence[Tensor]], height: int) -> None:
    left = _GAP
    for column, (title, width) in enumerate(zip(titles, _widths(stack, height), strict=True)):
        sheet[:, 2 : 2 + _TITLE, left : left + width] = _written(title, width)
        for number, row in enumerate(stack):
            top, shown = _TITLE + _GAP + number * (height + _GAP), _scaled(row[column], height)
            sheet[:, top : top + height, left : left + shown.shape[-1]] = shown
        left += width + _GAP


def _width(picture: Tensor, height: int) -> int:
    return max(1, round(picture.shape[-1] * height / picture.shape[-2]))


def _scaled(picture: Tensor, height: int) -> Tensor:
    """`(3, height, w)` in [0, 1]."""
    unit = 255 if picture.dtype == torch.uint8 else 1
    picture = (picture.detach().float().cpu() / unit).clamp(0, 1).expand(-1, 3, -1, -1)
    return F.interpolate(picture, size=(height, _width(picture, height)), mode="area")[0]


def _written(title: str, width: int) -> Tensor:
    image = Image.new("L", (width, _TITLE), 255)
    ImageDraw.Draw(image).text((2, 2), title, fill=0, font=ImageFont.load_default(14))
    return torch.from_numpy(np.array(image)).float() / 255
