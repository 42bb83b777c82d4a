"""Programs compiled for accelerators that are not there: python -m efficient_lvsm_jax.aot."""

TRAIN, OBSERVE, PROGRAMS = "train", "observe", ("encode", "decode", "append")
