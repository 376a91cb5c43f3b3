"""The catalog says nothing that the rest of the library contradicts."""

import re

from twofold.data.catalog import CATALOG, known_leaks
from twofold.data.pairs import LAYOUTS
from twofold.metrics import PROTOCOLS


def test_names_are_unique_and_protocols_exist():
    assert len({known.name for known in CATALOG}) == len(CATALOG)
    assert {known.protocol for known in CATALOG} <= {*PROTOCOLS, ""}


def test_a_layout_in_the_catalog_is_one_that_is_recognised():
    folders = {side.lower() for layout in LAYOUTS for side in (layout.observed, layout.clean)}
    for known in CATALOG:
        if known.layout:
            assert folders & set(re.split(r"[^\w-]+", known.layout.lower())), known.name


def test_a_known_leak_has_a_reason_and_an_unknown_one_has_none():
    assert "546" in str(known_leaks("Rain100H", "Rain100H"))
    assert known_leaks("Rain100H", "Kodak24") is None
    assert known_leaks("nothing", "Rain100L") is None
