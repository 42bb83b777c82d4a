"""Programs compiled for accelerators that are not there: python -m efficient_lvsm_jax.aot."""

TRAIN, PROGRAMS = "train", ("encode", "decode", "append")
