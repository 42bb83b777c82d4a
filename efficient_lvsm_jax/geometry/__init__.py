"""Cameras, rays, scene frames and camera paths; NumPy and JAX, no model."""
