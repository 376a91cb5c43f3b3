"""The mathematics of two levels: fixed points, adjoints, hypergradients. Knows tensors, never sees an image."""
