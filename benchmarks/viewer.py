"""How long the viewer takes from a move of the camera to the picture.

    python benchmarks/viewer.py --out viewer.json [--weights W] [--capture CAPTURE]

For each of --sizes and --views it serves CAPTURE (default: what ships), with so many photos in the
cache, and makes --moves moves, one after the other, in a window of 1280x800:

    server   from a camera's message to the picture's bytes, as a program on this machine sees it
             over a socket: the message's checks, rendering, enlarging, JPEG and sending are in it
    browser  from a turn of the wheel in headless Chromium, which draws in software, to the first
             frame with other pixels; the photos' cameras, which move at once, are not drawn

No wait is longer than a minute: then it ends with an error. OUT.json gets all seconds and the rows;
the table of docs/viewer.md is printed. Needs the extras [viewer] and [browser-tests], and chromium.
"""

from __future__ import annotations

import argparse
import datetime
import os
import shutil
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
import viser
from playwright.sync_api import Browser, Page, sync_playwright
from websockets.sync.client import ClientConnection, connect

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.rendering_speed import cpu_name
from data_pipeline.formats import open_scenes
from efficient_lvsm_jax.files.writing import write_json
from efficient_lvsm_jax.shipped import CAPTURES
from efficient_lvsm_jax.viewer.scene import PHOTOS, Settings
from efficient_lvsm_jax.viewer.server import Viewer, serving
from efficient_lvsm_jax.weights.load import load_renderer

WINDOW = {"width": 1280, "height": 800}
PATIENCE = 60  # seconds of any wait
QUIET = 0.5  # seconds without anything new, after which a move is over
FIRST = 3  # moves that are not counted
JPEG = b"\xff\xd8\xff"
# Runs from one frame to the next and keeps when a row of the picture last changed, and when it did
# so first after a turn of the wheel.
WATCH = """
() => {
  const gl = document.querySelector('canvas[data-engine]').getContext('webgl2');
  let row = new Uint8Array(4 * gl.drawingBufferWidth), before = new Uint8Array(row.length);
  const seen = window.seen = {turned: null, first: null, last: performance.now()};
  const look = () => {
    gl.readPixels(0, gl.drawingBufferHeight >> 1, gl.drawingBufferWidth, 1,
                  gl.RGBA, gl.UNSIGNED_BYTE, row);
    if (row.some((value, index) => value !== before[index])) {
      seen.last = performance.now();
      if (seen.turned !== null) seen.first ??= seen.last;
      [row, before] = [before, row];
    }
    requestAnimationFrame(look);
  };
  requestAnimationFrame(look);
  return true;
}
"""
TURN = """
by => {
  const canvas = document.querySelector('canvas[data-engine]');
  const area = canvas.getBoundingClientRect();
  Object.assign(window.seen, {turned: performance.now(), first: null});
  canvas.dispatchEvent(new WheelEvent('wheel', {deltaY: by, bubbles: true, cancelable: true,
    clientX: area.left + area.width / 2, clientY: area.top + area.height / 2}));
  return true;
}
"""
MOVED = """
quiet => {
  const {turned, first, last} = window.seen;
  return first !== null && performance.now() - last > quiet && {ms: first - turned};
}
"""
STILL = "quiet => performance.now() - window.seen.last > quiet"


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    parser.add_argument("--capture", default=str(CAPTURES))
    parser.add_argument("--weights", default="rooms", metavar="W", help="what elvsm.load takes")
    parser.add_argument("--sizes", type=int, nargs="+", default=[48, 64], metavar="PX")
    parser.add_argument("--views", type=int, nargs="+", default=[2, 4, 8], metavar="V")
    parser.add_argument("--moves", type=int, default=30)
    asked = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("error: there is no chromium on this machine")

    model, scenes, rows = load_renderer(asked.weights), open_scenes(asked.capture), []
    flags = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        for size in asked.sizes:
            for views in asked.views:
                settings = Settings(size=(size, size))
                viewer = Viewer(inputs=views, photos=PHOTOS, settings=settings)
                viewer.begin(model, scenes)
                try:
                    with serving(viewer, "127.0.0.1", 0) as (address, _):
                        server = server_times(address, asked.moves)
                        seen = seen_times(browser, address, asked.moves)
                finally:
                    viewer.worker.stop()
                rows.append({"size": size, "views": views, "server": server, "browser": seen})
                print(line(rows[-1]), file=sys.stderr, flush=True)
        browser.close()
    machine = f"{cpu_name()}, {os.cpu_count()} cores"
    kind = f"{model.family} {asked.weights}, {model.config.compute_dtype}"
    date = str(datetime.date.today())
    write_json(asked.out, {"date": date, "machine": machine, "model": kind, "rows": rows})
    print(f"{date}; {machine}; {kind}; {asked.moves} moves; milliseconds, median (90th percentile)")
    print("\n| px | photos in the cache | server | browser |\n|---|---|---|---|")
    print("\n".join(map(line, rows)))


def line(row: dict) -> str:
    """Of the table."""
    cells = [
        f"{1000 * np.median(row[what]):.0f} ({1000 * np.percentile(row[what], 90):.0f})"
        for what in ("server", "browser")
    ]
    return f"| {row['size']} | {row['views']} | {' | '.join(cells)} |"


def server_times(address: str, moves: int) -> list[float]:
    """Seconds from each camera to its picture."""
    times = []
    with connect(
        address.replace("http", "ws"),
        subprotocols=[f"viser-v{viser.__version__}"],
        open_timeout=PATIENCE,
        max_size=None,
        max_queue=None,
    ) as connection:
        picture_of(connection, 0)  # the page is built for who says where it stands
        for move in range(FIRST + moves):
            end = time.monotonic() + PATIENCE
            while is_told(connection):  # what still comes of the last one
                if time.monotonic() > end:
                    raise SystemExit(f"error: the viewer still sends after {PATIENCE} s")
            start = time.perf_counter()
            picture_of(connection, 1 + move)
            times.append(time.perf_counter() - start)
    return times[FIRST:]


def is_told(connection: ClientConnection) -> bool:
    """Whether a message comes soon."""
    try:
        connection.recv(timeout=QUIET)
    except TimeoutError:
        return False
    return True


def picture_of(connection: ClientConnection, move: int) -> None:
    """Says where the camera is, and waits for a picture."""
    angle = 0.002 * move
    camera = {
        "type": "ViewerCameraMessage",
        "wxyz": [float(np.cos(angle)), 0.0, float(np.sin(angle)), 0.0],
        "position": [0.001 * move, 0.0, 0.0],
        "fov": 0.8,
        "near": 0.01,
        "far": 1000.0,
        "image_height": WINDOW["height"],
        "image_width": WINDOW["width"],
        "look_at": [0.0, 0.0, 1.0],
        "up_direction": [0.0, -1.0, 0.0],
    }
    connection.send(msgspec.msgpack.encode(camera))
    end = time.monotonic() + PATIENCE
    while JPEG not in connection.recv(timeout=PATIENCE):
        if time.monotonic() > end:
            raise SystemExit(f"error: no picture within {PATIENCE} s")


def seen_times(browser: Browser, address: str, moves: int) -> list[float]:
    """Seconds from each turn of the wheel to the first frame with other pixels."""
    page = browser.new_page(viewport=WINDOW)
    page.set_default_timeout(1000 * PATIENCE)
    page.goto(f"{address}?fixedDpr=1")  # or a slow browser draws fewer pixels after a while
    page.get_by_label("Show cameras").uncheck()
    told(page, WATCH)
    told(page, STILL, 1000 * QUIET)
    times = []
    for move in range(FIRST + moves):
        told(page, TURN, 60 if move % 2 else -60)
        times.append(told(page, MOVED, 1000 * QUIET)["ms"] / 1000)
    page.close()
    return times[FIRST:]


def told(page: Page, question: str, argument: float | None = None):
    """The first answer that is not false; `evaluate` would wait for a hanging page without end."""
    return page.wait_for_function(question, arg=argument).json_value()


if __name__ == "__main__":
    main()
