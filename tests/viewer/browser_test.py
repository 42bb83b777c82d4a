"""The viewer in a headless Chromium: what is seen, clicked, typed and downloaded.

One browser, one viewer and, but for what needs its own, one tab are shared: `tab` begins anew.
"""

import contextlib
import json
import shutil
import threading
import time

import imageio.v3 as imageio
import numpy as np
import pytest
from PIL import Image

pytest.importorskip("viser", reason="the extra [viewer] is not installed")
from browser_tab import (
    CANVAS,
    CLOSE,
    FREE,
    OTHER,
    PATIENCE,
    WINDOW,
    Tab,
    eventually,
    on_canvas,
    opened,
    picture_at,
)
from noise_capture import SIZE, noise_clip, noise_viewer

from data_pipeline.scenes import Cloud
from efficient_lvsm_jax import InputError
from efficient_lvsm_jax.viewer.flights import read_flight
from efficient_lvsm_jax.viewer.page import SLOW, stand_at
from efficient_lvsm_jax.viewer.scene import Settings
from efficient_lvsm_jax.viewer.server import Viewer, serving
from efficient_lvsm_jax.viewer.window import fov_of

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="the extra [browser-tests] is not installed"
)
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on this machine")
# Software rendering: a machine that tests has no display.
FLAGS = ("--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")
MIDDLE = np.s_[195:205, 315:325]  # of the canvas
STARTED = [0, 2]  # photos in the cache at first


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def viewer(small_model):
    viewer = noise_viewer(small_model, ("noise", "more noise"))
    yield viewer
    viewer.worker.stop()


@pytest.fixture(scope="module")
def address(viewer):
    with serving(viewer, "127.0.0.1", 0) as (address, _):
        yield address


@pytest.fixture(scope="module")
def shared(browser, viewer, address):
    with opened(browser, viewer, address) as tab:
        yield tab


@pytest.fixture
def tab(viewer, shared):
    """The shared tab as if it had just been opened, after whatever a test left."""

    def begin():
        if viewer.scene.name != "noise":
            viewer._open(0, viewer.scene.settings, False)
        viewer.scene.choose(STARTED)
        shared.ours.begin()
        shared.ours._cameras_shown.value = False

    viewer.worker.call(None, begin)
    shared.cached(1, 3)
    eventually(lambda: shared.shows(picture_at(viewer, 0)), "the first photo's picture")
    return shared


def test_the_window_shows_what_the_model_renders_for_its_camera(viewer, tab):
    tab.fly()
    eventually(tab.shows_its_camera, "the picture of the last camera")
    tab.window.keyboard.press("h")
    eventually(lambda: tab.shows(picture_at(viewer, 0)), "the picture of the first camera")


def test_clicks_and_keys_put_photos_in_and_out_and_the_picture_follows(viewer, tab):
    first, stood = tab.pixels(), tab.position()
    tab.window.click("#photo-4")
    tab.cached(1, 3, 4)
    assert viewer.scene.chosen == [0, 2, 3]
    three = picture_at(viewer, 0)
    assert np.abs(three - first).mean() > OTHER
    eventually(lambda: tab.shows(three), "the picture of three photos")
    assert tab.window.inner_text("#badge").startswith("+1 view ")
    tab.window.keyboard.press("4")
    tab.cached(1, 3)
    eventually(lambda: tab.shows(first), "the picture of two photos")
    assert (tab.position() == stood).all()


def test_a_click_on_a_camera_in_the_picture_puts_its_photo_in(viewer, tab):
    position, look_at, up = stand_at(viewer.scene, 3)
    behind = position - 0.5 * (look_at - position) / np.linalg.norm(look_at - position)
    camera = tab.ours.client.camera
    with tab.ours.client.atomic():
        camera.up_direction, camera.position, camera.look_at = up, behind, position
    eventually(lambda: np.allclose(tab.position(), behind, atol=1e-3), "the camera behind it")
    eventually(tab.shows_its_camera, "its picture")
    without = tab.pixels(MIDDLE)
    tab.ours._cameras_shown.value = True
    eventually(lambda: np.abs(tab.pixels(MIDDLE) - without).mean() > OTHER, "the photo's camera")
    tab.window.mouse.click(CANVAS[0] / 2 + 16, CANVAS[1] / 2)  # in it, on none of its lines
    tab.cached(1, 3, 4)


def test_a_and_b_are_the_photos_before_and_after_the_last_change(viewer, tab):
    a = tab.pixels()
    tab.window.keyboard.press("4")
    tab.cached(1, 3, 4)
    b = picture_at(viewer, 0)
    assert np.abs(b - a).mean() > OTHER
    for expected, photos in ((a, (1, 3)), (b, (1, 3, 4))):
        tab.window.keyboard.press("x")
        tab.cached(*photos)
        eventually(lambda e=expected: tab.shows(e), f"the picture of {photos}")


@pytest.mark.parametrize("how", ["slider", "strip", "keys"])
def test_at_a_photo_its_truth_and_psnr_are_shown_until_the_camera_moves(viewer, tab, how):
    if how == "slider":
        tab.window.get_by_role("slider").first.focus()
        tab.window.keyboard.press("ArrowRight")
        tab.window.click("text=Go to this photo (G)")
    elif how == "strip":
        tab.window.click("#go-2")
    else:
        tab.window.focus("#photo-2")
        tab.window.keyboard.press("Tab")
        tab.window.keyboard.press("Enter")
    tab.window.wait_for_selector("text=/Photo 2: [0-9.]+ dB/")
    eventually(lambda: tab.shows(picture_at(viewer, 1)), "the picture of the photo's camera")
    assert viewer.scene.chosen == STARTED
    tab.fly()
    tab.window.wait_for_selector("text=/Photo 2: [0-9.]+ dB/", state="hidden")


def test_precision_and_budget_are_applied_and_an_error_is_a_notice(viewer, tab):
    held = viewer.scene.cache_bytes
    tab.window.click("text=Cache")
    tab.choose("Precision", "bf16")
    tab.window.click("text=Apply (for all who look)")
    eventually(lambda: viewer.scene.precision == "bf16", "the precision")
    assert viewer.scene.cache_bytes == held // 2
    tab.fill("Budget, MB (0: none)", 0.1)
    tab.fill("Height, px", 17)
    tab.window.click("text=Apply (for all who look)")
    tab.window.wait_for_selector("text=/17x24.*multiple/")
    tab.fill("Height, px", 16)
    tab.choose("Precision", "as computed")
    tab.window.click("text=Apply (for all who look)")
    eventually(lambda: viewer.scene.settings.max_bytes == 100_000, "the budget")
    assert viewer.scene.cache_bytes == held and viewer.scene.chosen == STARTED


def test_films_paths_and_snapshots_are_downloaded(viewer, tab):
    tab.window.click("text=Path and files")
    tab.choose("Path", "through the inputs")
    tab.fill("Frames", 3)
    film = imageio.imread(tab.downloaded("Make film.mp4"), plugin="pyav", extension=".mp4")
    assert len(film) == 3
    first = Image.fromarray(viewer.worker.call(None, lambda: viewer.scene.compare(0)[0].image))
    enlarged = first.resize(film.shape[2:0:-1], Image.Resampling.NEAREST)
    assert np.abs(film[0] - np.asarray(enlarged, np.float64)).mean() < 3 * CLOSE
    assert Image.open(tab.downloaded("Make film.gif")).n_frames == 3
    assert Image.open(tab.downloaded("Snapshot .png")).size == SIZE[::-1]
    there = tab.downloaded("Save path").read_bytes()
    tab.choose("Path", "orbit")
    assert json.loads(tab.downloaded("Save path").read_bytes()) != json.loads(there)
    path = {"name": "path.json", "mimeType": "application/json", "buffer": there}
    tab.window.set_input_files("input[name=file]", path)
    back = tab.window.get_by_label("Path", exact=True)
    eventually(lambda: back.input_value() == "file", "the path that was opened")
    again = tab.downloaded("Save path").read_bytes()
    for one, other in zip(read_flight(there, SIZE), read_flight(again, SIZE), strict=True):
        np.testing.assert_allclose(one.c2w, other.c2w, atol=1e-6)


def test_paths_are_previewed_and_then_the_camera_s_picture_comes_back(viewer, tab, monkeypatch):
    send, go = tab.ours.send, threading.Semaphore(0)

    def one_by_one(*picture):
        send(*picture)
        assert not tab.ours.playing or go.acquire(timeout=PATIENCE)

    monkeypatch.setattr(tab.ours, "send", one_by_one)
    tab.window.click("text=Path and files")
    tab.window.keyboard.press("k")
    tab.window.wait_for_selector("text=Drop keyframes (1)")
    tab.fly()
    tab.window.keyboard.press("k")
    tab.window.wait_for_selector("text=Drop keyframes (2)")
    tab.window.keyboard.press("h")
    assert tab.window.get_by_label("Path", exact=True).input_value() == "keyframes"
    tab.fill("Frames", 2)
    for kind in ("keyframes", "orbit", "through the inputs"):
        if kind != "keyframes":
            tab.choose("Path", kind)
        eventually(lambda: tab.shows(picture_at(viewer, 0)), "the picture of the first camera")
        tab.ours._cameras_shown.value = True
        assert any(each.visible for each in tab.ours.layers.frusta)
        tab.window.click("button:has-text('Preview (P)')")
        eventually(lambda: tab.ours.playing, "the path")
        for camera in tab.ours._paths._cameras():
            image = viewer.worker.call(
                None, lambda c=camera: viewer.scene.render(c.c2w, c.fxfycxcy).image
            )
            eventually(lambda i=image: tab.shows(on_canvas(i)), f"a picture of {kind}")
            assert not any(each.visible for each in tab.ours.layers.frusta)
            go.release()
        eventually(lambda: not tab.ours.playing, "the end")
        tab.ours._cameras_shown.value = False
    eventually(lambda: tab.shows(picture_at(viewer, 0)), "the picture of the first camera")


def test_a_slow_model_is_said_to_render_and_the_page_stays_usable(viewer, tab, monkeypatch):
    session, go = viewer.scene._session, threading.Event()
    render = session.render

    def slow(*camera):
        time.sleep(2 * SLOW)
        assert go.wait(PATIENCE)
        return render(*camera)

    monkeypatch.setattr(session, "render", slow)
    go.set()
    tab.window.keyboard.press("4")
    tab.cached(1, 3, 4)
    eventually(lambda: tab.ours._seconds > SLOW, "a slow picture")
    go.clear()
    tab.fly()
    tab.window.wait_for_selector("#badge:has-text('3 views'):has-text('rendering…')")
    tab.choose("Made from", "the nearest of them")
    tab.window.get_by_text("How many").wait_for()
    tab.window.evaluate("document.activeElement.blur()")  # or it would be typed there
    tab.fly()
    tab.choose("Made from", "all green photos")
    tab.window.get_by_text("How many").wait_for(state="hidden")
    assert "rendering…" in tab.window.inner_text("#badge")
    go.set()
    eventually(tab.shows_its_camera, "the picture of the last camera")
    tab.window.wait_for_selector("#badge:not(:has-text('rendering'))")


def test_another_scene_is_chosen_and_one_that_cannot_be_read_is_a_notice(viewer, tab, monkeypatch):
    first = tab.pixels()

    def broken(*_):
        raise InputError("00003.png: is no picture")

    with monkeypatch.context() as patched:
        patched.setattr(viewer, "_open", broken)
        tab.choose("Scene", "more noise")
        tab.window.wait_for_selector("text=00003.png: is no picture")
    scene = tab.window.get_by_label("Scene", exact=True)
    eventually(lambda: scene.input_value() == "noise", "the scene that is shown")
    controls = tab.ours._cameras_shown
    controls.value = False
    tab.choose("Scene", "more noise")
    eventually(lambda: viewer.scene.name == "more noise", "the other scene")
    eventually(lambda: tab.ours._cameras_shown is not controls, "its controls")
    tab.ours._cameras_shown.value = False
    assert np.abs(picture_at(viewer, 0) - first).mean() > OTHER
    eventually(lambda: tab.shows(picture_at(viewer, 0)), "its picture")


def test_a_window_of_another_shape_shows_as_much(viewer, tab):
    tab.window.set_viewport_size({**WINDOW, "width": 664})
    eventually(lambda: tab.ours.window.aspect < 1, "an upright window")
    fov = fov_of(viewer.scene.intrinsics(0), SIZE, tab.ours.window.aspect)
    eventually(lambda: np.isclose(tab.ours.window.fov, fov, rtol=1e-3), "its field of view")
    tab.window.set_viewport_size(WINDOW)
    eventually(lambda: tab.shows(picture_at(viewer, 0)), "the picture of before")


def test_controls_lie_beside_the_picture_and_on_a_phone_under_it(browser, viewer, address, tab):
    strip = tab.window.locator("#photo-1").bounding_box()
    assert strip["x"] >= CANVAS[0]
    phone = {"width": 390, "height": 844}
    with opened(browser, viewer, address, viewport=phone) as other:
        sheet = other.window.locator(".mantine-Paper-root", has=other.window.locator("#photo-1"))
        below = (phone["height"] + phone["width"] * SIZE[0] / SIZE[1]) / 2
        box = sheet.bounding_box()
        assert (box["x"], box["width"]) == (0, phone["width"]) and box["y"] >= below - 1
        other.window.wait_for_selector("text=Click a photo to use it")  # on its bar


def test_two_browsers_share_the_photos_and_each_has_its_camera(browser, viewer, address, tab):
    stood = tab.position()
    with opened(browser, viewer, address) as other:
        other.fly()
        assert (tab.position() == stood).all()
        other.window.click("#photo-5")
        tab.cached(1, 3, 5)
        eventually(lambda: tab.shows(picture_at(viewer, 0)), "the picture of three photos")
        eventually(other.shows_its_camera, "its own picture")
    eventually(lambda: len(viewer.pages) == 1, "closed tabs are forgotten")


def test_a_browser_comes_back_to_a_viewer_that_was_started_again(browser, small_model):
    viewer = noise_viewer(small_model)
    with contextlib.ExitStack() as stack:
        stack.callback(viewer.worker.stop)
        with serving(viewer, "127.0.0.1", 0) as (address, port):
            tab = stack.enter_context(opened(browser, viewer, address))
        eventually(lambda: not viewer.pages, "no server, no page")
        tab.window.wait_for_function("window.away")
        viewer.change(None, lambda scene: scene.toggle(3))
        with serving(viewer, "127.0.0.1", port):
            tab.window.wait_for_function("!window.away")  # it loads again
            tab.cached(1, 3, 4)
            (tab.ours,) = viewer.pages.values()
            tab.ours._cameras_shown.value = False
            eventually(lambda: tab.shows(picture_at(viewer, 0)), "the picture is back")


def test_points_are_shown_where_they_are_until_they_are_switched_off(viewer, tab, monkeypatch):
    scene, (row, column) = viewer.scene, (270, 155)  # of the canvas
    assert not tab.ours._points_shown.visible  # without points there is no such control
    rows, columns = np.mgrid[row - 12 : row + 13, column - 12 : column + 13]
    scale, left = CANVAS[1] / SIZE[0], (CANVAS[0] - CANVAS[1] * SIZE[1] / SIZE[0]) / 2
    fx, fy, cx, cy = scene.intrinsics(0)
    x, y = ((columns - left) / scale - cx) / fx, ((rows + 0.5) / scale - cy) / fy
    here = 4 * np.stack([x, y, np.ones(x.shape)], axis=-1).reshape(-1, 3)
    c2w = scene.photos[0].c2w
    cloud = Cloud(here @ c2w[:3, :3].T + c2w[:3, 3], np.full(here.shape, (255, 0, 255), np.uint8))

    def damaged(most):
        raise InputError("points.ply: is damaged")

    def begin(read):
        monkeypatch.setattr(scene, "_clouds", [])
        monkeypatch.setattr(scene, "_read_points", read)
        viewer.worker.call(None, tab.ours.begin)
        tab.ours._cameras_shown.value = False
        tab.window.get_by_label("Show points", exact=True).click()

    begin(lambda most: cloud)

    patch = np.s_[row - 8 : row + 8, column - 8 : column + 8]
    eventually(lambda: np.abs(tab.pixels(patch) - (255, 0, 255)).mean() < CLOSE, "the points")
    rows, columns = np.nonzero(np.abs(tab.pixels() - picture_at(viewer, 0)).mean(-1) > 30)
    middle = rows.min() + rows.max(), columns.min() + columns.max()
    free = FREE[0].start, FREE[1].start
    np.testing.assert_allclose(np.divide(middle, 2) + free, (row, column), atol=3)
    assert 20 < np.ptp(rows) < 40 and 20 < np.ptp(columns) < 40
    tab.window.get_by_label("Show points", exact=True).click()
    eventually(lambda: tab.shows(picture_at(viewer, 0)), "the picture alone")
    begin(damaged)
    tab.window.wait_for_selector("text=points.ply: is damaged")
    eventually(lambda: not tab.ours._points_shown.value, "that there are none")


def test_a_clip_shows_what_it_reads_and_each_keyframe_as_it_comes(browser, small_model):
    go = threading.Semaphore(0)
    clip = noise_clip(before=lambda: go.acquire(timeout=PATIENCE))
    viewer = Viewer(photos=64, settings=Settings(size=SIZE))
    with contextlib.ExitStack() as stack:
        stack.callback(viewer.worker.stop)
        stack.callback(go.release, 100)
        address, _ = stack.enter_context(serving(viewer, "127.0.0.1", 0))
        window = browser.new_page(viewport=WINDOW)
        stack.callback(window.close)
        window.set_default_timeout(1000 * PATIENCE)
        window.goto(f"{address}?fixedDpr=1")
        window.wait_for_selector("#badge:has-text('starting…')")
        viewer.say("loading the model")
        window.wait_for_selector("#badge:has-text('loading the model…')")
        viewer.begin(small_model, clip)
        window.wait_for_selector("#badge:has-text('0 of 6 frames: looking for where')")
        (go.release(2), window.wait_for_selector("#badge:has-text('2 of 6 frames')"))
        tab = Tab(window, next(iter(viewer.pages.values())))
        eventually(lambda: tab.shows(on_canvas(clip.picture)), "the frame that was read")
        go.release(3)
        window.wait_for_selector("#photo-5[data-cached='1']")
        assert window.get_by_label("Show points", exact=True).is_checked()
        assert "5 of 6 frames" in window.inner_text("#badge")
        (go.release(), window.wait_for_selector("#photo-6[data-cached='1']"))
        window.click("#photo-6")
        window.wait_for_selector("#photo-6[data-cached='0']")
        assert viewer.scene.chosen == [0, 1, 2, 3, 4]
        window.get_by_label("Show points", exact=True).click()
        tab.ours._cameras_shown.value = False
        eventually(lambda: tab.shows(picture_at(viewer, 0)), "the first camera's picture")
