import base64
import http.client
import io
import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image, ImageOps
from skimage import data

from pipeline.config.compose import compose
from pipeline.inference import demo
from pipeline.inference.sources import LoadedInpainter
from tests.support.browser import Page, installed

FORM = {"Content_Type": "multipart/form-data; boundary=xx", "X_Lacuna": "demo"}
browser = pytest.mark.skipif(installed() is None, reason="no Chromium: apt-get install chromium")


def photograph():
    return data.chelsea()[40:237, 100:311]  # 211×197


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def address():
    config = compose("demo", ["model=telea", "against=mean_color", "port=0"]).config
    with serving(config, demo.load_inpainters(config)) as place:
        yield place


@contextmanager
def serving(config, inpainters):
    server = demo.make(config, inpainters)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield "127.0.0.1", server.port
    server.shutdown()


def ask(address, method, path, body=None, **headers):
    connection = http.client.HTTPConnection(*address, timeout=30)
    connection.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()})
    answer = connection.getresponse()
    status, content = answer.status, answer.read()
    connection.close()
    return status, content


def multipart(image, mask):
    lines = []
    for name, content in (("image", image), ("mask", mask)):
        head = f'--xx\r\nContent-Disposition: form-data; name="{name}"; filename="f"\r\n\r\n'
        lines += [head.encode(), content, b"\r\n"]
    return b"".join([*lines, b"--xx--\r\n"])


def fill(address, image, mask, **headers):
    return ask(address, "POST", "/fill/0", multipart(image, mask), **{**FORM, **headers})


def hole(shape=(197, 211)):
    mask = np.zeros(shape, np.uint8)
    mask[60:100, 50:120] = 255
    return mask


def test_a_posted_image_comes_back_changed_only_in_its_hole(address):
    before = photograph()
    status, body = fill(address, png(before), png(hole()))
    after = np.asarray(Image.open(io.BytesIO(body)))
    assert status == 200
    assert (after[hole() == 0] == before[hole() == 0]).all()
    assert (after[hole() > 0] != before[hole() > 0]).mean() > 0.5


@pytest.mark.parametrize(
    ("image", "mask", "line"),
    [
        (b"not an image", png(hole()), b"cannot be read as an image"),
        (png(photograph()), png(hole((50, 60)) * 0), b"differ in size"),
        (png(photograph()), png(hole() * 0), b"nothing is painted yet"),
        (png(photograph()), png(hole() * 0 + 255), b"the mask covers all of the image"),
    ],
)
def test_input_that_cannot_be_filled_gives_a_one_line_error(address, image, mask, line):
    status, body = fill(address, image, mask)
    assert status == 400 and line in body and b"\n" not in body


def test_pages_of_other_sites_can_neither_read_nor_use_it(address):
    image, mask = png(photograph()), png(hole())
    assert ask(address, "GET", "/", Host="evil.example")[0] == 403
    assert fill(address, image, mask, Host="evil.example:80")[0] == 403
    assert fill(address, image, mask, X_Lacuna="no")[0] == 403


def test_only_the_page_and_the_models_of_the_command_are_served(address):
    image, mask = png(photograph()), png(hole())
    assert ask(address, "GET", "/../pipeline/demo.py")[0] == 404
    assert ask(address, "POST", "/fill/7", multipart(image, mask), **FORM) == (
        404,
        b"no such model",
    )
    assert ask(address, "GET", "/fill/0")[0] == 405
    connection = http.client.HTTPConnection(*address, timeout=30)
    connection.request("GET", "/")
    headers = connection.getresponse().headers
    connection.close()
    assert headers["Content-Security-Policy"].startswith("default-src 'none'; ")
    assert headers["X-Content-Type-Options"] == "nosniff"


def test_a_request_must_announce_its_size_and_keep_to_the_limit(address):
    too_much = {"Content_Length": str(demo.LIMIT + 1), "X_Lacuna": "demo"}
    assert ask(address, "POST", "/fill/0", b"", **too_much)[0] == 413
    for length in ("abc", "-1", ""):
        nonsense = {"Content_Length": length, "X_Lacuna": "demo"}
        assert ask(address, "POST", "/fill/0", b"", **nonsense)[0] == 413


# Row 29
def test_a_client_that_goes_away_leaves_no_trace(address, capfd):
    head = "POST /fill/0 HTTP/1.1\r\nHost: localhost\r\nX-Lacuna: demo\r\nContent-Length: 9999\r\n"
    head += "Content-Type: multipart/form-data; boundary=xx\r\n\r\n"
    body = multipart(png(photograph()), png(hole()))
    whole = head.replace("9999", str(len(body))).encode() + body
    for sent in (b"POST /fi", head.encode(), head.encode() + body[:500], whole):
        with socket.create_connection(address) as client:
            client.sendall(sent)
            reset = struct.pack("ii", 1, 0)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
    assert fill(address, png(photograph()), png(hole()))[0] == 200
    assert capfd.readouterr() == ("", "")


def test_a_model_that_fails_gives_one_line_and_the_server_keeps_running():
    def full(image, mask):
        raise RuntimeError("out of memory\nand a long trace")

    config = compose("demo", ["model=large", "port=0"]).config
    with serving(config, [LoadedInpainter(full, "large", {})]) as place:
        for _ in range(2):
            answer = fill(place, png(photograph()), png(hole()))
            assert answer == (500, b"RuntimeError: out of memory")


def test_images_are_filled_one_at_a_time():
    running, most = 0, 0

    def slow(image, mask):
        nonlocal running, most
        running += 1
        most = max(most, running)
        time.sleep(0.05)
        running -= 1
        return image

    config = compose("demo", ["model=slow", "port=0"]).config
    with (
        serving(config, [LoadedInpainter(slow, "slow", {})]) as place,
        ThreadPoolExecutor(4) as clients,
    ):
        posted = [clients.submit(fill, place, png(photograph()), png(hole())) for _ in range(4)]
        assert [each.result()[0] for each in posted] == [200] * 4
    assert most == 1


def test_it_listens_on_this_machine_only_unless_asked():
    assert compose("demo", ["model=telea"]).config.host == "127.0.0.1"


# Row 29
def test_a_port_in_use_gives_a_one_line_error(address):
    config = compose("demo", ["model=telea", f"port={address[1]}"]).config
    line = rf"cannot listen on 127.0.0.1:{address[1]} \(Address already in use\): choose another"
    with pytest.raises(ValueError, match=line):
        demo.make(config, [])


@browser
def test_in_a_browser_painting_removes_what_was_painted_and_nothing_else(address):
    host, port = address
    with Page(f"http://{host}:{port}/") as page:
        assert page.run("document.getElementById('run').disabled")
        choose(page, png(photograph()))
        left, top, width = box(page)
        scale = width / 211
        page.run("document.getElementById('size').value = 40")
        page.mouse("mousePressed", left + 60 * scale, top + 80 * scale)
        for x in range(60, 111, 10):
            page.mouse("mouseMoved", left + x * scale, top + 80 * scale)
        page.mouse("mouseReleased", left + 110 * scale, top + 80 * scale)
        painted = paint_of(page)
        assert 0 < (painted > 0).mean() < 0.3
        page.run("document.getElementById('run').click()")
        results = "[...document.querySelectorAll('img.result')]"
        page.until(f"{results}.every(i => i.src && i.complete && i.naturalWidth === 211)")
        shown = [decoded(page.run(pixels_of(i))) for i in (0, 1)]
        known = painted == 0
        for after in shown:
            assert (after[known][:, :3] == photograph()[known]).all()
            inside = painted > 127
            assert (after[inside][:, :3] != photograph()[inside]).mean() > 0.5
        assert (shown[0] != shown[1]).any()  # two models side by side
        assert page.run("[...document.querySelectorAll('a.save')].every(a => !a.hidden && a.href)")
        page.run(f"{results}[0].click()")
        page.until(f"{results}[0].src.startsWith('data:')")  # flipped to the original
        assert page.run("document.getElementById('message').textContent") == ""
        ours = (f"http://{host}:{port}/", f"blob:http://{host}:{port}/")
        assert [u for u in page.requests if not u.startswith(ours)] == []


def turned(image, kind, orientation, **options):
    """A file whose EXIF orientation turns its stored pixels to `image`."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = image.transpose(UNDO[orientation])
    buffer = io.BytesIO()
    stored.save(buffer, kind, exif=exif, **options)
    assert (np.asarray(ImageOps.exif_transpose(Image.open(buffer))).shape) == np.shape(image)
    return buffer.getvalue()


UNDO = {
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
@browser
@pytest.mark.parametrize("name", TURNED)
def test_the_place_that_was_painted_is_filled_whatever_the_orientation(address, name):
    host, port = address
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(TURNED[name]))))
    with Page(f"http://{host}:{port}/") as page:
        choose(page, TURNED[name])
        shown = decoded(page.run("document.getElementById('image').toDataURL()"))[..., :3]
        assert (shown == upright).all()
        left, top, width = box(page)
        scale = width / upright.shape[1]
        for kind in ("mousePressed", "mouseReleased"):
            page.mouse(kind, left + 40 * scale, top + 20 * scale)
        painted = paint_of(page)
        assert painted[20, 40] and not painted[100:].any()
        page.run("document.getElementById('run').click()")
        page.until("[...document.querySelectorAll('img.result')].every(i => i.src && i.complete)")
        filled = decoded(page.run(pixels_of(0)))[..., :3]
        assert (filled[painted == 0] == upright[painted == 0]).all()
        assert (filled[painted > 127] != upright[painted > 127]).any()


# Row 29
@browser
def test_an_answer_for_an_earlier_image_is_dropped(capfd):
    begun, go_on = threading.Event(), threading.Event()

    def slow(image, mask):
        begun.set()
        assert go_on.wait(60)
        return image

    config = compose("demo", ["model=slow", "port=0"]).config
    with (
        serving(config, [LoadedInpainter(slow, "slow", {})]) as (host, port),
        Page(f"http://{host}:{port}/") as page,
    ):
        for image in (photograph(), photograph()[:100, :150]):
            choose(page, png(image))
            page.until(f"document.getElementById('image').width === {image.shape[1]}")
            left, top, _ = box(page)
            for kind in ("mousePressed", "mouseReleased"):
                page.mouse(kind, left + 30, top + 30)
            if image.shape[1] == 150:
                page.run(
                    "globalThis.shown = []; new MutationObserver(all => shown.push(...all.filter("
                    "one => one.target.src))).observe(document.querySelector('img.result'),"
                    " {attributeFilter: ['src']})"
                )
                go_on.set()
            page.run("document.getElementById('run').click()")
            assert begun.wait(60)
        page.until("document.querySelector('img.result').naturalWidth === 150")
        page.until("!document.getElementById('run').disabled")
        assert page.run("shown.length") == 1  # answers come in the order of the questions
        assert page.run("document.getElementById('message').textContent") == ""
        assert page.errors == []
    assert capfd.readouterr() == ("", "")


@browser
def test_of_two_files_the_one_opened_last_is_shown(address):
    host, port = address
    with Page(f"http://{host}:{port}/") as page:
        page.run(
            "globalThis.ask = fetch; globalThis.held = [];"
            "globalThis.fetch = (...all) => new Promise(done => held.push(async () => {"
            " const answer = await ask(...all), copy = answer.clone(); done(answer);"
            " await createImageBitmap(await copy.blob()); }));"
        )
        for image in (photograph(), photograph()[:100, :150]):
            choose(page, png(image), wait=False)
        page.until("held.length === 2")
        page.run("held[1]()")
        page.until("document.getElementById('image').width === 150")
        page.run("held[0]()")
        page.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        assert page.run("document.getElementById('image').width") == 150


# Row 29
@browser
def test_two_fingers_zoom_the_page_and_one_paints(address):
    host, port = address
    with Page(f"http://{host}:{port}/") as page:
        page.ask("Emulation.setTouchEmulationEnabled", enabled=True, maxTouchPoints=2)
        choose(page, png(photograph()))
        left, top, _ = box(page)
        x, y = left + 200, top + 200

        def touch(kind, *points):
            at = [{"x": x + dx, "y": y + dy, "id": i} for i, (dx, dy) in enumerate(points)]
            page.ask("Input.dispatchTouchEvent", type=kind, touchPoints=at)

        touch("touchStart", (0, 0))
        touch("touchMove", (30, 0))
        touch("touchEnd")
        one = paint_of(page)
        assert one.any()

        touch("touchStart", (-50, 100))
        touch("touchMove", (-55, 100))
        touch("touchStart", (-55, 100), (50, 100))
        for step in range(10, 110, 10):
            touch("touchMove", (-55 - step, 100), (50 + step, 100))
        touch("touchEnd")
        page.until("visualViewport.scale > 1.2")
        assert (paint_of(page) == one).all()

        touch("touchStart", (0, 0))
        touch("touchMove", (0, 30))
        touch("touchEnd")
        assert (paint_of(page) > 0).sum() > (one > 0).sum()


def choose(page, content, wait=True):
    """Give a file to the page's input."""
    encoded = base64.b64encode(content).decode()
    page.run(
        f"(() => {{ const raw = atob({encoded!r});"
        " const bytes = Uint8Array.from(raw, c => c.charCodeAt(0));"
        " const files = new DataTransfer(); files.items.add(new File([bytes], 'cat'));"
        " const input = document.getElementById('file'); input.files = files.files;"
        " input.dispatchEvent(new Event('change')); })()"
    )
    if wait:
        page.until("!document.getElementById('run').disabled")


def box(page):
    """Left, top and width of the canvas."""
    return page.run(
        "(() => { const b = document.getElementById('paint').getBoundingClientRect();"
        " return [b.left, b.top, b.width]; })()"
    )


def paint_of(page):
    return decoded(page.run("document.getElementById('paint').toDataURL()"))[..., 3]


def pixels_of(number):
    return (
        f"(() => {{ const i = document.querySelectorAll('img.result')[{number}];"
        " const c = document.createElement('canvas');"
        " [c.width, c.height] = [i.naturalWidth, i.naturalHeight];"
        " c.getContext('2d').drawImage(i, 0, 0); return c.toDataURL(); })()"
    )


def decoded(data_url):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data_url.split(",")[1]))))
