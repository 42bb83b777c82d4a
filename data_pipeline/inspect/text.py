"""Inspections as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from data_pipeline.inspect.findings import (
    TRAINING_DISTANCES,
    TRAINING_SIZE,
    TRAINING_VIEW,
    VERDICTS,
    Inspection,
)
from efficient_lvsm_jax.geometry.epipolar import PoseCheck


def check_line(poses: PoseCheck) -> str:
    """What a check of poses found, as a line."""
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
        ("poses", check_line(found.poses)),
    ]
    lines = [found.scene, *(f"  {name:<14}{value}" for name, value in rows)]
    lines += [f"  ! {caution.kind}: {caution.message}" for caution in found.cautions]
    lines.append(found.verdict)
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
    verdicts = Counter(found.verdict.partition(":")[0] for found in inspections)
    counts = [f"{verdicts[verdict]} {verdict}" for verdict in VERDICTS if verdicts[verdict]]
    counts += [f"{len(unread)} cannot be read"] * bool(unread)
    lines.append(", ".join(counts))
    return "\n".join(lines)
