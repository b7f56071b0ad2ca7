"""Floor 4: how good the pictures are, in numbers."""
