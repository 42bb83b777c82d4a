"""DINOv2 with registers and its final norm, as the encoder of VGGT."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_vggt import floats, module, normalised, recorded, small_vggt

SIZES = ("4x5", "24x37", "37x37", "40x44")


@jax.jit
def encoder(params, images):
    """Tokens before the blocks and after each, and what the encoder gives."""
    network = module(params).encoder
    start, _ = network.embed(images, (4, 5))
    _, after = jax.lax.scan(lambda x, block: (block(x, None),) * 2, start, network.blocks)
    return start, after, network.patch_tokens(images)


@jax.jit
def patch_tokens(params, images):
    return module(params).encoder.patch_tokens(images)


def test_tokens_equal_the_published_program(parity):
    data = recorded("encoder")
    start, after, patches = encoder(small_vggt().params, normalised(floats(data["images_u8"])))
    parity("VGGT encoder", start, data["tokens_in"], 1e-5)
    parity("VGGT encoder", after, data["tokens_after_blocks"], 1e-5)
    parity("VGGT encoder", patches, data["patch_tokens"], 1e-5)


@pytest.mark.parametrize("size", ["518x518", "392x518"])
def test_tokens_of_pictures_of_full_size(size, parity):
    y, x, c = np.meshgrid(*map(np.arange, (*map(int, size.split("x")), 3)), indexing="ij")
    image = ((3 * x + 5 * y + 40 * c + x * y // 16) % 256).astype(np.float32) / 255
    got = patch_tokens(small_vggt().params, normalised(jnp.asarray(image))[None])[0, ::23]
    parity("VGGT encoder", got, recorded("encoder")[f"patch_tokens_{size}_every23"], 1e-5)


def test_the_position_table_is_resized_once(parity):
    network = module(small_vggt().params).encoder
    for size in SIZES:
        expected = recorded("encoder")[f"pos_embed_{size}"]
        grid = tuple(map(int, size.split("x")))
        got = network.position_table(grid, grid)[0, :, : expected.shape[-1]]
        parity("VGGT position tables", got, expected, 0 if size == "37x37" else 1e-6)
