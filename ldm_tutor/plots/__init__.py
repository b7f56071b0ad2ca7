"""Floor 5: the figures of the lessons, in one style."""
