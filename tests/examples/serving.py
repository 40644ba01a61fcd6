"""An untrained model, a server in its own process, and a client for it."""

import asyncio
import contextlib
import http.client
import io
import json
import re
import socket
import subprocess
import threading
from urllib.parse import urlsplit

import numpy as np
from flax import nnx
from PIL import Image

from examples.mnist import export
from examples.mnist.models import MODELS
from tests.examples.processes import ROOT, command, environment


def untrained(name="softmax"):
    """An untrained model: its graph and parameters."""
    return nnx.split(MODELS[name](nnx.Rngs(0)))


def write_untrained(path, name="softmax"):
    export.write(export.classifier(name, *untrained(name)), path)
    return path


@contextlib.contextmanager
def serving(*arguments):
    """The server's process and address."""
    process = subprocess.Popen(
        command("serve", *arguments, "--port", 0),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        line = process.stdout.readline()
        found = re.fullmatch(r"serving .* on http://(127\.0\.0\.1:\d+)\n", line)
        assert found, line + process.stderr.read()
        yield process, found[1]
        process.terminate()
        _, said = process.communicate(timeout=60)
        assert said == "", said
        assert process.returncode == 0
    finally:
        process.kill()
        process.communicate()


@contextlib.contextmanager
def served(program, most_waiting=512, seconds=20.0):
    """The address of the same server in a thread, with any program."""
    from examples.mnist.serve.server import answer, listen  # Smoke tests lack this extra.

    loop, stop = asyncio.new_event_loop(), asyncio.Event()
    with listen("127.0.0.1", 0) as listener:
        serving = answer(listener, list("ab"), program, [1, 4], most_waiting, seconds, stop)
        thread = threading.Thread(target=loop.run_until_complete, args=[serving])
        thread.start()
        yield "{}:{}".format(*listener.getsockname())
        loop.call_soon_threadsafe(stop.set)
        thread.join()
    loop.close()


def even(images):
    return np.full((len(images), 2), 0.5, np.float32)


def ask(address, body=None, path="/predict", method="POST", **headers):
    """The status and the JSON of an answer; asserts that an error is one line."""
    url = urlsplit(f"//{address}")
    with contextlib.closing(http.client.HTTPConnection(url.hostname, url.port)) as connection:
        connection.request(method, path, body, headers)
        return answer_of(connection.getresponse())


def answer_of(response):
    assert response.headers["content-type"] == "application/json"
    text = response.read().decode()
    assert text.endswith("\n") and text.count("\n") == 1, text
    content = json.loads(text)
    assert response.status == 200 or content.keys() == {"error"}
    return response.status, content


def address_of(text):
    host, port = text.split(":")
    return host, int(port)


def connect(address):
    return socket.create_connection(address_of(address))


def read_answer(connection):
    """Reads an answer from a bare socket."""
    response = http.client.HTTPResponse(connection)
    response.begin()
    return answer_of(response)


def png(pixels, kind="PNG"):
    packed = io.BytesIO()
    Image.fromarray(pixels).save(packed, kind)
    return packed.getvalue()


def digits_in(content):
    return [int(prediction["digit"]) for prediction in content["predictions"]]


def probabilities_in(content):
    return np.array([list(p["probabilities"].values()) for p in content["predictions"]])
