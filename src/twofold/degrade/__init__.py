"""Degradations: how a clean picture is spoilt, with the hidden cause returned as guidance."""
