"""Five pictures of noise from a ring, and a viewer of them."""

import numpy as np
from cameras_around import ring

from data_pipeline.scenes import Scenes, scene_of_arrays
from efficient_lvsm_jax.viewer.scene import Settings

SIZE = (16, 24)


def noise_scene(name="noise", seed=0):
    """Smooth noise, so that JPEG leaves it alone."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)
    image = coarse.repeat(4, axis=1).repeat(4, axis=2)
    poses = ring(np.array([-40.0, -20, 0, 20, 40]))
    return scene_of_arrays(name, image, poses, np.tile([22.0, 22, 12, 8], (5, 1)))


def noise_viewer(model, names=("noise",)):
    from efficient_lvsm_jax.viewer.server import Viewer

    scenes = Scenes("noise", "nowhere", names, lambda index: noise_scene(names[index], index))
    return Viewer(model, scenes, inputs=[0, 2], photos=5, settings=Settings(size=SIZE))
