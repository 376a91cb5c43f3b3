"""Contact sheets: pictures side by side under their titles."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

_GAP, _TITLE = 6, 22


def contact_sheet(titles: Sequence[str], rows: Sequence[Sequence[Tensor]], *, height: int = 240) -> Tensor:
    """One picture `(1, 3, H, W)` of rows of pictures `(1, C, h, w)` in [0, 1], each scaled to `height`, C 1 or 3.

    >>> contact_sheet(["a", "b"], [[torch.zeros(1, 1, 9, 9), torch.ones(1, 3, 9, 9)]], height=30).shape
    torch.Size([1, 3, 64, 78])
    """
    shown = [[_scaled(picture, height) for picture in row] for row in rows]
    widths = [max(row[i].shape[-1] for row in shown) for i in range(len(titles))]
    high = _TITLE + len(rows) * (height + _GAP) + _GAP
    sheet = torch.ones(3, high, sum(widths) + _GAP * (len(titles) + 1))
    left = _GAP
    for column, (title, width) in enumerate(zip(titles, widths, strict=True)):
        sheet[:, 2 : 2 + _TITLE, left : left + width] = _written(title, width)
        for number, row in enumerate(shown):
            top = _TITLE + _GAP + number * (height + _GAP)
            sheet[:, top : top + height, left : left + row[column].shape[-1]] = row[column]
        left += width + _GAP
    return sheet[None]


def small(picture: Tensor, *, height: int = 240) -> Tensor:
    """RGB `(1, 3, h, w)`, at most `height` high: what to keep of a large picture until its sheet is drawn."""
    return _scaled(picture, min(height, picture.shape[-2]))[None]


def _scaled(picture: Tensor, height: int) -> Tensor:
    picture = picture.detach().float().cpu().clamp(0, 1).expand(-1, 3, -1, -1)
    width = max(1, round(picture.shape[-1] * height / picture.shape[-2]))
    return F.interpolate(picture, size=(height, width), mode="area")[0]


def _written(title: str, width: int) -> Tensor:
    image = Image.new("L", (width, _TITLE), 255)
    ImageDraw.Draw(image).text((2, 2), title, fill=0, font=ImageFont.load_default(14))
    return torch.from_numpy(np.array(image)).float() / 255
