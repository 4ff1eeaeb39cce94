import http.client
import io
import socket
import struct
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from pipeline.config.compose import compose
from pipeline.inference import demo
from pipeline.inference.sources import LoadedInpainter
from tests.support.demo_server import photograph, png, serving

SIZES = "the mask is 60×50, the image is 211×197: use a mask of the image's size".encode()
FORM = {"Content_Type": "multipart/form-data; boundary=xx", "X_Lacuna": "demo"}


@pytest.fixture(scope="module")
def address():
    config = compose("demo", ["model=telea", "against=mean_color", "port=0"]).config
    with serving(config, demo.load_inpainters(config)) as place:
        yield place


def ask(address, method, path, body=None, **headers):
    connection = http.client.HTTPConnection(*address, timeout=30)
    connection.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()})
    answer = connection.getresponse()
    status, content = answer.status, answer.read()
    connection.close()
    return status, content


def multipart(image, mask, **fields):
    lines = []
    for name, content in {"image": image, "mask": mask, **fields}.items():
        kind = f'name="{name}"' + '; filename="f"' * (name not in fields)
        head = f"--xx\r\nContent-Disposition: form-data; {kind}\r\n\r\n"
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
        (png(photograph()), png(hole((50, 60)) * 0), SIZES),
        (png(photograph()), png(hole() * 0), b"nothing is painted yet"),
        (png(photograph()), png(hole() * 0 + 255), b"the mask covers all of the image"),
    ],
)
def test_input_that_cannot_be_filled_gives_a_one_line_error(address, image, mask, line):
    status, body = fill(address, image, mask)
    assert status == 400 and line in body and b"\n" not in body


@pytest.mark.parametrize("name", ["grow", "feather"])
@pytest.mark.parametrize("value", ["", "-1", "1.5", "two"])
def test_widths_that_are_no_number_of_pixels_give_a_one_line_error(address, name, value):
    body = multipart(png(photograph()), png(hole()), **{name: value.encode()})
    status, line = ask(address, "POST", "/fill/0", body, **FORM)
    assert status == 400
    assert line.decode() == f"invalid {name}={value!r}: expected a whole number of pixels, from 0"


def test_a_mask_comes_back_as_a_layer_that_is_opaque_in_its_hole(address):
    status, body = ask(address, "POST", "/mask/211x197", png(hole()), X_Lacuna="demo")
    layer = np.asarray(Image.open(io.BytesIO(body)).convert("RGBA"))
    assert status == 200 and (layer[..., 3] == hole()).all()
    small = png(hole((50, 60)))
    assert ask(address, "POST", "/mask/211x197", small, X_Lacuna="demo") == (400, SIZES)


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
