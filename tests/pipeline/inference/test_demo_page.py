"""The page of `demo` in Chromium, used as a person would: mouse, keys, fingers and files."""

import base64
import io
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from scipy.ndimage import distance_transform_edt
from skimage import data

from pipeline.config.compose import compose
from pipeline.inference import demo
from pipeline.inference.sources import LoadedInpainter
from tests.support.browser import Page, installed
from tests.support.demo_server import photograph, png, serving

pytestmark = pytest.mark.skipif(installed() is None, reason="no Chromium: apt-get install chromium")

HEIGHT, WIDTH = 197, 211
RADIUS = 18  # of the brush on the screen


def white(image, mask):
    return torch.ones_like(image)


@pytest.fixture(scope="module")
def chromium():
    with Page("about:blank") as page:
        yield page


@pytest.fixture
def opened(chromium, tmp_path):
    """Open the page of some models, without an image."""

    def open_page(address, width=1300, height=1000):
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        chromium.ask("Emulation.setDeviceMetricsOverride", **size)
        folder = str(tmp_path / "downloads")
        chromium.ask("Browser.setDownloadBehavior", behavior="allow", downloadPath=folder)
        chromium.errors.clear()
        chromium.requests.clear()
        chromium.open("http://{}:{}/".format(*address))
        return chromium

    return open_page


@pytest.fixture(scope="module")
def address():
    config = compose("demo", ["model=telea", "against=mean_color", "port=0"]).config
    with serving(config, demo.load_inpainters(config)) as place:
        yield place


@pytest.fixture(scope="module")
def whitening():
    """Address of a page whose only model fills with white."""
    config = compose("demo", ["model=white", "port=0"]).config
    with serving(config, [LoadedInpainter(white, "white", {})]) as place:
        yield place


@pytest.fixture
def page(opened, whitening, tmp_path):
    """The page with the photograph, cat.png."""
    page = opened(whitening)
    choose(page, tmp_path, png(photograph()))
    return page


def choose(page, folder, content, selector="#file", name="cat.png"):
    (folder / name).write_bytes(content)
    page.choose(selector, folder / name)
    if selector == "#file":
        page.until("!document.getElementById('run').disabled")


def stage(page):
    """Left, top and width of the stage."""
    return page.run(
        "(() => { const b = document.getElementById('stage').getBoundingClientRect();"
        " return [b.left, b.top, b.width]; })()"
    )


def on_screen(page, x, y, image_width=WIDTH):
    """Where a point of the image is on the screen, at fit."""
    left, top, width = stage(page)
    return left + x * width / image_width, top + y * width / image_width


def do(page, *steps):
    """Do steps of a person: drag, click and press; a drag's positions are the image's at fit."""
    for kind, *values in steps:
        if kind == "drag":
            points = [on_screen(page, *values[i : i + 2]) for i in range(0, 4, 2)]
            page.drag(*points, button=(values[4:] or ["left"])[0])
        elif kind == "wheel":
            x, y = on_screen(page, *values[:2])
            event = {"type": "mouseWheel", "deltaX": 0, "deltaY": values[2]}
            page.ask("Input.dispatchMouseEvent", x=x, y=y, **event)
            page.run("new Promise(requestAnimationFrame)")
        else:
            {"click": page.click, "press": page.press, "down": page.key, "up": page.key}[kind](
                *({"down": ["keyDown"], "up": ["keyUp"]}.get(kind, [])), *values
            )


def dot(x, y):
    return ("drag", x, y, x, y)


def saved(page, folder, name="cat_mask.png"):
    """The mask as Save mask writes it, True = hole."""
    page.click("#save")
    file, deadline = folder / "downloads" / name, time.monotonic() + 60
    while not file.exists():
        assert time.monotonic() < deadline, "nothing was saved"
        time.sleep(0.02)
    pixels = np.asarray(Image.open(file).convert("RGB"))
    file.unlink()
    assert set(np.unique(pixels)) <= {0, 255} and np.ptp(pixels, 2).max() == 0
    return pixels[..., 0] > 0


def assert_painted(mask, scale, *drawn):
    """Compare with strokes (adds, x, y, to_x, to_y, radius on the screen), except their edges.

    scale: screen pixels of a pixel of the image, at fit.
    """
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    expected, edge = np.zeros((HEIGHT, WIDTH), bool), np.zeros((HEIGHT, WIDTH), bool)
    for adds, from_x, from_y, to_x, to_y, radius in drawn:
        dx, dy = to_x - from_x, to_y - from_y
        part = ((x - from_x) * dx + (y - from_y) * dy) / max(1e-9, dx * dx + dy * dy)
        part = part.clip(0, 1)
        away = np.hypot(x - from_x - part * dx, y - from_y - part * dy) - radius / scale
        expected[away < 0] = adds
        edge = (edge & (away > -1)) | (abs(away) <= 1)
    assert (mask == expected)[~edge].all()
    assert mask.any() == expected.any()


def scale_of(page):
    return stage(page)[2] / WIDTH


A, B = ("drag", 60, 80, 110, 80), ("drag", 150, 40, 150, 120)
DOT = dot(85, 80)
ADD_A, ADD_B, CUT = (1, *A[1:], RADIUS), (1, *B[1:], RADIUS), (0, *DOT[1:], RADIUS)
UNDO, REDO = ("press", "Control+z"), ("press", "Control+Shift+Z")
EDITS = {
    "a stroke": ([A], [ADD_A]),
    "a click is a dot": ([DOT], [(1, *DOT[1:], RADIUS)]),
    "the right button paints nothing": ([A, (*B, "right")], [ADD_A]),
    "undo": ([A, B, UNDO], [ADD_A]),
    "undo on a Mac": ([A, B, ("press", "Meta+z")], [ADD_A]),
    "undo of all, and once more": ([A, B, UNDO, UNDO, UNDO], []),
    "redo": ([A, B, UNDO, UNDO, REDO, REDO, REDO], [ADD_A, ADD_B]),
    "redo by Ctrl+Y": ([A, B, UNDO, ("press", "Control+y")], [ADD_A, ADD_B]),
    "buttons": ([A, B, *[("click", f"#{i}") for i in ("undo", "undo", "redo")]], [ADD_A]),
    "a new stroke ends redo": ([A, UNDO, B, REDO], [ADD_B]),
    "eraser": ([A, ("press", "e"), DOT], [ADD_A, CUT]),
    "eraser by button, undone": ([A, ("click", "label:has(#eraser)"), DOT, UNDO], [ADD_A]),
    "brush after eraser": (
        [A, ("press", "e"), DOT, ("press", "b"), B],
        [ADD_A, CUT, ADD_B],
    ),
    "clear": ([A, ("click", "#clear")], []),
    "clear undone": ([A, B, ("click", "#clear"), UNDO], [ADD_A, ADD_B]),
    "clear undone and redone": ([A, ("click", "#clear"), UNDO, REDO], []),
    "a larger brush": ([("press", "]", "]"), A], [(*ADD_A[:5], 28)]),  # 36 * 1.25 * 1.25
    "a smaller brush": ([A, ("press", "["), B], [ADD_A, (*ADD_B[:5], 14.5)]),
    "out of the image": ([("drag", 100, 100, 250, 100)], [(1, 100, 100, 250, 100, RADIUS)]),
    "keys of a field are its own": (
        [A, ("click", "#grow"), ("press", "e", "Control+z"), B],
        [ADD_A, ADD_B],
    ),
    "keys after a field": ([A, ("click", "#grow"), B, ("press", "e"), DOT], [ADD_A, ADD_B, CUT]),
    "keys after a button": ([A, ("click", "#undo"), REDO, ("press", "e"), DOT], [ADD_A, CUT]),
}


@pytest.mark.parametrize("name", EDITS)
def test_the_saved_mask_is_what_was_painted(page, tmp_path, name):
    steps, drawn = EDITS[name]
    do(page, *steps)
    assert_painted(saved(page, tmp_path), scale_of(page), *drawn)
    assert page.errors == []


IN, OUT = [[("wheel", 85, 80, turn)] * 3 for turn in (-100, 100)]
Z = 2**0.9  # of three notches
PANNED = (85 - 10 / Z, 80 + 10 / Z, Z)
SPACE = [("down", " "), ("drag", 85, 80, 95, 70), ("up", " ")]
CENTER = (WIDTH / 2 + (85 - WIDTH / 2) / 1.5, HEIGHT / 2 + (80 - HEIGHT / 2) / 1.5, 1.5)
VIEWS = {  # steps, then the point of the image where 85, 80 was, and how much larger it is shown
    "wheel": (IN, (85, 80, Z)),
    "wheel back": (IN + OUT, (85, 80, 1)),
    "no smaller than fit": (OUT, (85, 80, 1)),
    "0": ([*IN, ("press", "0")], (85, 80, 1)),
    "Fit": ([*IN, ("click", "#fit")], (85, 80, 1)),
    "+": ([("press", "+")], CENTER),
    "+ and -": ([("press", "+", "+", "-")], CENTER),
    "buttons": ([("click", "#in"), ("click", "#in"), ("click", "#out")], CENTER),
    "middle button": ([*IN, ("drag", 85, 80, 95, 70, "middle")], PANNED),
    "Space": ([*IN, *SPACE], PANNED),
    "Space after a click on a button": ([*IN, ("click", "#clear"), *SPACE], PANNED),
    "to the edge": ([*IN, *[("drag", 10, 80, 200, 80, "middle")] * 2], (85 / Z, 80, Z)),
    "at fit there is nothing to pan": ([("drag", 85, 80, 95, 70, "middle")], (85, 80, 1)),
}


@pytest.mark.parametrize("name", VIEWS)
def test_a_zoomed_and_panned_image_is_painted_where_the_pointer_is(page, tmp_path, name):
    steps, (x, y, zoomed) = VIEWS[name]
    do(page, *steps, dot(85, 80))
    mask = saved(page, tmp_path)
    assert_painted(mask, scale_of(page), (1, x, y, x, y, RADIUS / zoomed))
    assert page.errors == []


UP = ()
TOUCHES = {  # places of fingers one after the other, then what is painted
    "one finger": ([[(60, 80)], [(80, 80)], [(110, 80)], UP], [ADD_A]),
    "two fingers": ([[(60, 80), (110, 80)], [(50, 80), (120, 80)], UP], []),
    "a second finger": (
        [[(60, 80)], [(70, 80)], [(70, 80), (110, 80)], [(70, 80), (120, 80)], UP],
        [],
    ),
    "the finger that stays": (
        [[(60, 80), (110, 80)], [(50, 80), (110, 80)], [(50, 80)], [(50, 120)], UP],
        [],
    ),
    "a second finger that comes again": (
        [[(60, 80), (110, 80)], [(60, 80)], [(60, 80), (110, 80)], [(60, 90), (110, 90)], UP],
        [],
    ),
    "two, and then one": (
        [[(60, 80), (110, 80)], [(60, 90), (110, 90)], UP, [(60, 80)], [(110, 80)], UP],
        [ADD_A],
    ),
}


def touch(page, frames):
    page.ask("Emulation.setTouchEmulationEnabled", enabled=True, maxTouchPoints=2)
    down = False
    for frame in frames:
        points = [on_screen(page, *point) for point in frame]
        kind = "touchMove" if down and len(points) <= down else "touchStart"
        places = [{"x": x, "y": y, "id": i} for i, (x, y) in enumerate(points)]
        page.ask("Input.dispatchTouchEvent", type=kind if frame else "touchEnd", touchPoints=places)
        down = len(frame)
    page.ask("Emulation.setTouchEmulationEnabled", enabled=False)


# Row 29
@pytest.mark.parametrize("name", TOUCHES)
def test_one_finger_paints_and_two_never_do(page, tmp_path, name):
    frames, drawn = TOUCHES[name]
    touch(page, frames)
    assert_painted(saved(page, tmp_path), scale_of(page), *drawn)
    assert page.run("document.getElementById('undo').disabled") != bool(drawn)


def test_two_fingers_zoom_and_pan_the_image(page, tmp_path):
    touch(page, [[(65, 80), (105, 80)], [(55, 80), (115, 80)], [(45, 80), (125, 80)], UP])
    do(page, dot(85, 80))
    assert_painted(saved(page, tmp_path), scale_of(page), (1, 85, 80, 85, 80, RADIUS / 2))
    touch(page, [[(65, 80), (105, 80)], [(85, 70), (125, 70)], UP])
    do(page, ("press", "Control+z"), dot(85, 80))
    assert_painted(saved(page, tmp_path), scale_of(page), (1, 75, 85, 75, 85, RADIUS / 2))
    assert page.run("visualViewport.scale") == 1


def test_the_outline_is_the_brush(page):
    ring = (
        "(() => { const r = document.getElementById('ring'), b = r.getBoundingClientRect();"
        " return [!r.hidden, b.left + b.width / 2, b.top + b.height / 2, b.width, b.height]; })()"
    )
    assert not page.run(ring)[0]
    x, y = on_screen(page, 85, 80)
    for keys, width in (((), 36), (("+",), 36), (("]",), 45), (("[", "["), 29)):
        page.mouse("mouseMoved", x, y, "none")
        page.press(*keys)
        assert page.run(ring) == [True, *[pytest.approx(v, abs=0.1) for v in (x, y, width, width)]]
    page.mouse("mouseMoved", x, 5, "none")
    assert not page.run(ring)[0]


def rectangle():
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[60:100, 50:120] = 1
    return mask


LAYER = np.dstack([np.full((HEIGHT, WIDTH, 3), (9, 200, 9), np.uint8), rectangle() * 255])
PAINT = rectangle()[..., None] * np.uint8([255, 0, 0])
MASKS = {
    "white on black": rectangle() * 255,
    "0 and 1": rectangle(),
    "red on black": PAINT,
    "a layer": LAYER,
    "65535": rectangle().astype(np.uint16) * 65535,
}


@pytest.mark.parametrize("name", MASKS)
def test_a_loaded_mask_is_read_as_everywhere_and_can_be_undone(page, tmp_path, name):
    do(page, B)
    before = saved(page, tmp_path)
    choose(page, tmp_path, png(MASKS[name]), "#load", "mask.png")
    page.until("steps.length === 2")
    assert (saved(page, tmp_path) == (rectangle() == 1)).all()
    do(page, UNDO)
    assert (saved(page, tmp_path) == before).all()
    do(page, REDO, DOT)
    assert (saved(page, tmp_path) >= (rectangle() == 1)).all()


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (
            png(rectangle()[:, :99] * 255),
            "the mask is 99×197, the image is 211×197: use a mask of the image's size",
        ),
        (png(photograph()), "mask: the mask looks like a photograph or is blurred"),
        (b"text", "mask cannot be read as an image: give a PNG or JPEG"),
    ],
)
def test_a_mask_that_does_not_fit_gives_one_line_and_leaves_what_was_painted(
    page, tmp_path, content, line
):
    do(page, A)
    choose(page, tmp_path, content, "#load", "mask.png")
    page.until("document.getElementById('message').textContent")
    text = page.run("document.getElementById('message').textContent")
    assert text.startswith(line) and "\n" not in text
    assert_painted(saved(page, tmp_path), scale_of(page), ADD_A)


def test_a_saved_mask_loads_as_it_was(page, tmp_path):
    do(page, A, ("press", "e"), DOT)
    before = saved(page, tmp_path)
    choose(page, tmp_path, png(before * np.uint8(255)), "#load", "cat_mask.png")
    page.until("steps.length === 3")
    assert (saved(page, tmp_path) == before).all()


def remove(page):
    page.click("#run")
    page.until("!document.getElementById('run').disabled")
    assert page.run("document.getElementById('message').textContent") == ""


def result(page, folder, number=0):
    """The result as its Save writes it."""
    page.click(f"figure:nth-of-type({number + 2}) a.save")
    file, deadline = folder / "downloads" / "filled.png", time.monotonic() + 60
    while not file.exists():
        assert time.monotonic() < deadline, "nothing was saved"
        time.sleep(0.02)
    pixels = np.asarray(Image.open(file).convert("RGB"))
    file.unlink()
    return pixels


@pytest.mark.parametrize(
    ("typed", "grow", "feather"),
    [
        ({}, 0, 0),
        ({"grow": "6"}, 6, 0),
        ({"grow": "6", "feather": "4"}, 6, 4),
        ({"feather": "5"}, 5, 5),  # feather is a part of grow
        ({"grow": "6", "feather": "4", "grow ": "3"}, 3, 3),
    ],
)
def test_grow_and_feather_change_what_is_filled(page, tmp_path, typed, grow, feather):
    do(page, A)
    hole = saved(page, tmp_path)
    for name, text in typed.items():
        page.run(f"document.getElementById('{name.strip()}').select()")
        page.ask("Input.insertText", text=text)
        page.press("Tab")
    remove(page)
    after, before = result(page, tmp_path).astype(int), photograph()
    away = distance_transform_edt(~hole)
    assert (after[away > grow] == before[away > grow]).all()
    assert (after[away <= grow - feather] == 255).all()
    rim = (away > grow - feather) & (away <= grow)
    share = ((grow + 1 - away) / (feather + 1))[rim, None]
    assert abs(after[rim] - (share * 255 + (1 - share) * before[rim])).max(initial=0) <= 1.6
    assert (saved(page, tmp_path) == hole).all()


def test_a_width_that_is_no_number_gives_one_line(page):
    do(page, A, ("click", "#grow"), ("press", "-"))
    page.click("#run")
    page.until("!document.getElementById('run').disabled")
    text = page.run("document.getElementById('message').textContent")
    assert text.startswith("invalid grow=")


def test_the_commands_grow_and_feather_are_where_the_page_starts(opened):
    config = compose("demo", ["model=white", "mask.grow=7", "mask.feather=2", "port=0"]).config
    with serving(config, [LoadedInpainter(white, "white", {})]) as place:
        page = opened(place)
        values = "['grow', 'feather'].map(i => document.getElementById(i).value)"
        assert page.run(values) == ["7", "2"]


def test_the_result_becomes_the_original(page, tmp_path):
    do(page, A, *IN)
    first = saved(page, tmp_path)
    remove(page)
    filled = result(page, tmp_path)
    page.click(".continue")
    page.until("!document.querySelector('img.result').src")
    assert page.run("document.getElementById('undo').disabled") and not saved(page, tmp_path).any()
    do(page, ("press", "0"), B)
    second = saved(page, tmp_path)
    remove(page)
    after = result(page, tmp_path)
    assert (filled[first] == 255).all() and (filled[~first] == photograph()[~first]).all()
    assert (after[second] == 255).all() and (after[~second] == filled[~second]).all()


def test_the_sample_is_a_photograph(opened, whitening, tmp_path):
    page = opened(whitening)
    page.click("#sample")
    page.until("!document.getElementById('run').disabled")
    x, y = on_screen(page, 300, 200, 600)
    page.drag((x, y))
    mask = saved(page, tmp_path, "sample_mask.png")
    assert mask.shape == (400, 600) and mask[200, 300]
    remove(page)
    assert (result(page, tmp_path)[~mask] == data.coffee()[~mask]).all()


class Gate:
    """A model whose first answer waits until `open` is set."""

    def __init__(self):
        self.asked, self.open = threading.Event(), threading.Event()

    def __call__(self, image, mask):
        self.asked.set()
        assert self.open.wait(60)
        return white(image, mask)


@pytest.fixture
def gate(opened, tmp_path):
    gate = Gate()
    config = compose("demo", ["model=slow", "port=0"]).config
    with serving(config, [LoadedInpainter(gate, "slow", {})]) as place:
        page = opened(place)
        choose(page, tmp_path, png(photograph()))
        do(page, A)
        gate.page = page
        yield gate
        gate.open.set()


CLOCK = "document.querySelector('.clock').textContent"


def test_a_clock_runs_until_the_answer(gate):
    page = gate.page
    page.click("#run")
    page.until(f"/^[0-9]+[.][0-9] s$/.test({CLOCK})")
    first = page.run(CLOCK)
    page.until(f"{CLOCK} !== {first!r}")
    gate.open.set()
    page.until("!document.getElementById('run').disabled")
    last = page.run(CLOCK)
    page.run("new Promise(done => setTimeout(done, 250))")
    assert page.run(CLOCK) == last and float(last.split()[0]) > float(first.split()[0])


CHANGED = "the mask changed: press Remove again"
CHANGES = {
    "a stroke": ([B], CHANGED),
    "undo": ([UNDO], CHANGED),
    "clear": ([("click", "#clear")], CHANGED),
    "grow": ([("click", "#grow"), ("press", "2")], CHANGED),
    "a mask": ("#load", CHANGED),
    "an image": ("#file", ""),
}


# Row 29
@pytest.mark.parametrize("name", CHANGES)
def test_an_answer_for_an_earlier_image_or_mask_is_dropped(gate, tmp_path, capfd, name):
    page, (change, line) = gate.page, CHANGES[name]
    page.run(
        "globalThis.shown = []; new MutationObserver(all => shown.push(...all.filter("
        "one => one.target.src))).observe(document.querySelector('img.result'),"
        " {attributeFilter: ['src']})"
    )
    page.click("#run")
    assert gate.asked.wait(60)
    if isinstance(change, str):
        content = photograph()[:, :150] if change == "#file" else rectangle() * 255
        choose(page, tmp_path, png(content), change, "new.png")
    else:
        do(page, *change)
    page.until("!document.getElementById('run').disabled")
    assert page.run("document.getElementById('message').textContent") == line
    assert page.run(CLOCK) == ""
    width = 150 if name == "an image" else WIDTH
    gate.open.set()
    page.drag(on_screen(page, 20, 20, width))
    mask = saved(page, tmp_path, "new_mask.png" if name == "an image" else "cat_mask.png")
    remove(page)  # answers come in the order of the requests
    assert page.run("shown.length") == 1
    assert (result(page, tmp_path)[mask] == 255).all() and mask.shape == (HEIGHT, width)
    assert page.errors == []
    assert capfd.readouterr() == ("", "")


def test_a_server_that_has_stopped_is_named(opened, tmp_path):
    config = compose("demo", ["model=white", "port=0"]).config
    with serving(config, [LoadedInpainter(white, "white", {})]) as place:
        page = opened(place)
        choose(page, tmp_path, png(photograph()))
        do(page, A)
    page.click("#run")
    page.until("document.getElementById('message').textContent")
    text = page.run("document.getElementById('message').textContent")
    assert text == "no answer: is the command demo still running?"


@pytest.mark.parametrize(("width", "height"), [(1280, 800), (360, 740)])
def test_everything_fits_the_window_and_is_reached_by_keyboard(
    opened, address, tmp_path, width, height
):
    page = opened(address, width, height)
    choose(page, tmp_path, png(photograph()))
    do(page, A, B, UNDO)
    remove(page)
    assert page.run("document.documentElement.scrollWidth <= innerWidth")
    page.run("scrollTo(0, 0)")
    count = page.run("document.querySelectorAll('button, input, a[href]').length")
    seen = []
    for _ in range(count):
        page.press("Tab")
        seen.append(
            page.run(
                "(() => { const e = document.activeElement, shown = e.closest('.button') || e;"
                " const b = shown.getBoundingClientRect();"
                " return [e.id || e.className || e.tagName, getComputedStyle(shown).outlineStyle,"
                " b.left >= 0 && b.right <= innerWidth]; })()"
            )
        )
    names = [name for name, _, _ in seen]
    ids = "file sample brush size undo redo clear out in fit load save grow feather run"
    assert [name for name in names if name in ids.split()] == ids.split()
    assert names.count("continue") == names.count("save button") == 2
    places = [place for name, *place in seen if name != "BODY"]  # left by the last, then entered
    assert {(outline != "none", inside) for outline, inside in places} == {(True, True)}
    nodes = page.ask("Accessibility.getFullAXTree")["nodes"]
    roles = {"button", "radio", "slider", "spinbutton", "link"}
    controls = [n for n in nodes if n.get("role", {}).get("value") in roles and not n["ignored"]]
    assert len(controls) == count and all(node["name"]["value"] for node in controls)


def test_painting_removes_what_was_painted_and_nothing_else(opened, address, tmp_path):
    page = opened(address)
    assert page.run("document.getElementById('run').disabled")
    choose(page, tmp_path, png(photograph()))
    do(page, A)
    painted = saved(page, tmp_path)
    assert 0 < painted.mean() < 0.3
    remove(page)
    shown = [result(page, tmp_path, number) for number in (0, 1)]
    for after in shown:
        assert (after[~painted] == photograph()[~painted]).all()
        assert (after[painted] != photograph()[painted]).mean() > 0.5
    assert (shown[0] != shown[1]).any()  # two models side by side
    own = page.run("document.querySelector('img.result').src")
    for keys in (False, True):  # by a click, and by Enter
        if keys:
            page.run("document.querySelector('button.stage').focus()")
            page.press("Enter")
        else:
            page.click("button.stage")
        source = "document.querySelector('img.result').src"
        page.until(f"{source}.startsWith('data:') === {'false' if keys else 'true'}")
    assert page.run("document.querySelector('img.result').src") == own
    base = page.run("location.href")
    assert [u for u in page.requests if not u.startswith((base, f"blob:{base}"))] == []
    assert page.errors == []


def turned(image, kind, orientation, **options):
    """A file whose EXIF orientation turns its stored pixels to `image`."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = image.transpose(UNDO_TURN[orientation])
    buffer = io.BytesIO()
    stored.save(buffer, kind, exif=exif, **options)
    assert (np.asarray(ImageOps.exif_transpose(Image.open(buffer))).shape) == np.shape(image)
    return buffer.getvalue()


UNDO_TURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    6: Image.Transpose.ROTATE_90,
    8: Image.Transpose.ROTATE_270,
}
SQUARE = Image.fromarray(photograph()[:192, :192])
TURNED = {
    "square WebP, 6": turned(SQUARE, "WEBP", 6, lossless=True),
    "square WebP, 2": turned(SQUARE, "WEBP", 2, lossless=True),
    "square PNG, 3": turned(SQUARE, "PNG", 3),
    "square JPEG, 6": turned(SQUARE, "JPEG", 6, quality=95),
    "oblong WebP, 8": turned(SQUARE.crop((0, 0, 192, 150)), "WEBP", 8, lossless=True),
    "TIFF, 6": turned(SQUARE, "TIFF", 6),
}


# Row 29
@pytest.mark.parametrize("name", TURNED)
def test_the_place_that_was_painted_is_filled_whatever_the_orientation(
    opened, address, tmp_path, name
):
    page = opened(address)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(TURNED[name]))))
    choose(page, tmp_path, TURNED[name])
    url = page.run("document.getElementById('image').toDataURL()")
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))))
    assert (shown[..., :3] == upright).all()
    page.drag(on_screen(page, 40, 20, upright.shape[1]))
    painted = saved(page, tmp_path)
    assert painted[20, 40] and not painted[100:].any()
    remove(page)
    filled = result(page, tmp_path)
    assert (filled[~painted] == upright[~painted]).all()
    assert (filled[painted] != upright[painted]).any()


def test_of_two_files_the_one_opened_last_is_shown(opened, address, tmp_path):
    page = opened(address)
    page.run(
        "globalThis.real = fetch; globalThis.held = [];"
        "globalThis.fetch = (...all) => new Promise(done => held.push(async () => {"
        " const answer = await real(...all), copy = answer.clone(); done(answer);"
        " await createImageBitmap(await copy.blob()); }));"
    )
    for name, image in (("first.png", photograph()), ("last.png", photograph()[:100, :150])):
        (tmp_path / name).write_bytes(png(image))
        page.choose("#file", tmp_path / name)
    page.until("held.length === 2")
    page.run("held[1]()")
    page.until("document.getElementById('image').width === 150")
    page.run("held[0]()")
    page.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert page.run("document.getElementById('image').width") == 150
