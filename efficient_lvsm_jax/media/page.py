"""Self-contained HTML pages made of templates, and the words for scores. Pictures: uint8 RGB.

A template lies beside the module that fills it, extends media/base.html.j2 and takes its parts from
media/parts.html.j2. Whatever it is given is text, and escaped, unless it says that it is Markup.
"""

from __future__ import annotations

import base64
import io
import math
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from efficient_lvsm_jax.files.writing import written_whole

ERROR_RANGE = 0.5  # mean absolute error shown as the brightest colour
LARGEST_PNG = 128  # pixels; larger pictures are JPEG in the page, a tenth of the size
# Black, violet, orange, pale yellow: darker is better, readable without telling red from green.
ERROR_COLOURS = np.array([(6, 4, 20), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)])
# Name, digits, unit and which way is better.
METRIC_LOOKS = {
    "psnr": ("PSNR", 2, " dB", +1),
    "ssim": ("SSIM", 3, "", +1),
    "lpips": ("LPIPS", 3, "", -1),
    "foreground_psnr": ("PSNR of the foreground", 2, " dB", +1),
    "foreground_ssim": ("SSIM of the foreground", 3, "", +1),
}


def write_page(path: Path, template: str, **values: Any) -> None:
    """Writes a filled template of this package, beside and then renamed.

    Args:
      path: of the page.
      template: its path in the package, such as "runs/runs.html.j2".
      values: what it names. A generator is asked for a part when that is written, so that not all
        pictures are in memory.

    Raises:
      OSError: it cannot be written.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__name__.partition(".")[0], ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {
        "error_colours": ERROR_COLOURS.tolist(),
        "error_range": ERROR_RANGE,
        "label": label,
        "number": number,
        "plus_minus": plus_minus,
        "scenes_count": scenes_count,
    }
    with written_whole(path) as partial, partial.open("w", encoding="utf-8") as file:
        file.writelines(environment.get_template(template).generate(**values))


def flat(value: dict, prefix: str = "") -> list[tuple[str, Any]]:
    """(dotted name, value) of everything in nested dicts."""
    pairs = []
    for key, item in value.items():
        name = f"{prefix}{key}"
        pairs += flat(item, f"{name}.") if isinstance(item, dict) else [(name, item)]
    return pairs


def label(metric: str) -> str:
    """Name and unit of a metric."""
    name, _, unit, _ = METRIC_LOOKS[metric]
    return f"{name},{unit}" if unit else name


def number(metric: str, value: float, *, sign: bool = False) -> str:
    """A score with its digits, without its unit; what rounds to zero has no sign."""
    text = f"{value:{'+' if sign else ''}.{METRIC_LOOKS[metric][1]}f}"
    return text.lstrip("+-") if float(text) == 0 else text


def plus_minus(metric: str, error: float) -> str:
    """A standard error as it follows its mean; "" for NaN, where there is none."""
    return "" if math.isnan(error) else f" ± {number(metric, error)}"


def scenes_count(count: int) -> str:
    """1 scene, 2 scenes."""
    return f"{count:,} scene" + ("" if count == 1 else "s")


def data_uri(kind: str, data: bytes) -> str:
    """A file such as an image/png as an address that holds it."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def picture(pixels: np.ndarray, alt: str, caption: str) -> dict[str, Any]:
    """What the part `figure` shows: [Y, X, 3], a text instead of it and a line below it."""
    buffer = io.BytesIO()
    large = max(pixels.shape) > LARGEST_PNG
    how = {"quality": 90, "subsampling": 0} if large else {"optimize": True}
    kind = "jpeg" if large else "png"
    Image.fromarray(pixels).save(buffer, kind, **how)
    source = data_uri(f"image/{kind}", buffer.getvalue())
    return {"source": source, "alt": alt, "caption": caption, "large": large}


def error_map(prediction: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Mean absolute error over the channels of two [Y, X, 3] pictures as colours [Y, X, 3]."""
    error = np.abs(prediction.astype(np.float64) - target).mean(axis=-1) / 255 / ERROR_RANGE
    stops = np.linspace(0, 1, len(ERROR_COLOURS))
    channels = [np.interp(error, stops, ERROR_COLOURS[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=-1).astype(np.uint8)
