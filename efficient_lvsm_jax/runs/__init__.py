"""What a run shows and keeps; python -m efficient_lvsm_jax.runs lists runs."""
