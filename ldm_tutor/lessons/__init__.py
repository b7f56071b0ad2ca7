"""Floor 5: what a lesson needs beside the model: exercises, hints and the course map."""
