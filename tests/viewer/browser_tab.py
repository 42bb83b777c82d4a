"""A tab of a headless Chromium that looks at the viewer, and what it should show."""

import contextlib
import io
import time

import cv2
import numpy as np
from noise_capture import SIZE
from PIL import Image

from efficient_lvsm_jax.viewer.window import camera_of, framed

PATIENCE = 120  # seconds for what takes one on an idle machine
WINDOW = {"width": 964, "height": 400}
CANVAS = 640, 400  # left of the controls
FREE = np.s_[160:380, 30:280]  # of the canvas: no notices lie over it
CLOSE, OTHER = 2, 3  # mean grey levels between equal pictures, at most, and others, at least


class Tab:
    """A tab of the browser, and the page that the viewer has for it."""

    def __init__(self, window, ours):
        self.window, self.ours = window, ours

    def pixels(self, part=FREE):
        picture = Image.open(io.BytesIO(self.window.screenshot())).convert("RGB")
        return np.asarray(picture, np.float64)[part]

    def shows(self, pixels):
        return np.abs(self.pixels() - pixels).mean() < CLOSE

    def shows_its_camera(self):
        """Whether it shows what the scene is from where it says that its camera is."""
        viewer, window = self.ours.viewer, self.ours.window
        scene = viewer.scene
        camera = camera_of(window, scene.frame, scene.size)
        image = framed(viewer.worker.call(None, lambda: scene.render(*camera).image), window)
        return self.shows(np.asarray(Image.fromarray(image).resize(CANVAS))[FREE])

    def position(self):
        return self.ours.window.position

    def fly(self):
        """Forwards, until the viewer hears of it."""
        before = self.position()
        self.window.keyboard.down("w")
        eventually(lambda: (self.position() != before).any(), "a move")
        self.window.keyboard.up("w")

    def cached(self, *photos):
        """Waits until the strip says of exactly these photos, from 1, that they are cached."""
        for photo in range(1, 6):
            mark = f"#photo-{photo}[data-cached='{int(photo in photos)}']"
            self.window.wait_for_selector(mark, state="attached")

    def choose(self, label, option):
        self.window.get_by_label(label, exact=True).click()
        self.window.click(f"[role=option]:has-text('{option}')")

    def fill(self, label, number):
        """Into a field; a browser says so a moment later, and a click would overtake it."""
        self.window.get_by_label(label, exact=True).fill(str(number))
        controls = self.ours.client.gui._gui_input_handle_from_uuid.values()
        (ours,) = (each for each in controls if getattr(each, "label", None) == label)
        eventually(lambda: ours.value == number, label)

    def downloaded(self, button):
        with self.window.expect_download() as download:
            self.window.click(f"button:has-text('{button}')")
        return download.value.path()


def eventually(holds, what):
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end, what
        time.sleep(0.05)


def picture_at(viewer, photo):
    """What a canvas at a photo's camera shows, the height of which the picture fills."""
    return on_canvas(viewer.worker.call(None, lambda: viewer.scene.compare(photo)[0].image))


def on_canvas(image):
    """A picture as high as the canvas."""
    all_columns, height = CANVAS
    width = round(height * SIZE[1] / SIZE[0])
    whole = np.zeros((height, all_columns, 3))
    left = (all_columns - width) // 2
    whole[:, left : left + width] = cv2.resize(
        image, (width, height), interpolation=cv2.INTER_CUBIC
    )
    return whole[FREE]


@contextlib.contextmanager
def opened(browser, viewer, address, **options):
    window = browser.new_page(**{"viewport": WINDOW, **options})
    window.set_default_timeout(1000 * PATIENCE)
    before = {*viewer.pages}
    window.goto(f"{address}?fixedDpr=1")  # a slow browser would draw fewer pixels
    window.wait_for_selector("#photo-5", state="attached")
    ((_, ours),) = (each for each in viewer.pages.items() if each[0] not in before)
    ours._cameras_shown.value = False  # they lie over the picture
    yield Tab(window, ours)
    window.close()
