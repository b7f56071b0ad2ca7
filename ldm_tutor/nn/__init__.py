"""Floor 1: the building blocks that every network shares: attention, residual blocks, embeddings."""
