"""Restore photographs with models that are learned on two levels."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "load": "api",
    "models": "api",
    "restore": "api",
    "Sample": "contracts",
    "Restored": "contracts",
    "Restorer": "contracts",
    "Degradation": "contracts",
    "TwofoldError": "contracts",
}
__all__ = ["__version__", *sorted(_HOME)]


def __getattr__(name: str) -> Any:  # public names are looked up on first use: `import twofold` stays cheap
    if name in _HOME:
        return getattr(import_module(f"twofold.{_HOME[name]}"), name)
    raise AttributeError(f"module 'twofold' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
