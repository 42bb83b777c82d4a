"""What comes with the package: models by name, and captures to try them on.

`NAME.safetensors` is a model, `NAME.md` its card, `captures/` the captures. `make model`,
`make geometry-model` and `make captures` made them.
"""

from __future__ import annotations

from pathlib import Path

from efficient_lvsm_jax.errors import InputError

FOLDER = Path(__file__).parent
CAPTURES = FOLDER / "captures"


def models() -> dict[str, Path]:
    """The file of every model by its name, which `elvsm.load` takes."""
    files = {path.stem: path for path in FOLDER.glob("*.safetensors")}
    return dict(sorted(files.items()))


def example(name: str = "room") -> Path:
    """The folder of a capture that comes with the package; every command takes it.

    Args:
      name: "room", "room-2" or "room-3": small rooms as the model "rooms" was trained on, though
        none of those; 24 pictures of 48 x 48 pixels on an arc.

    Raises:
      InputError: there is none of that name; the message names those there are.
    """
    names = sorted(path.name for path in CAPTURES.iterdir() if path.is_dir())
    if name not in names:
        raise InputError(f"no example {name!r}: there are {', '.join(names)}")
    return CAPTURES / name
