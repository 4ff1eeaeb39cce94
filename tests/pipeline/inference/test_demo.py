import base64
import http.client
import io
import threading

import numpy as np
import pytest
from PIL import Image
from skimage import data

from pipeline.config.compose import compose
from pipeline.inference import demo
from pipeline.inference.sources import LoadedInpainter
from tests.support.browser import Page, installed

browser = pytest.mark.skipif(installed() is None, reason="no Chromium: apt-get install chromium")


def photograph():
    return data.chelsea()[40:237, 100:311]  # 211×197


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def address():
    words = ["model=telea", "against=mean_colour", "port=0"]
    server = demo.make(compose("demo", words).config)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield "127.0.0.1", server.server_address[1]
    server.shutdown()
    server.server_close()


def ask(address, method, path, body=None, **headers):
    connection = http.client.HTTPConnection(*address, timeout=30)
    connection.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()})
    answer = connection.getresponse()
    found = answer.status, answer.read()
    connection.close()
    return found


def multipart(image, mask):
    lines = []
    for name, content in (("image", image), ("mask", mask)):
        head = f'--xx\r\nContent-Disposition: form-data; name="{name}"; filename="f"\r\n\r\n'
        lines += [head.encode(), content, b"\r\n"]
    return b"".join([*lines, b"--xx--\r\n"])


def fill(address, image, mask, **headers):
    told = {"Content_Type": "multipart/form-data; boundary=xx", "X_Lacuna": "demo", **headers}
    return ask(address, "POST", "/fill/0", multipart(image, mask), **told)


def hole(shape=(197, 211)):
    mask = np.zeros(shape, np.uint8)
    mask[60:100, 50:120] = 255
    return mask


def test_a_posted_picture_comes_back_changed_in_its_hole_alone(address):
    before = photograph()
    status, body = fill(address, png(before), png(hole()))
    after = np.asarray(Image.open(io.BytesIO(body)))
    assert status == 200
    assert (after[hole() == 0] == before[hole() == 0]).all()
    assert (after[hole() > 0] != before[hole() > 0]).mean() > 0.5


def test_bytes_that_look_like_a_boundary_or_a_line_end_survive_the_form():
    content = bytes(range(256)) * 4 + b"\r\n--x\r\n\n\r"
    found = demo.form("multipart/form-data; boundary=xx", multipart(content, b"m"))
    assert found == {"image": content, "mask": b"m"}


@pytest.mark.parametrize(
    ("image", "mask", "line"),
    [
        (b"no picture", png(hole()), b"cannot be read as a picture"),
        (png(photograph()), png(hole((50, 60)) * 0), b"differ in size"),
        (png(photograph()), png(hole() * 0), b"nothing is painted yet"),
        (png(photograph()), png(hole() * 0 + 255), b"all of the picture is painted"),
    ],
)
def test_what_cannot_be_filled_is_told_in_one_line(address, image, mask, line):
    status, body = fill(address, image, mask)
    assert status == 400 and line in body and b"\n" not in body


def test_other_pages_can_neither_read_nor_use_it(address):
    picture, mask = png(photograph()), png(hole())
    assert ask(address, "GET", "/", Host="evil.example")[0] == 403
    assert fill(address, picture, mask, Host="evil.example:80")[0] == 403
    assert fill(address, picture, mask, X_Lacuna="no")[0] == 403
    assert ask(address, "GET", "/../pipeline/demo.py")[0] == 404
    too_much = {"Content_Length": str(demo.LIMIT + 1), "X_Lacuna": "demo"}
    assert ask(address, "POST", "/fill/0", b"", **too_much)[0] == 413
    for length in ("abc", "-1", ""):
        nonsense = {"Content_Length": length, "X_Lacuna": "demo"}
        assert ask(address, "POST", "/fill/0", b"", **nonsense)[0] == 413
    told = {"Content_Type": "multipart/form-data; boundary=xx", "X_Lacuna": "demo"}
    assert ask(address, "POST", "/fill/7", multipart(picture, mask), **told)[0] == 404


def test_a_model_that_fails_is_told_to_the_page_and_does_not_end_the_server():
    def full(image, mask):
        raise RuntimeError("out of memory\nand a long trace")

    source = LoadedInpainter(full, "large", {})
    server = demo.Server(compose("demo", ["model=large", "port=0"]).config, [source], "cpu")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    here = "127.0.0.1", server.server_address[1]
    for _ in range(2):
        answer = fill(here, png(photograph()), png(hole()))
        assert answer == (500, b"RuntimeError: out of memory")
    server.shutdown()
    server.server_close()


def test_it_listens_on_this_machine_only_unless_asked():
    assert compose("demo", ["model=telea"]).config.host == "127.0.0.1"


def test_a_port_in_use_is_one_clear_line(address):
    words = ["model=telea", f"port={address[1]}"]
    with pytest.raises(ValueError, match=r"cannot be listened on .* give another port="):
        demo.make(compose("demo", words).config)


@browser
def test_in_a_browser_painting_removes_what_was_painted_and_nothing_else(address):
    host, port = address
    picture = base64.b64encode(png(photograph())).decode()
    with Page(f"http://{host}:{port}/") as page:
        assert page.run("document.getElementById('run').disabled")
        page.run(
            f"(() => {{ const raw = atob({picture!r});"
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
        assert page.run("document.getElementById('told').textContent") == ""
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
