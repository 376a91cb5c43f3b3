"""What the verbs raise where a command line cannot be meant as it stands."""

from __future__ import annotations

from twofold.contracts import TwofoldError


class Misuse(TwofoldError):
    """Options that make no sense, alone or together, whatever the files hold. Exit code 2."""
