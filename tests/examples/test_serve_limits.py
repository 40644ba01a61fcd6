"""The server rejects malformed bodies, decompression bombs, slow clients and too many requests."""

import asyncio
import contextlib
import io
import json
import selectors
import socket
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from examples.mnist.serve import bodies
from examples.mnist.serve.server import MAX_CONNECTIONS, MAX_READ
from tests.examples.processes import DIGIT
from tests.examples.serving import (
    address_of,
    ask,
    connect,
    digits_in,
    png,
    serving,
    write_untrained,
)

pytestmark = pytest.mark.slow

SECONDS = 1.5  # The server's limit for a request.


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    model = write_untrained(tmp_path_factory.mktemp("model") / "model")
    with serving(model, "--timeout", SECONDS, "--batch-sizes", 2) as found:
        yield found


@pytest.fixture
def address(server):
    """The server's address; after each test the server must still answer."""
    _, address = server
    yield address
    status, content = ask(address, png(DIGIT))
    assert status == 200 and len(digits_in(content)) == 1


def chunk(kind, content):
    checksum = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + checksum


def png_of_size(width, height, *before):
    header = struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0)
    parts = [chunk(b"IHDR", header), *before, chunk(b"IDAT", zlib.compress(bytes(1 << 20)))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b"")


def jpeg_of_many_scans():
    packed = io.BytesIO()
    Image.new("L", (2000, 2000), 128).save(packed, "JPEG", progressive=True)
    content = packed.getvalue()
    last = content.rindex(b"\xff\xda")
    return content[:last] + content[last:-2] * 2000 + content[-2:]


def two_dots():
    """A picture that becomes empty when it is scaled to 20 pixels."""
    paper = np.full((2000, 2000), 255, np.uint8)
    paper[5, 5] = paper[1990, 1990] = 0
    return paper


PNG_HEAD = png(DIGIT)[:33]
FORM = {"Content-Type": "multipart/form-data; boundary=x"}
PART = b'--x\r\ncontent-disposition: form-data; name="f"; filename="f"\r\n\r\n%s\r\n'
BAD = {
    "nothing": (b"", 415, "unknown format"),
    "text": (b"seven", 415, "expected a PNG"),
    "a GIF": (png(DIGIT, "GIF"), 415, "expected a PNG"),
    "the start of a PNG": (b"\x89PNG\r\n\x1a\n", 400, "not a picture"),
    "half a PNG": (png(DIGIT)[:-60], 400, "not a picture"),
    "a PNG with a wrong byte": (png(DIGIT)[:50] + b"\0" + png(DIGIT)[51:], 400, "not a picture"),
    "the start of a JPEG": (b"\xff\xd8\xff", 400, "not a picture"),
    "two dots": (png(two_dots()), 400, "shows no digit"),
    "200 profiles": (PNG_HEAD + 200 * chunk(b"iCCP", b"x"), 413, "100 parts"),
    "200 segments": (b"\xff\xd8" + 200 * b"\xff\xe5\0\2", 413, "100 parts"),
    "white paper": (png(np.full((99, 99), 255, np.uint8)), 400, "shows no digit"),
    "a blank PNG of 16 bits": (png(np.zeros((28, 28), np.uint16)), 400, "shows no digit"),
    "a blank digit in JSON": (
        json.dumps([DIGIT.tolist(), [[0] * 28] * 28]).encode(),
        400,
        "array 1 shows no digit",
    ),
    "full ink in JSON": (json.dumps([[255] * 28] * 28).encode(), 400, "shows no digit"),
    "half of JSON": (b"[[1, 2", 400, "not pixels"),
    "deep JSON": (b"[" * 100_000, 400, "not pixels"),
    "no pixels": (b"[]", 400, "not pixels"),
    "one row": (json.dumps(DIGIT[0].tolist()).encode(), 400, "not pixels"),
    "texts for pixels": (json.dumps([["0"] * 28] * 28).encode(), 400, "not pixels"),
    "fractions": (json.dumps([[0.5] * 28] * 28).encode(), 400, "not pixels"),
    "not a number": (b"[" + b",".join([b"[NaN]"] * 28) + b"]", 400, "not pixels"),
    "256": (json.dumps([[256] * 28] * 28).encode(), 400, "not pixels"),
    "numbers for rows": (json.dumps([[[28]] * 28, *[[28] * 28] * 27]).encode(), 400, "wrong shape"),
    "27 rows": (json.dumps([[0] * 28] * 27).encode(), 400, "wrong shape"),
    "a long row": (json.dumps([[0] * 29] + [[0] * 28] * 27).encode(), 400, "wrong shape"),
    "65 digits": (json.dumps([[[0] * 28] * 28] * 65).encode(), 413, "65 digits"),
    "too many bytes": (bytes(bodies.MAX_BODY + 1), 413, "1,048,576 bytes"),
    "a PNG of 81 megapixels": (png_of_size(9_000, 9_000), 413, "9000 x 9000"),
    "a PNG of petabytes": (png_of_size(1 << 30, 1 << 30), 413, "bomb"),
    "a PNG of one long row": (png_of_size(1 << 20, 1), 413, "sides up to 4096"),
    "a PNG that is 12 megapixels": (png_of_size(4000, 3000), 413, "4,194,304"),
    "a PNG with a comment of 256 MB": (
        png_of_size(28, 28, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 28)))),
        400,
        "not a picture",
    ),
    "a JPEG of thousands of scans": (jpeg_of_many_scans(), 413, "scans"),
    "a form without files": (b"--x--\r\n", 400, "form"),
    "a form of something else": (b"no form", 400, "form"),
    "a form with a text": (PART.replace(b'; filename="f"', b"") % b"7" + b"--x--\r\n", 400, "form"),
    "a form of 65": (PART % png(DIGIT) * 65 + b"--x--\r\n", 400, "form"),
    "a form with files of two names, one twice": (
        b"".join(PART.replace(b'"f";', b'"%s";' % name) % png(DIGIT) for name in (b"a", b"b", b"a"))
        + b"--x--\r\n",
        400,
        "several names",
    ),
    "a form with one bad picture": (
        PART % png(DIGIT) + PART % b"0" + b"--x--\r\n",
        400,
        "picture 1",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_body_is_one_line(address, name):
    body, status, words = BAD[name]
    found, content = ask(address, body, **(FORM if "form" in name else {}))
    assert (found, words in content["error"]) == (status, True), content
    assert "Traceback" not in content["error"]


def peak_memory(process):
    """The server's peak memory, in bytes."""
    with open(f"/proc/{process.pid}/status") as status:
        return 1024 * int(dict(line.split(":", 1) for line in status)["VmHWM"].split()[0])


def test_bombs_cost_no_memory(server, address):
    process, _ = server
    ask(address, png(np.zeros((2048, 2048), np.uint8)))  # The largest size allowed.
    before = peak_memory(process)
    with ThreadPoolExecutor(8) as clients:
        asked = [body for name, (body, *_) in BAD.items() if " of " in name or "deep" in name]
        answers = list(clients.map(lambda body: ask(address, body), asked * 8))
    assert {status for status, _ in answers} <= {400, 413, 415}
    assert peak_memory(process) - before < 64 << 20


@settings(max_examples=300, deadline=None, database=None)
@given(
    start=st.sampled_from([b"", b"[[", b"\x89PNG\r\n\x1a\n", png(DIGIT), png(DIGIT, "JPEG")]),
    place=st.integers(0, 2000),
    inserted=st.binary(max_size=20),
    kind=st.sampled_from(["", *FORM.values()]),
)
def test_any_bytes_are_digits_or_refused(start, place, inserted, kind):
    body = start[:place] + inserted + start[place + len(inserted) // 2 :]
    with ThreadPoolExecutor(1) as decoders, contextlib.suppress(bodies.Refused):
        found = asyncio.run(bodies.digits_of(body, kind, decoders))
        assert found.dtype == np.uint8 and found.shape[1:] == (28, 28)


def dribble(address, first, piece):
    """The answer to a client that sends without end, until the server closes the connection."""
    said = b""
    with connect(address) as client, selectors.DefaultSelector() as selector:
        selector.register(client, selectors.EVENT_READ)
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            client.sendall(first)
            while True:
                if selector.select(0.1):
                    if not (answer := client.recv(1 << 16)):
                        break
                    said += answer
                client.sendall(piece)
    return said


HEAD = b"POST /predict HTTP/1.1\r\nhost: x\r\n"
SLOW = {
    "nothing is ever sent": (b"", b""),
    "headers": (HEAD, b"a: b\r\n"),
    "the body": (HEAD + b"content-length: 5000\r\n\r\n", b"x"),
    "chunks": (HEAD + b"transfer-encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    "a chunk's size": (HEAD + b"transfer-encoding: chunked\r\n\r\n", b"0"),
}


def test_slow_clients_are_cut_off(address):
    with ThreadPoolExecutor(len(SLOW)) as clients:
        said = clients.map(lambda case: dribble(address, *case), SLOW.values())
        assert dict(zip(SLOW, said, strict=True)) == dict.fromkeys(SLOW, b"")


def test_what_is_too_large_to_read_is_refused_at_once(address):
    head = HEAD + b"content-length: %d\r\n\r\n" % (MAX_READ + 1)
    assert dribble(address, head, b"x").startswith(b"HTTP/1.1 400 ")
    chunk = b"%x\r\n%s\r\n" % (1 << 20, bytes(1 << 20))
    said = dribble(address, HEAD + b"transfer-encoding: chunked\r\n\r\n", chunk)
    # A client that is still sending may see a reset connection instead of the answer.
    assert said == b"" or said.startswith(b"HTTP/1.1 400 ")


def test_a_client_that_reads_nothing_is_cut_off(address):
    with socket.socket() as client, selectors.DefaultSelector() as selector:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(address_of(address))
        client.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n" * 1000)
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            while True:
                selector.select(0.1)  # Watches no socket: the delay between two bytes.
                client.sendall(b"G")


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"no HTTP at all\r\n\r\n", 400),
        (b"\r\n" * 9, 400),
        (HEAD + b"content-length: many\r\n\r\n", 400),
        (HEAD + b"content-length: -1\r\n\r\n", 400),
        (HEAD + b"content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n", 400),
        (HEAD + b"transfer-encoding: chunked\r\n\r\n0\r\na: b\r\n\r\n", 400),
        (b"CONNECT /predict HTTP/1.1\r\nhost: x\r\n\r\n", 405),
        (HEAD + b"a: " + b"b" * 20_000, None),
        (HEAD + b"".join(b"a%d: %s\r\n" % (i, b"b" * 99) for i in range(200)) + b"\r\n", None),
        (HEAD + b"upgrade: websocket\r\nconnection: upgrade\r\ncontent-length: 0\r\n\r\n", 415),
        (HEAD + b"upgrade: h2c\r\nconnection: upgrade\r\ncontent-length: 3\r\n\r\n[1]", 400),
    ],
)
def test_broken_http_is_refused(address, head, status):
    """None: the connection is closed without an answer."""
    with connect(address) as client:
        client.sendall(head)
        if status is None:
            with contextlib.suppress(ConnectionResetError):
                assert client.recv(1) == b""
        else:
            assert client.recv(1 << 16).startswith(b"HTTP/1.1 %d " % status)


def is_served(address):
    with contextlib.suppress(ConnectionError):
        return ask(address, path="/healthz", method="GET") == (200, {"status": "ok"})
    return False


def test_more_connections_than_are_served_are_closed(address):
    with contextlib.ExitStack() as held:
        for n in range(8 * MAX_CONNECTIONS):  # The first may already be closed.
            held.enter_context(connect(address))
            if n >= MAX_CONNECTIONS - 1 and not is_served(address):
                break
        else:
            pytest.fail("all of them were served")
    while not is_served(address):  # Until a connection is free.
        pass
