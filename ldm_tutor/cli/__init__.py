"""Floor 5: the same jobs without a notebook."""
