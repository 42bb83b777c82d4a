"""FLOPs, memory, chips, and the least time of a step."""
