"""From photos or a video to a capture: python -m efficient_lvsm_jax.reconstruct."""

COLMAP = "colmap"
NETWORKS = ("stream_vggt", "vggt", "depth_anything3")
LENSES = ("radial", "opencv", "pinhole", "fisheye")  # keys of data_pipeline.unposed.mapping's
