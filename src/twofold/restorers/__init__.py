"""Restorers: observed picture in, `Restored` out."""
