"""Floor 5: the controls that a lesson puts beneath a figure."""
