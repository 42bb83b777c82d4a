"""The model as programs that need only jax: python -m efficient_lvsm_jax.export."""
