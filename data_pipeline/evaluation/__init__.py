"""Which frames are scored: indices, and scenes to score."""
