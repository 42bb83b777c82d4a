"""What a capture or a data set is, and whether it suits a model trained on RealEstate10K.

    python -m data_pipeline.inspect captures/walk --out cameras.png

Prints frames, resolutions, fields of view and distances, checks the poses against the pictures, and
says what differs from the training data and what to do about it. Several scenes are summed up.

The last line is the verdict: usable, usable with care, not usable. findings.py says where the
numbers of the training data are from. Exit status: 0 if all scenes looked at are usable, with care
or without; 1 if one of several cannot be read; 2 if nothing can; 3 if one is not usable.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipeline.read_options import add_read_options, read_options
from efficient_lvsm_jax.commands import Parser, main_exit
from efficient_lvsm_jax.errors import InputError

if TYPE_CHECKING:
    from data_pipeline.inspect.findings import Inspection
    from data_pipeline.scenes import Scene, Scenes

SUMMARY_PAIRS = 3  # of pictures, in the epipolar check of each of several scenes


def draw_scene(scene: Scene, format: str, path: Path) -> None:
    """Draws the scene's cameras to a PNG file, with its points where the source knows some.

    Raises:
      OSError: it cannot be written.
    """
    # Here, as matplotlib takes a second to load.
    import numpy as np

    from data_pipeline.inspect.camera_picture import draw_cameras
    from efficient_lvsm_jax.media.plots import save_png

    frames = [scene.frames[index] for index in scene.usable]
    points = None if scene.observations is None else scene.observations().points
    figure = draw_cameras(
        np.stack([frame.c2w for frame in frames]),
        np.stack([frame.fxfycxcy for frame in frames]),
        np.array([(frame.width, frame.height) for frame in frames]),
        f"{scene.name}: {len(frames)} cameras ({format})",
        points=points,
        labels=scene.usable,
    )
    save_png(figure, path)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; see above."""
    parser = Parser("python -m data_pipeline.inspect", __doc__, {"--scenes": "--count"})
    parser.add_argument("path", type=Path, help="capture or data set")
    parser.add_argument("--scene", metavar="NAME", help="only this one, or its number from 0")
    parser.add_argument("--count", type=int, default=20, help="of many, look at so many (20)")
    add_read_options(parser)
    parser.add_argument("--out", type=Path, help="where to draw the cameras of one scene (.png)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    flags = parser.parse_args(arguments)
    if flags.count < 1:
        raise InputError(f"--count {flags.count}: must be at least 1")
    if flags.out and flags.out.suffix.lower() != ".png":
        raise InputError(f"--out {flags.out}: must end in .png")

    # Here, so that --help need not wait for it.
    from data_pipeline.formats import formats_of, open_scenes
    from data_pipeline.inspect.findings import inspect_scene
    from data_pipeline.inspect.text import describe, describe_all

    options, format = read_options(flags)
    scenes = open_scenes(flags.path, options, format=format)
    one = 0 if len(scenes) == 1 else None
    if flags.scene is not None:
        one = scenes.find(flags.scene)
    header = f"{flags.path}: {scenes.format}, {len(scenes)} scene{'s' * (len(scenes) > 1)}"
    if others := [name for name in formats_of(flags.path) if name != scenes.format]:
        header += f" (also there: {', '.join(others)}; --format NAME reads that)"
    if one is not None:
        scene = scenes[one]
        inspections, unread = [inspect_scene(scene)], {}
        text = describe(inspections[0])
    else:
        inspections, unread, scene = _inspect_some(scenes, flags.count)
        text = describe_all(inspections, unread, len(scenes))
    if flags.json:
        result = {
            "path": str(flags.path),
            "format": scenes.format,
            "scenes": len(scenes),
            "inspected": [dataclasses.asdict(found) for found in inspections],
            "unread": unread,
        }
        print(json.dumps(result, indent=2))
    else:
        print(f"{header}\n{text}")
    if flags.out and scene is not None:
        try:
            draw_scene(scene, scenes.format, flags.out)
        except OSError as error:
            raise InputError(f"--out {flags.out}: cannot be written ({error.strerror})") from error
        if not flags.json:
            print(f"{flags.out}: the cameras of {scene.name}")
    if not all(found.is_usable for found in inspections):
        return 3
    return 1 if unread else 0


def _inspect_some(
    scenes: Scenes, count: int
) -> tuple[list[Inspection], dict[str, str], Scene | None]:
    """Inspections of scenes spread evenly, why others cannot be read, and the first good scene."""
    import numpy as np

    from data_pipeline.inspect.findings import inspect_scene

    inspections, unread, first = [], {}, None
    for index in np.unique(np.linspace(0, len(scenes) - 1, count).round().astype(int)).tolist():
        try:
            scene = scenes[index]
            found = inspect_scene(scene, pairs=SUMMARY_PAIRS)
        except InputError as error:
            unread[scenes.names[index]] = str(error)
            continue
        inspections.append(found)
        first = first or scene
    return inspections, unread, first


if __name__ == "__main__":
    main_exit(main)
