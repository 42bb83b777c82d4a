"""Writing captures and camera paths."""
