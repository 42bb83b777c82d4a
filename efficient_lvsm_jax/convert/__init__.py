"""PyTorch checkpoints of all families to weights folders, and back, without PyTorch.

    python -m efficient_lvsm_jax.convert SOURCE --out OUT [--entry NAME] [--reference REF.npz]
    python -m efficient_lvsm_jax.convert --lpips vgg16-397923af.pth vgg.pth --out OUT

The work is done in `weights/`: `source` finds the file, `files.torch_file` and
`files.safetensors_file` the tensors in it, `entries` which of them are the model, `layouts` says
which is which parameter, `published` brings them in and out, `lpips` does the same for the weights
of that metric. `reference` here compares a converted model with recorded outputs.
"""
