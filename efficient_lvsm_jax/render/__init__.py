"""Films and pictures of a capture: python -m efficient_lvsm_jax.render."""

FRAMES = 120  # if not told
