"""Floor 3: recording and editing what attention looks at."""
