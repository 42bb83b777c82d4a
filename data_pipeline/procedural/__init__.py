"""Places drawn by code: `rooms` to train on, `walk` as a capture to try things on."""
