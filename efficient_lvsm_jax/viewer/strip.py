"""The strip of photos: clicked to put them in and take them out, or to go to one.

Its HTML cannot call Python, so it presses the buttons of the page that are named as `toggle_label`
and `go_label` say.
"""

from __future__ import annotations

import html
from collections.abc import Sequence

from efficient_lvsm_jax.viewer.scene import ViewedScene

GREEN, GREY = (64, 192, 87), (134, 142, 150)
STRIP = """
<div style="display:grid;grid-template-columns:repeat(4,1fr);gap:5px;padding:0 0.6em 0.5em">{}</div>
"""
PRESS = """
 onclick="[...document.querySelectorAll('button')]
  .find(b=>b.textContent.trim()==='{label}').click()"
 onkeydown="if(event.key==='Enter')this.click()"
"""
PHOTO = """
<div style="position:relative;line-height:0">
<div role="button" tabindex="0" id="photo-{n}" data-cached="{cached}"
 aria-label="photo {n}, {state}" title="photo {n} ({name}), {state}: click to {verb}" {toggle}
 style="cursor:pointer;border:3px solid rgb{colour};border-radius:5px;overflow:hidden">
 <img alt="" src="data:image/jpeg;base64,{data}" style="width:100%;aspect-ratio:4/3;
  object-fit:cover;{look}">
 <span style="position:absolute;left:0;bottom:0;background:rgb{colour};color:#fff;
  font:600 11px/15px sans-serif;padding:0 4px;border-radius:0 4px 0 5px">{n}</span>
</div>
<div role="button" tabindex="0" id="go-{n}" aria-label="go to photo {n}"
 title="go to photo {n}: stand where it was taken, and compare" {go}
 style="position:absolute;right:3px;bottom:3px;cursor:pointer;background:#000a;color:#fff;
  font:600 11px/17px sans-serif;padding:0 6px;border-radius:5px 0 3px 0">go</div>
</div>
"""


def toggle_label(photo: int) -> str:
    """The button that puts a photo, counted from 0, in or takes it out."""
    return f"Photo {photo + 1}"


def go_label(photo: int) -> str:
    """The button that goes to a photo, counted from 0."""
    return f"Go to photo {photo + 1}"


def strip(scene: ViewedScene, thumbnails: Sequence[str]) -> str:
    """The strip as HTML; thumbnails are JPEG in base64."""
    cells = []
    for photo, (frame, data) in enumerate(zip(scene.photos, thumbnails, strict=True)):
        cached = photo in scene.chosen
        cells.append(
            PHOTO.format(
                n=photo + 1,
                name=html.escape(frame.name, quote=True),
                cached=int(cached),
                state="in the cache" if cached else "available",
                verb="take it out" if cached else "put it in",
                toggle=PRESS.format(label=toggle_label(photo)),
                go=PRESS.format(label=go_label(photo)),
                colour=GREEN if cached else GREY,
                data=data,
                look="" if cached else "filter:grayscale(0.8);opacity:0.6",
            )
        )
    return STRIP.format("".join(cells))
