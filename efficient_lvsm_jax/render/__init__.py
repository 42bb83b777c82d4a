"""Films and pictures of a capture: python -m efficient_lvsm_jax.render."""

INPUTS = 8  # if not told; all of a scene that has fewer
FRAMES = 120  # if not told
