"""From training to the server: digits in every format, many clients, shutdown, and the page."""

import asyncio
import contextlib
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from PIL import Image
from tests.examples.serving import (
    address_of,
    ask,
    connect,
    digits_in,
    png,
    probabilities_in,
    read_answer,
    serving,
)

from examples.mnist import data, evaluate, exported, pictures
from examples.mnist.runs import Run
from examples.mnist.train import trained
from tests.examples.processes import ROOT, environment, in_this_process

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained_run(tmp_path_factory):
    """A run of one epoch."""
    out = tmp_path_factory.mktemp("served") / "run"
    options = ["--model", "mlp", "--epochs", 1, "--learning-rate", 3e-3, "--out", out]
    assert in_this_process("train", *options) == 0
    return out


@pytest.fixture(scope="module")
def checkpoint(trained_run):
    """The run's graph and parameters."""
    with jax.numpy_dtype_promotion("standard"):
        return trained(Run.open(trained_run))


@pytest.fixture(scope="module")
def model(trained_run):
    """The file exported from the run."""
    path = trained_run.parent / "model.stablehlo"
    assert in_this_process("export", trained_run, path) == 0
    return path


@pytest.fixture(scope="module")
def address(model):
    with serving(model) as (_, address):
        yield address


@pytest.fixture(scope="module")
def digits():
    return data.load()


def scan(digit):
    """Like a scan: large, dark on light, off centre."""
    page = Image.new("RGB", (200, 160), "white")
    page.paste(Image.fromarray(255 - digit).resize((112, 112)), (60, 20))
    return np.asarray(page)


def form(*files):
    """The body of a form and its header."""
    parts = [
        b'--line\r\ncontent-disposition: form-data; name="f"; filename="../../etc/passwd"\r\n\r\n'
        + file
        for file in files
    ]
    body = b"\r\n".join([*parts, b"--line--\r\n"])
    return body, {"Content-Type": "multipart/form-data; boundary=line"}


def named(form):
    """The same pictures under other file names."""
    body, headers = form
    for i in range(body.count(b'name="f"')):
        body = body.replace(b'name="f"', b'name="%d"' % i, 1)
    return body, headers


def test_every_form_of_a_digit_gets_the_models_answer(address, model, digits):
    images = digits.test_images[:3]
    expected = np.exp(exported.load(model).log_probabilities(images))
    pictures = [png(image) for image in images]
    bodies = {
        "a PNG": (pictures[0], {}),
        "JSON, one": (json.dumps(images[0].tolist()), {}),
        "JSON, several": (json.dumps(images.tolist()), {}),
        "a form, one": form(pictures[0]),
        "a form, several": form(*pictures),
        "a form, several names": named(form(*pictures)),
    }
    for body, headers in bodies.values():
        status, content = ask(address, body, **headers)
        found = probabilities_in(content)
        assert status == 200 and len(found) in (1, 3)
        np.testing.assert_allclose(found, expected[: len(found)], rtol=1e-5, atol=1e-6)
        assert digits_in(content) == found.argmax(axis=1).tolist()


def test_predict_says_the_same_of_file_and_run(model, trained_run, tmp_path, digits, capsys):
    picture = tmp_path / "digit.png"
    picture.write_bytes(png(scan(digits.test_images[0])))
    for arguments in ([trained_run, picture], ["--exported", model, picture]):
        assert in_this_process("predict", *arguments) == 0
        assert re.fullmatch(r".*digit\.png: 0 \(\d+\.\d%\)\n", capsys.readouterr().out)
    assert in_this_process("predict", trained_run) == 1
    assert "no image was named" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_scanned_digits_are_centred_as_predict_does(address, checkpoint, tmp_path, digits, kind):
    right, path = 0, tmp_path / "scan"
    for digit, label in zip(digits.test_images[:10], digits.test_labels, strict=False):
        path.write_bytes(png(scan(digit), kind))
        _, content = ask(address, path.read_bytes())
        predicted = evaluate.log_probabilities(*checkpoint, pictures.read_digits(path))
        np.testing.assert_allclose(probabilities_in(content), np.exp(predicted), atol=1e-6)
        right += digits_in(content) == [label]
    assert right >= 7


def test_the_served_models_accuracy_is_that_of_evaluate(address, checkpoint, digits):
    served = []
    for i in range(0, 2000, 50):
        _, content = ask(address, json.dumps(digits.test_images[i : i + 50].tolist()))
        served += digits_in(content)
    figures = evaluate.evaluate(*checkpoint, digits.test_images, digits.test_labels)
    assert float(np.mean(served == digits.test_labels)) == figures["test_accuracy"] > 0.85


def test_two_hundred_clients_at_once_each_get_their_own_answer(address, model, digits):
    images = digits.test_images[:200]
    expected = exported.load(model).log_probabilities(images).argmax(axis=1)

    async def client(image):
        reader, writer = await asyncio.open_connection(*address_of(address))
        body = png(image)
        head = f"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
        found = []
        for _ in range(3):
            writer.write(head.encode() + body)
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
            headers = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"Content-Length: (\d+)", headers)
            assert length
            found += digits_in(json.loads(await reader.readexactly(int(length[1]))))
        writer.close()
        await writer.wait_closed()
        return found

    async def clients():
        return await asyncio.gather(*map(client, images))

    np.testing.assert_array_equal(asyncio.run(clients()), np.repeat(expected[:, None], 3, 1))


def test_a_stop_answers_what_was_accepted_and_takes_nothing_more(model, digits):
    body = json.dumps(digits.test_images[:50].tolist()).encode()
    head = f"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n"
    with serving(model, "--batch-sizes", 1) as (process, address), connect(address) as idle:
        clients = [connect(address) for _ in range(4)]
        for client in clients:
            client.sendall(f"{head}expect: 100-continue\r\n\r\n".encode())
            assert client.recv(100) == b"HTTP/1.1 100 (Continue)\r\n\r\n"  # The header is accepted.
        process.send_signal(signal.SIGTERM)
        with pytest.raises(ConnectionRefusedError):
            while True:
                with contextlib.suppress(ConnectionResetError):  # It closed in the handshake.
                    connect(address).close()
        idle.sendall(f"{head}\r\n".encode() + body)
        assert read_answer(idle)[0] == 503
        for client in clients:
            client.sendall(body)
        for client in clients:
            status, content = read_answer(client)
            assert status == 200 and len(digits_in(content)) == 50
        for client in [idle, *clients]:
            assert client.recv(1) == b""
            client.close()
        assert process.wait(timeout=60) == 0


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


def test_an_address_that_is_taken_and_a_model_that_is_none_are_one_line(
    model, tmp_path, monkeypatch, capsys
):
    def said(*arguments):
        assert in_this_process("serve", *arguments) == 1
        return capsys.readouterr().err

    with socket.create_server(("127.0.0.1", 0)) as taken:
        line = said(model, "--port", taken.getsockname()[1])
    assert re.fullmatch(r"error: .*cannot be listened on \(.*in use.*\n", line)
    (tmp_path / "text").write_text("no model")
    line = said(tmp_path / "text")
    assert re.fullmatch(r"error: .*is not an exported model.*\n", line)


def test_the_benchmark_measures_both_ways():
    command = [sys.executable, "-W", "error", "-m", "benchmarks.serve", "--fast"]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    row = r"^\| mlp \| 8 \| (.*?) \| [\d,]+ \| \d+\.\d\d \| .* \|$"
    assert re.findall(row, done.stdout, re.MULTILINE) == ["batches of 1 to 32", "one by one"]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Headless Chromium."""
    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in programs:
        pytest.skip("no chromium with chromedriver: the page was not drawn on")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    profile = tmp_path_factory.mktemp("profile")
    for option in (
        "headless",
        "no-sandbox",
        "disable-gpu",
        "disable-quic",
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
        "window-size=900,700",
        f"user-data-dir={profile}",
    ):
        options.add_argument(f"--{option}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(programs[1]))
    yield driver
    driver.quit()


def shown(browser):
    return browser.execute_script(
        "return [document.getElementById('digit').textContent, [...document.querySelectorAll("
        "'#bars li')].map(row => [row.dataset.label, row.querySelector('.share').textContent])]"
    )


def wait_for(browser, digit):
    """Waits until the page shows a text; returns the shown text."""
    end = time.monotonic() + 30
    while (found := shown(browser))[0] != digit:
        assert time.monotonic() < end, found
    return found


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
    _, bars = wait_for(browser, "1")
    shares = {label: float(share.removesuffix("%")) for label, share in bars}
    assert list(shares) == list("0123456789") and max(shares, key=shares.__getitem__) == "1"
    assert 99 < sum(shares.values()) < 101
    browser.find_element("id", "clear").click()
    wait_for(browser, "–")
    # The same with the keyboard only.
    paper.send_keys(Keys.ARROW_UP * 4 + " " + Keys.ARROW_DOWN * 22)
    wait_for(browser, "1")
    paper.send_keys("c")
    _, bars = wait_for(browser, "–")
    assert {share for _, share in bars} == {""}
    # Nothing overflows the page, no other host got a request, and no request failed.
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    asked = browser.execute_script(
        "return performance.getEntriesByType('resource').map(entry => entry.name)"
    )
    assert set(asked) == {f"http://{address}/predict"}
    assert browser.get_log("browser") == []
