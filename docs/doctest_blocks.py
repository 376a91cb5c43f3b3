"""A griffe extension: doctests in docstrings become code blocks, where Markdown would see quotations."""

from __future__ import annotations

from typing import Any

import griffe


def fenced(text: str) -> str:
    """Puts every doctest, with its output up to the next empty line, into a fenced block.

    >>> print(fenced("Adds.\\n\\n>" + ">> 1 + 1\\n2"))
    Adds.
    <BLANKLINE>
    ```pycon
    >>> 1 + 1
    2
    ```
    """
    lines, inside = [], False
    for line in text.splitlines():
        if not inside and line.lstrip().startswith(">>> "):
            lines.append("```pycon")
            inside = True
        elif inside and not line.strip():
            lines.append("```")
            inside = False
        lines.append(line.lstrip() if inside and line.lstrip().startswith((">>> ", "... ")) else line)
    return "\n".join([*lines, "```"] if inside else lines)


class DoctestBlocks(griffe.Extension):
    """Applies `fenced` to every docstring."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = fenced(obj.docstring.value)
