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
from PIL import Image
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
    config = compose("demo", ["model=telea", "against=mean_colour", "port=0"]).config
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


def test_a_port_in_use_gives_a_one_line_error(address):
    config = compose("demo", ["model=telea", f"port={address[1]}"]).config
    line = rf"cannot listen on 127.0.0.1:{address[1]} \(Address already in use\): choose another"
    with pytest.raises(ValueError, match=line):
        demo.make(config, [])


@browser
def test_in_a_browser_painting_removes_what_was_painted_and_nothing_else(address):
    host, port = address
    encoded = base64.b64encode(png(photograph())).decode()
    with Page(f"http://{host}:{port}/") as page:
        assert page.run("document.getElementById('run').disabled")
        page.run(
            f"(() => {{ const raw = atob({encoded!r});"
            " const bytes = Uint8Array.from(raw, c => c.charCodeAt(0));"
            " const files = new DataTransfer();"
            " files.items.add(new File([bytes], 'cat.png', {type: 'image/png'}));"
            " const input = document.getElementById('file'); input.files = files.files;"
            " input.dispatchEvent(new Event('change')); })()"
        )
        page.until("!document.getElementById('run').disabled")
        left, top, width = page.run(
            "(() => { const b = document.getElementById('paint').getBoundingClientRect();"
            " return [b.left, b.top, b.width]; })()"
        )
        scale = width / 211
        page.run("document.getElementById('size').value = 40")
        page.mouse("mousePressed", left + 60 * scale, top + 80 * scale)
        for x in range(60, 111, 10):
            page.mouse("mouseMoved", left + x * scale, top + 80 * scale)
        page.mouse("mouseReleased", left + 110 * scale, top + 80 * scale)
        painted = decoded(page.run("document.getElementById('paint').toDataURL()"))[..., 3]
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


def pixels_of(number):
    return (
        f"(() => {{ const i = document.querySelectorAll('img.result')[{number}];"
        " const c = document.createElement('canvas');"
        " [c.width, c.height] = [i.naturalWidth, i.naturalHeight];"
        " c.getContext('2d').drawImage(i, 0, 0); return c.toDataURL(); })()"
    )


def decoded(data_url):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data_url.split(",")[1]))))
