"""What a capture or a data set is, and whether it suits a model trained on RealEstate10K.

    python -m data_pipeline.inspect captures/fox --out cameras.png

Prints frames, resolutions, fields of view and distances, checks the poses against the pictures, and
says what differs from the training data and what to do about it. Several scenes are summed up.

findings.py says where the numbers of the training data are from. Exit status: 0; 1 if one of
several scenes cannot be read; 2 if nothing can.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_pipeline.formats import open_scenes
from data_pipeline.inspect.findings import (
    TRAINING_DISTANCES,
    TRAINING_SIZE,
    TRAINING_VIEW,
    Inspection,
    inspect_scene,
)
from data_pipeline.inspect.pose_checks import PoseCheck
from data_pipeline.read_options import add_read_options, read_options
from data_pipeline.scenes import Scene, Scenes
from efficient_lvsm_jax.commands import Parser, main_exit
from efficient_lvsm_jax.errors import InputError

SUMMARY_PAIRS = 3  # of pictures, in the epipolar check of each of several scenes


def _check_line(poses: PoseCheck) -> str:
    if poses.verdict == "unknown":
        return f"{poses.method} check: not possible, {poses.reason}"
    numbers = "beyond measure"
    if poses.median is not None:
        numbers = f"median {poses.median:.2f} px"
        if poses.percentile90 is not None:
            numbers += f", 90% below {poses.percentile90:.2f} px"
    of = (
        f"{poses.count:,} matches in {poses.pairs} pairs"
        if poses.method == "epipolar"
        else f"{poses.count:,} observations"
    )
    reason = f": {poses.reason}" if poses.reason else ""
    return f"{poses.method} check: {numbers} ({of}): {poses.verdict}{reason}"


def describe(inspection: Inspection) -> str:
    """The inspection of one scene as text."""
    found = inspection
    width, height, _ = found.sizes[0]
    sizes = ", ".join(f"{w}x{h} ({count})" for w, h, count in found.sizes[:4])
    rows = [
        ("frames", f"{found.frames}" + (f", {len(found.absent)} absent" if found.absent else "")),
        ("pictures", (f"{width}x{height}" if len(found.sizes) == 1 else sizes)),
        (
            "field of view",
            f"{_degrees(found.horizontal_view)} horizontal, "
            f"{_degrees(found.vertical_view)} vertical; centre square {found.square_view:.0f}°",
        ),
    ]
    if found.angles and found.distances:
        extent = " x ".join(f"{side:.3g}" for side in found.extent)
        smallest, median, largest = found.distances
        rows += [
            ("turns", f"{_degrees(found.angles)} between neighbouring frames"),
            ("distances", f"{median:.3g} ({smallest:.3g} to {largest:.3g}) between neighbours"),
            ("extent", f"{extent}; distances are in the source's unit, which does not matter"),
        ]
    rows += [
        (
            "training had",
            "{}x{}, {:.0f}° in the centre square, views {} to {} frames of a film apart".format(
                *TRAINING_SIZE, TRAINING_VIEW, *TRAINING_DISTANCES
            ),
        ),
        ("poses", _check_line(found.poses)),
    ]
    lines = [found.scene, *(f"  {name:<14}{value}" for name, value in rows)]
    lines += [f"  ! {caution.kind}: {caution.message}" for caution in found.cautions]
    return "\n".join(lines)


def _degrees(spread: tuple[float, float, float]) -> str:
    smallest, median, largest = spread
    if largest - smallest < 1:
        return f"{median:.0f}°"
    return f"{median:.0f}° ({smallest:.0f}° to {largest:.0f}°)"


def describe_all(inspections: Sequence[Inspection], unread: dict[str, str], total: int) -> str:
    """Several scenes, one a line, then what they have in common."""
    count = len(inspections) + len(unread)
    lines = [
        f"looked at {count} of {total} scenes"
        + ("" if count == total else ", evenly spread (--count K: at more, --scene NAME: at one)")
    ]
    names = max([len(found.scene) for found in inspections] + [5])
    lines.append(f"  {'scene':<{names}}  frames  pictures   square  turns  poses")
    for found in inspections:
        width, height, _ = found.sizes[0]
        more = "+" if len(found.sizes) > 1 else ""
        turns = f"{found.angles[1]:.0f}°" if found.angles else "-"
        pixels = "" if found.poses.median is None else f", {found.poses.median:.2f} px"
        lines.append(
            f"  {found.scene:<{names}}  {found.frames:>6}  {f'{width}x{height}{more}':<9}"
            f"  {found.square_view:>5.0f}°  {turns:>5}  {found.poses.verdict}{pixels}"
        )
    lines += [f"  {name}: cannot be read: {message}" for name, message in unread.items()]
    kinds: dict[str, list[tuple[str, str]]] = {}
    for found in inspections:
        for caution in found.cautions:
            kinds.setdefault(caution.kind, []).append((found.scene, caution.message))
    for kind, cases in kinds.items():
        scene, message = cases[0]
        lines.append(f"  ! {kind}, {len(cases)} of {len(inspections)} scenes; {scene}: {message}")
    return "\n".join(lines)


def draw_scene(scene: Scene, format: str, path: Path) -> None:
    """Draws the scene's cameras to a PNG file, with its points where the source knows some.

    Raises:
      OSError: it cannot be written.
    """
    # Here, as matplotlib takes a second to load.
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

    options, format = read_options(flags)
    scenes = open_scenes(flags.path, options, format=format)
    one = 0 if len(scenes) == 1 else None
    if flags.scene is not None:
        one = scenes.find(flags.scene)
    header = f"{flags.path}: {scenes.format}, {len(scenes)} scene{'s' * (len(scenes) > 1)}"
    if one is not None:
        scene = scenes[one]
        inspections, unread = [inspect_scene(scene, root=_capture_folder(scenes, one))], {}
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
    return 1 if unread else 0


def _inspect_some(
    scenes: Scenes, count: int
) -> tuple[list[Inspection], dict[str, str], Scene | None]:
    """Inspections of scenes spread evenly, why others cannot be read, and the first good scene."""
    inspections, unread, first = [], {}, None
    for index in np.unique(np.linspace(0, len(scenes) - 1, count).round().astype(int)).tolist():
        try:
            scene = scenes[index]
            found = inspect_scene(scene, pairs=SUMMARY_PAIRS, root=_capture_folder(scenes, index))
        except InputError as error:
            unread[scenes.names[index]] = str(error)
            continue
        inspections.append(found)
        first = first or scene
    return inspections, unread, first


def _capture_folder(scenes: Scenes, index: int) -> Path:
    """Folder to which the names of a capture's frames are likely relative."""
    folder = scenes.path if scenes.path.is_dir() else scenes.path.parent
    return folder if len(scenes) == 1 else folder / scenes.names[index]


if __name__ == "__main__":
    main_exit(main)
