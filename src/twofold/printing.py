"""File names and messages as they are printed."""

from __future__ import annotations

import unicodedata


def printable(text: object) -> str:
    """A file name on one line: control characters, which could steer a terminal, are escaped.

    >>> print(printable("a\\nb\\x1b[2J.png"))
    a\\nb\\x1b[2J.png
    """
    escaped = (
        c.encode("unicode_escape").decode() if unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp") else c
        for c in str(text)
    )
    return "".join(escaped)


def table_cell(text: object) -> str:
    """The same as a cell of a Markdown table.

    >>> print(table_cell("a|b.png"))
    a\\|b.png
    """
    return printable(text).replace("|", "\\|")
