"""Training data: pairs on disk, synthetic pairs, crops in memory."""
