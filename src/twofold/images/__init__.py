"""Any picture file ↔ `Picture`: pixels as a float tensor in [0, 1], and beside them what must survive a restoration.

JPEG, PNG, WebP, TIFF and BMP; 8 and 16 bits; grey, colour, alpha.
"""

from twofold.images.kinds import ImageLike, from_any, to_kind_of
from twofold.images.picture import SUFFIXES, Picture
from twofold.images.reading import LARGEST, find, read
from twofold.images.writing import encoded, write

__all__ = ["LARGEST", "SUFFIXES", "ImageLike", "Picture", "encoded", "find", "from_any", "read", "to_kind_of", "write"]
