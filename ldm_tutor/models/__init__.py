"""Floor 2: the networks, each built from a configuration, at any size."""
