"""Is a capture usable, and if not, why: python -m data_pipeline.inspect."""
