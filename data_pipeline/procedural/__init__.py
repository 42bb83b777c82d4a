"""Places drawn by code; `rooms` is imported by training, and loads JAX."""
