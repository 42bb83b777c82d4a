"""Efficient-LVSM in JAX: a few posed photos in, pictures from new cameras out.

import efficient_lvsm_jax as elvsm

model = elvsm.load("weights/")
scene = elvsm.Session(model)
view = scene.add(image, c2w, fxfycxcy)
picture = scene.render(c2w, fxfycxcy, size=(256, 256))
"""

from efficient_lvsm_jax.errors import InputError
from efficient_lvsm_jax.geometry.cameras import Cameras, SceneFrame, Views
from efficient_lvsm_jax.models.model import Model
from efficient_lvsm_jax.sessions.session import Session
from efficient_lvsm_jax.version import __version__
from efficient_lvsm_jax.weights.load import load

__all__ = [
    "Cameras",
    "InputError",
    "Model",
    "SceneFrame",
    "Session",
    "Views",
    "__version__",
    "load",
]
