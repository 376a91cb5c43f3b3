"""Training: recipes, the loop, and the ways of training."""
