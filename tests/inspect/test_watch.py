"""A run followed as it is written, and what the terminal and the page show of it."""

import contextlib
import http.client
import io
import json
import math
import signal
import subprocess
import sys
import threading

import pytest
from rich.console import Console

from adam_jax.inspect import append_json_line
from adam_jax.inspect.watch import POINTS, server, sparkline, table, views
from tests.catalogue.scripts import ENVIRONMENT, ROOT, process

NAME = "<b>conv&"


def record(step, loss=1.0, **others):
    numbers = {"gradient_rms": 0.1, "update_to_parameter": 2e-3, "cosine": -0.5}
    return {"step": step, "groups": {NAME: numbers}, "loss": loss, **others}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "telemetry.jsonl"


@pytest.fixture
def losses(path):
    """Reads on; returns the curve of the loss."""
    shown = views(path.parent)
    return lambda: next(shown)["panels"].get("loss", {}).get("loss", [])


def test_a_run_is_followed_from_before_it_exists(path, losses):
    assert losses() == []
    append_json_line(path, record(1, 3.0))
    assert losses() == [(1, 3.0)]
    append_json_line(path, record(2, 2.0))
    line = json.dumps(record(3, 1.0))
    with open(path, "a") as file:
        file.write(line[:20])
        file.flush()
        assert losses() == [(1, 3.0), (2, 2.0)]
        file.write(line[20:] + "\n")
    assert losses() == [(1, 3.0), (2, 2.0), (3, 1.0)]


@pytest.mark.parametrize("size", [1, 9])
def test_a_file_that_is_truncated_or_replaced_is_read_anew(path, losses, size):
    for step in range(5):
        append_json_line(path, record(step))
    assert len(losses()) == 5
    path.write_text("".join(json.dumps(record(step, 7.0)) + "\n" for step in range(size)))
    assert losses() == [(step, 7.0) for step in range(size)]


def test_steps_that_go_back_replace_the_later_ones(path, losses):
    for step in (1, 2, 3, 4):
        append_json_line(path, record(step, 1.0))
    assert len(losses()) == 4
    append_json_line(path, record(3, 5.0))
    assert losses() == [(1, 1.0), (2, 1.0), (3, 5.0)]


def test_long_runs_keep_their_spikes_and_every_byte_is_read_once(path, losses):
    path.parent.mkdir()
    special = {0: 0.5, 4_321: 99.0, 7_000: math.nan, 19_999: 0.25}
    for begin in (0, 10_000):
        with open(path, "a") as file:
            for step in range(begin, begin + 10_000):
                file.write(json.dumps(record(step, special.get(step, 1.0))) + "\n")
        found = losses()
        assert len(found) <= 2 * POINTS and [*found] == sorted(found)
    assert {(step, str(x)) for step, x in special.items()} <= {(s, str(x)) for s, x in found}


def test_what_is_shown(path):
    counts = {"consecutive": 1, "total": 3, "gradients": {"all": 3}}
    odd = {"lr": 1e-3, "skipped": 0, "test_loss": 2.0, "note": "x", "many": [1, 2], "seconds": 9}
    append_json_line(path, record(1, math.nan, clipped=counts, **odd))
    path.with_name("other.jsonl").write_text('{"name": "no record"}\ntext\n')
    view = next(views(path.parent))
    assert next(views(path))["panels"].keys() == view["panels"].keys()
    shown = {panel: list(curves) for panel, curves in view["panels"].items()}
    assert shown == {
        "loss": ["loss", "test_loss"],
        "update_to_parameter": [NAME],
        "gradient_rms": [NAME],
        "clipped": ["clipped"],
        "lr": ["lr"],
    }


def test_sparklines():
    assert sparkline([(10 * s, 2.0**s) for s in range(8)], 40) == "▁▂▃▄▅▆▇█"
    assert sparkline([(0, 0.0), (1, math.nan), (2, -7.0), (3, math.inf)], 40) == "█×▁×"
    assert sparkline([(0, math.nan)], 40) == "×"
    assert len(sparkline([(s, 1.0) for s in range(1000)], 40)) == 40


def test_the_terminal_shows_nan(path):
    for step in range(1, 9):
        append_json_line(path, record(step, math.nan if step > 6 else 1.0 / step))
    console = Console(record=True, width=80, file=io.StringIO())
    console.print(table(next(views(path.parent)), 80))
    text = console.export_text()
    assert "█▅▄▃▂▁××" in text and "nan" in text and f"gradient_rms {NAME}" in text


@pytest.fixture
def address(path):
    append_json_line(path, record(1, 3.0))
    append_json_line(path, record(10, math.nan))
    append_json_line(path, record(30, math.inf))
    append_json_line(path, record(40, 2.0))
    with server(path.parent, 0) as serving:
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        yield serving.server_address
        serving.shutdown()
        thread.join()


def test_the_server_answers_this_machine_by_its_own_names(address):
    assert address[0] == "127.0.0.1"
    for host, status in (("localhost:1", 200), ("example.org", 403)):
        with contextlib.closing(http.client.HTTPConnection(*address)) as connection:
            connection.request("GET", "/view", headers={"Host": host})
            answer = connection.getresponse()
            text = answer.read()
            assert answer.status == status
            if status == 200:
                panels = json.loads(text, parse_constant=pytest.fail)["panels"]
                curve = [[1, 3.0], [10, "NaN"], [30, "Infinity"], [40, 2.0]]
                assert panels["loss"] == {"loss": curve}
            else:
                assert text == b""


@pytest.mark.parametrize("options", [[], ["--page", "0"]])
def test_an_interrupt_ends_it(path, options):
    append_json_line(path, record(1))
    # A shell's background processes, and their children, ignore interrupts.
    heard = "signal.signal(signal.SIGINT, signal.default_int_handler)"
    program = f"import runpy, signal; {heard}; runpy.run_module('adam_jax', run_name='__main__')"
    line = [sys.executable, "-c", program, "watch", str(path.parent), *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = ENVIRONMENT | {"FORCE_COLOR": "1", "COLUMNS": "80"}
    with subprocess.Popen(line, cwd=ROOT, env=environment, **pipes) as running:
        while str(path.parent.name) not in (said := running.stdout.readline()):
            assert said
        running.send_signal(signal.SIGINT)
        _, errors = running.communicate(timeout=60)
    assert (running.returncode, errors) == (0, "")


def test_what_is_missing_is_named(path):
    block = "import sys; sys.modules['rich.live'] = None; from adam_jax.inspect import watch as w;"
    done = process("-c", f"{block} w.watch(w.Path('x'), None)", status=1)
    assert 'pip install "adam_jax[watch]"' in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_draws_what_is_written(path, address, browser, scheme):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.support.wait import WebDriverWait

    def shown():
        script = (
            "return [...document.querySelectorAll('section')].map(x => x.innerText.split('\\n'))"
        )
        return {title: rest for title, *rest in browser.execute_script(script)}

    def wait_for(text):
        found = lambda _: text in shown().get("loss", [""])[0]  # noqa: E731
        WebDriverWait(browser, 30).until(found)

    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get("http://{}:{}/".format(*address))
    wait_for("loss 2")
    panels = shown()
    assert list(panels) == ["loss", "update to parameter 1e-3 is healthy", "gradient rms"]
    assert panels["gradient rms"][0] == f"{NAME} 0.1"
    marks = "return [...document.querySelectorAll('text.bad')].map(x => x.textContent).join('')"
    assert browser.execute_script(marks) == "×"
    drawing = browser.find_element("css selector", "svg")
    ActionChains(browser, duration=0).move_to_element(drawing).perform()
    wait_for("loss NaN")
    append_json_line(path, record(50, 1.5))
    header = browser.find_element("tag name", "header")
    ActionChains(browser, duration=0).move_to_element(header).perform()
    wait_for("loss 1.5")
    background = "return getComputedStyle(document.documentElement).backgroundColor"
    assert (browser.execute_script(background) == "rgb(244, 245, 247)") == (scheme == "light")
    asked = "return performance.getEntriesByType('resource').map(entry => entry.name)"
    assert {*browser.execute_script(asked)} == {"http://{}:{}/view".format(*address)}
    assert browser.get_log("browser") == []
