"""From training to the server: digits in every format, bad requests, shutdown, and the page."""

import contextlib
import http.client
import json
import re
import signal
import socket
import subprocess
import zlib
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from examples.mnist import data, export, pictures
from tests.catalogue.scripts import ENVIRONMENT, ROOT
from tests.examples.processes import command, in_this_process, png, refused, scan

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The file exported from a run of one epoch."""
    out = tmp_path_factory.mktemp("served") / "run"
    options = ["--model", "mlp", "--epochs", 1, "--learning-rate", 3e-3, "--out", out]
    assert in_this_process("train", *options) == in_this_process("export", out) == 0
    return out / "model.stablehlo"


@contextlib.contextmanager
def serving(*arguments):
    """The server's process and address."""
    process = subprocess.Popen(
        command("serve", *arguments, "--port", 0),
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        found = re.fullmatch(r"serving on http://(127\.0\.0\.1:\d+)\n", process.stdout.readline())
        assert found, process.stderr.read()
        yield process, found[1]
        process.terminate()
        _, said = process.communicate(timeout=60)
        assert (said, process.returncode) == ("", 0)
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def address(model):
    with serving(model, "--timeout", 3) as (_, address):
        yield address


def connect(address):
    host, port = address.split(":")
    return socket.create_connection((host, int(port)))


def answer_of(response):
    assert response.headers["content-type"] == "application/json"
    text = response.read().decode()
    assert text.endswith("\n") and text.count("\n") == 1, text
    content = json.loads(text)
    assert response.status == 200 or content.keys() == {"error"}
    return response.status, content


def ask(address, body=None, path="/predict", method="POST"):
    """The status and the JSON of an answer; asserts that an error is one line."""
    url = urlsplit(f"//{address}")
    with contextlib.closing(http.client.HTTPConnection(url.hostname, url.port)) as connection:
        # As `curl --data-binary` sends it.
        headers = {"content-type": "application/x-www-form-urlencoded"}
        connection.request(method, path, body, headers)
        return answer_of(connection.getresponse())


def test_every_form_of_a_digit_gets_the_models_answer(address, model):
    images = data.load().test_images[:3]
    page = scan(images[0])
    predict = export.predictor(export.load(model))
    for body, digits in (
        (png(Image.fromarray(images[0])), images[:1]),
        (json.dumps(images[0].tolist()), images[:1]),
        (json.dumps(images.tolist()), images),
        (png(page), pictures.digit_of(page, "page")[None]),
    ):
        status, content = ask(address, body)
        expected = predict(digits)
        found = np.array([list(p["probabilities"].values()) for p in content["predictions"]])
        assert status == 200
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
        named = [int(p["digit"]) for p in content["predictions"]]
        assert named == expected.argmax(axis=1).tolist()


def bomb():
    """A PNG of 2¹⁵ by 2¹⁵ grey pixels, a gigabyte, in a megabyte."""
    head = png(Image.new("L", (8, 8)))
    size = (1 << 15).to_bytes(4)
    start = head[:16] + size + size + head[24:29]
    return start + zlib.crc32(start[12:29]).to_bytes(4) + head[33:]


DIGIT = png(Image.fromarray(data.load().test_images[0]))
BAD = {
    "nothing": b"",
    "text": b"seven",
    "half a PNG": DIGIT[:60],
    "a PNG of a gigabyte": bomb(),
    "blank": png(Image.new("L", (28, 28), 255)),
    "blank JSON": json.dumps(np.zeros((28, 28), int).tolist()),
    "256": json.dumps(np.full((28, 28), 256).tolist()),
    "other sides": json.dumps(np.ones((28, 27), int).tolist()),
    "65 digits": json.dumps(np.tile(data.load().test_images[:1], (65, 1, 1)).tolist()),
    "deep": b"[" * 5000,
}


@pytest.mark.parametrize("body", BAD.values(), ids=BAD.keys())
def test_a_bad_body_is_one_line_and_the_next_is_answered(address, body):
    status, content = ask(address, body)
    assert status == 400 and content["error"]
    assert ask(address, DIGIT)[0] == 200


def test_health_and_what_there_is_not(address):
    assert ask(address, path="/healthz", method="GET") == (200, {"status": "ok"})
    for path, method, status in (
        ("/predict", "GET", 405),
        ("/../../etc/passwd", "GET", 404),
        ("/page.html", "GET", 404),
        ("/healthz", "DELETE", 405),
    ):
        found, content = ask(address, path=path, method=method)
        assert found == status and content["error"]


def test_too_large_and_too_slow_requests_are_cut_off(address):
    head = "POST /predict HTTP/1.1\r\nhost: x\r\n"
    for text in (f"{head}content-length: 9999999\r\n\r\n", f"{head}a: {'a' * 20_000}\r\n"):
        with connect(address) as client:
            client.sendall(text.encode())
            assert client.recv(100) in (b"", b"HTTP/1.1 400 Bad Request\r\n\r\n")
    for text in ("", head, f"{head}content-length: 9\r\n\r\n1"):
        with connect(address) as client:
            client.sendall(text.encode())
            client.settimeout(60)
            assert client.recv(100) == b""  # After --timeout.


def test_a_stop_answers_what_was_accepted(model):
    body = json.dumps(data.load().test_images[:50].tolist()).encode()
    head = f"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n"
    with serving(model) as (process, address):
        with connect(address) as client:
            client.sendall(f"{head}expect: 100-continue\r\n\r\n".encode())
            assert client.recv(100) == b"HTTP/1.1 100 (Continue)\r\n\r\n"
            process.send_signal(signal.SIGTERM)
            with pytest.raises(ConnectionRefusedError):
                while True:
                    with contextlib.suppress(ConnectionResetError):  # It closed in the handshake.
                        connect(address).close()
            client.sendall(body)
            response = http.client.HTTPResponse(client)
            response.begin()
            status, content = answer_of(response)
            assert status == 200 and len(content["predictions"]) == 50
        assert process.wait(timeout=60) == 0


def test_an_address_that_is_taken_and_a_model_that_is_none_are_one_line(model, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        said = refused("serve", model, "--port", taken.getsockname()[1])
    assert re.search(r"cannot be listened on \(.*in use", said)
    (tmp_path / "text").write_text("no model")
    assert "is not an exported model" in refused("serve", tmp_path / "text")


def shown(browser):
    return browser.execute_script(
        "return [document.getElementById('digit').textContent, [...document.querySelectorAll("
        "'#bars li')].map(row => [row.dataset.label, row.querySelector('.share').textContent])]"
    )


def wait_for(browser, digit):
    """Waits until the page shows a text; returns the shares that it shows then."""
    from selenium.webdriver.support.wait import WebDriverWait

    WebDriverWait(browser, 30).until(lambda browser: shown(browser)[0] == digit)
    return shown(browser)[1]


@pytest.mark.parametrize("width", [360, 900])
def test_the_page_shows_a_drawn_digit(address, browser, width):
    from selenium.webdriver import ActionChains, Keys

    size = {"width": width, "height": 700, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(f"http://{address}/")
    wait_for(browser, "–")
    paper = browser.find_element("id", "paper")
    down = paper.size["height"] // 4
    drawing = ActionChains(browser, duration=20)
    drawing.move_to_element_with_offset(paper, 2, -down).click_and_hold()
    drawing.move_to_element_with_offset(paper, -2, down).release().perform()
    bars = wait_for(browser, "1")
    shares = {label: float(share.removesuffix("%")) for label, share in bars}
    assert list(shares) == list("0123456789") and max(shares, key=shares.__getitem__) == "1"
    assert 99 < sum(shares.values()) < 101
    browser.find_element("id", "clear").click()
    wait_for(browser, "–")
    # The same with the keyboard only.
    paper.send_keys(Keys.ARROW_UP * 4 + " " + Keys.ARROW_DOWN * 22)
    wait_for(browser, "1")
    paper.send_keys("c")
    bars = wait_for(browser, "–")
    assert {share for _, share in bars} == {""}
    # Nothing overflows the page, no other host got a request, and no request failed.
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    asked = browser.execute_script(
        "return performance.getEntriesByType('resource').map(entry => entry.name)"
    )
    assert set(asked) == {f"http://{address}/predict"}
    assert browser.get_log("browser") == []
