"""What a search found, inside recipes: they name its files, and reading a recipe puts the contents in."""

from __future__ import annotations

from pydantic import Field

from twofold.search.loss_space import LossFile
from twofold.settings import Amount, Settings


class FoundLoss(Settings):
    """A searched loss, as its file has it. A recipe names the file, `loss: {file: loss.yaml}`, and reading it puts the
    contents in its place.
    """

    weights: dict[str, Amount]
    layers: dict[str, list[int]] = Field(default_factory=dict)
    ssim_exponents: list[float] = Field(default_factory=lambda: [1.0] * 3, min_length=3, max_length=3)

    def file(self) -> LossFile:
        """Raises: ConfigError for an unknown loss."""
        layers = {name: tuple(numbers) for name, numbers in self.layers.items()}
        a, b, c = self.ssim_exponents
        return LossFile(self.weights, layers, (a, b, c))
