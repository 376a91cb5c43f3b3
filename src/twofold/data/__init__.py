"""Training material: pairs on disk, synthetic pairs, crops in memory."""
