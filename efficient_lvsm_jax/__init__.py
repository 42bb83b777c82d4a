"""Efficient-LVSM in JAX: a few posed photos in, pictures from new cameras out.

    import efficient_lvsm_jax as elvsm

    model = elvsm.load("weights/")
    scene = elvsm.Session.from_capture(model, "my_capture", inputs=8)
    picture = scene.render(c2w, fxfycxcy)

Names are loaded when they are first asked for (PEP 562), so that a data worker or a command that
needs one room does not wait for all of them.
"""

import importlib
from typing import TYPE_CHECKING, Any

from efficient_lvsm_jax.version import __version__

if TYPE_CHECKING:
    from efficient_lvsm_jax.errors import InputError
    from efficient_lvsm_jax.geometry.cameras import Cameras, SceneFrame, Views
    from efficient_lvsm_jax.models.model import Model
    from efficient_lvsm_jax.sessions.session import Session
    from efficient_lvsm_jax.sessions.streaming import Stream
    from efficient_lvsm_jax.sessions.unposed import UnposedScene
    from efficient_lvsm_jax.shipped import example
    from efficient_lvsm_jax.weights.load import load

_ROOMS = {
    "Cameras": "geometry.cameras",
    "InputError": "errors",
    "Model": "models.model",
    "SceneFrame": "geometry.cameras",
    "Session": "sessions.session",
    "Stream": "sessions.streaming",
    "UnposedScene": "sessions.unposed",
    "Views": "geometry.cameras",
    "example": "shipped",
    "load": "weights.load",
}

__all__ = [
    "Cameras",
    "InputError",
    "Model",
    "SceneFrame",
    "Session",
    "Stream",
    "UnposedScene",
    "Views",
    "__version__",
    "example",
    "load",
]


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_ROOMS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_ROOMS})
