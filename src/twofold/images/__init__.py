"""Image files ↔ `Picture`: pixels as a float tensor in [0, 1], and the metadata to be kept by a restoration.

JPEG, PNG, WebP, TIFF and BMP; 8 and 16 bits; grey, colour, alpha. GIF, AVIF and HEIC are read only.
"""

from twofold.images.formats import READABLE, SUFFIXES, UNREADABLE
from twofold.images.kinds import ImageLike, from_any, to_kind_of
from twofold.images.metadata import Metadata
from twofold.images.picture import Picture
from twofold.images.reading import LARGEST, decoded, find, read
from twofold.images.writing import encoded, not_kept, write

__all__ = [
    "LARGEST",
    "READABLE",
    "SUFFIXES",
    "UNREADABLE",
    "ImageLike",
    "Metadata",
    "Picture",
    "decoded",
    "encoded",
    "find",
    "from_any",
    "not_kept",
    "read",
    "to_kind_of",
    "write",
]
