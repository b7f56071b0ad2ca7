"""Floor 4: pictures and captions, drawn here or read from your disk."""
