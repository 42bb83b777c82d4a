"""The viewer in a headless Chromium: what is seen, clicked, typed and downloaded."""

import contextlib
import io
import shutil
import time

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("viser", reason="the extra [viewer] is not installed")
from noise_capture import noise_viewer

from efficient_lvsm_jax.viewer.server import serving
from efficient_lvsm_jax.viewer.window import camera_of, framed

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="the extra [browser-tests] is not installed"
)
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine")
# Software rendering: a machine that tests has no display.
FLAGS = ("--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")
PATIENCE = 120  # seconds for what takes one on an idle machine
LEFT = (0.05, 0.6)  # columns of the window that no control covers


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def viewer(small_model):
    viewer = noise_viewer(small_model)
    yield viewer
    viewer.worker.stop()


@pytest.fixture
def address(viewer):
    with serving(viewer, "127.0.0.1", 0) as (address, _):
        yield address


@contextlib.contextmanager
def opened(browser, address, viewport=(640, 400)):
    page = browser.new_page(viewport=dict(zip(("width", "height"), viewport, strict=True)))
    page.set_default_timeout(1000 * PATIENCE)
    page.goto(address)
    page.wait_for_selector("#photo-1")
    page.wait_for_function("document.querySelector('#badge')?.innerText.length > 3")
    yield page
    page.close()


def eventually(holds, what):
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end, what
        time.sleep(0.2)


def seen(page):
    """The window, without what lies over the picture on the right; [Y, X, 3] floats."""
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    pixels = np.asarray(picture, np.float64)
    return pixels[60:-20, slice(*(int(pixels.shape[1] * share) for share in LEFT))]


def expected(viewer, page_id, page):
    """The same of the picture for the camera that the browser last reported."""
    window = viewer.pages[page_id]._window
    shown = viewer.worker.call(
        None,
        lambda: viewer.scene.render(*camera_of(window, viewer.scene.frame, viewer.scene.size)),
    )
    size = page.viewport_size
    whole = Image.fromarray(framed(shown.image, window)).resize((size["width"], size["height"]))
    pixels = np.asarray(whole, np.float64)
    return pixels[60:-20, slice(*(int(pixels.shape[1] * share) for share in LEFT))]


def is_shown(viewer, page_id, page):
    return np.abs(seen(page) - expected(viewer, page_id, page)).mean() < 4


def hide_cameras(viewer):
    for page in viewer.pages.values():
        page._cameras_shown.value = False


def test_the_window_shows_what_the_model_renders_for_its_camera(browser, viewer, address):
    with opened(browser, address) as page:
        (client,) = viewer.pages
        hide_cameras(viewer)
        eventually(lambda: is_shown(viewer, client, page), "the picture of the first camera")
        before = viewer.pages[client]._window.position
        page.keyboard.down("w")
        eventually(lambda: (viewer.pages[client]._window.position != before).any(), "a move")
        page.keyboard.up("w")
        eventually(lambda: is_shown(viewer, client, page), "the picture of the last camera")


def test_clicks_and_keys_put_photos_in_and_out_and_the_picture_follows(browser, viewer, address):
    with opened(browser, address) as page:
        (client,) = viewer.pages
        hide_cameras(viewer)
        eventually(lambda: is_shown(viewer, client, page), "the picture of two photos")
        first = seen(page)
        page.click("#photo-2")
        page.wait_for_selector("#photo-2[data-cached='1']")
        assert viewer.scene.chosen == [0, 1, 2]
        eventually(lambda: is_shown(viewer, client, page), "the picture of three photos")
        assert np.abs(seen(page) - first).mean() > 1
        assert page.inner_text("#badge").startswith("+1 view ")
        page.keyboard.press("2")
        page.wait_for_selector("#photo-2[data-cached='0']")
        eventually(lambda: is_shown(viewer, client, page), "the picture of two photos again")
        page.keyboard.press("x")
        page.wait_for_selector("#photo-2[data-cached='1']")


def test_at_a_photo_its_truth_and_psnr_are_shown_until_the_camera_moves(browser, viewer, address):
    with opened(browser, address) as page:
        page.keyboard.press("g")
        page.wait_for_selector("text=/Photo 1: [0-9.]+ dB/")
        page.keyboard.down("w")
        page.wait_for_selector("text=/Photo 1: [0-9.]+ dB/", state="hidden")
        page.keyboard.up("w")


def test_two_browsers_share_the_photos_and_each_has_its_camera(browser, viewer, address):
    with opened(browser, address) as one, opened(browser, address) as two:
        first, second = viewer.pages
        before = viewer.pages[second]._window.position
        one.keyboard.down("w")
        eventually(lambda: (viewer.pages[first]._window.position != before).any(), "a move")
        one.keyboard.up("w")
        assert (viewer.pages[second]._window.position == before).all()
        one.click("#photo-5")
        two.wait_for_selector("#photo-5[data-cached='1']")
        hide_cameras(viewer)
        for client, page in ((first, one), (second, two)):
            eventually(lambda c=client, p=page: is_shown(viewer, c, p), "its own picture")
    eventually(lambda: not viewer.pages, "closed tabs are forgotten")


@pytest.mark.parametrize(("name", "head"), [("film.mp4", b"ftyp"), ("film.gif", b"GIF89a")])
def test_films_are_downloaded(browser, viewer, address, name, head):
    with opened(browser, address) as page:
        page.click("text=Path and files")
        viewer.pages[next(iter(viewer.pages))]._frames.value = 4
        with page.expect_download() as download:
            page.click(f"text=Make {name}")
        with open(download.value.path(), "rb") as file:
            assert head in file.read(16)


def test_a_browser_comes_back_to_a_viewer_that_was_started_again(browser, viewer):
    with serving(viewer, "127.0.0.1", 0) as (address, port):
        page = browser.new_page(viewport={"width": 640, "height": 400})
        page.goto(address)
        page.wait_for_selector("#photo-1", timeout=1000 * PATIENCE)
    eventually(lambda: not viewer.pages, "no server, no page")
    viewer.change(None, lambda scene: scene.toggle(3))
    with serving(viewer, "127.0.0.1", port):
        page.wait_for_selector("#photo-4[data-cached='1']", timeout=1000 * PATIENCE)
        hide_cameras(viewer)
        (client,) = viewer.pages
        eventually(lambda: is_shown(viewer, client, page), "the picture is back")
        page.close()
