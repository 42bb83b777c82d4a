"""Data sets for training from anything readable: python -m data_pipeline.prepare."""
