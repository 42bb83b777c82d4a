"""Training input: which views, batches, workers."""
