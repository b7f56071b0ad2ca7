"""Floor 3: reading and writing weights, shipped or foreign, strictly."""
