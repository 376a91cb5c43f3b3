"""The search space: operations, the supernet that contains all of them, losses and their weights.

Public: `supernet.mixtures` (the filling that makes a `HadamardNet` the supernet), `genotype.Genotype` and
`genotype.derive` (what an architecture search finds), `loss_space.LossSpace` (losses with weights to be learned).
"""
