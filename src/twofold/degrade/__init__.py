"""Degradations: how a clean picture is degraded, with the hidden cause returned as guidance."""
