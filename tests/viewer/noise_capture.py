"""Pictures of noise from a ring, and viewers of them: as a capture, and as a clip."""

import numpy as np
from cameras_around import ring

from data_pipeline.scenes import Scenes, scene_of_arrays
from data_pipeline.unposed.photos import Photo
from efficient_lvsm_jax.sessions.unposed import SeenFrame
from efficient_lvsm_jax.viewer.clip import Clip
from efficient_lvsm_jax.viewer.scene import Settings

SIZE = (16, 24)
DEPTH = 4.0  # that a clip's pixels have


def noise_scene(name="noise", seed=0, count=5):
    """Smooth noise, so that JPEG leaves it alone."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 4, 6, 3), dtype=np.uint8)
    image = coarse.repeat(4, axis=1).repeat(4, axis=2)
    poses = ring(20.0 * np.arange(count) - 40)
    return scene_of_arrays(name, image, poses, np.tile([22.0, 22, 12, 8], (count, 1)))


def noise_viewer(model, names=("noise",)):
    from efficient_lvsm_jax.viewer.server import Viewer

    scenes = Scenes("noise", "nowhere", names, lambda index: noise_scene(names[index], index))
    viewer = Viewer(inputs=[0, 2], photos=5, settings=Settings(size=SIZE))
    viewer.begin(model, scenes)
    return viewer


def noise_clip(frames=range(6), *, before=lambda: None, count=6, **options):
    """A clip that sees these frames of six, or raises what is none, and calls `before` each."""
    scene = noise_scene(count=6)

    def seen():
        for number in frames:
            before()
            if isinstance(number, Exception):
                raise number
            frame = scene.frames[number]
            maps = (np.full(SIZE, value, np.float32) for value in (DEPTH, 1))
            yield SeenFrame(Photo(frame.name, frame.image()), frame.c2w, frame.fxfycxcy, *maps)

    return Clip("noise", count, seen(), **{"most": 64, **options})
