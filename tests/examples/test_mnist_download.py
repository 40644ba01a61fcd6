"""MNIST's download, against a real server on 127.0.0.1."""

import gzip
import http.server
import socket
import threading
from pathlib import Path

import pytest

from examples.mnist import data
from tests.examples.mnist_files import (
    CHECKSUMS,
    SERVED,
    SMALL,
    fill,
    images_bytes,
    labels_bytes,
    one_line,
)

# Fetching.


class Mirror(http.server.HTTPServer):
    """A server of `files`: a bytes value is the content, an int the status of an empty answer."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes | int] = dict(SERVED)
        self.asked: list[str] = []
        self.promised = 0  # bytes that are announced and never sent

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/mnist/"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Mirror  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self):
        name = self.path.removeprefix("/mnist/")
        self.server.asked.append(name)
        found = self.server.files.get(name, 404)
        body, status = (b"", found) if isinstance(found, int) else (found, 200)
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) + self.server.promised))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format, *args):  # noqa: A002
        pass


@pytest.fixture
def mirror(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with Mirror() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


@pytest.mark.parametrize("slash", [True, False])
def test_download_fetches_what_load_reads(tmp_path, mirror, slash):
    directory = tmp_path / "new" / "mnist"
    data.download(directory, mirror.url if slash else mirror.url[:-1], CHECKSUMS)
    assert {name: (directory / name).read_bytes() for name in names(directory)} == SERVED
    assert data.load(directory).train_labels.tolist() == [5, 0, 4]


def test_download_keeps_what_is_right_and_replaces_a_wrong_gz(tmp_path, mirror):
    fill(tmp_path)
    broken = tmp_path / "t10k-images-idx3-ubyte.gz"
    broken.write_bytes(broken.read_bytes()[:-5])
    wrong = tmp_path / "train-labels-idx1-ubyte.gz"
    wrong.write_bytes(gzip.compress(labels_bytes([1, 1, 1])))
    plain = tmp_path / "train-images-idx3-ubyte"
    plain.write_bytes(SMALL[plain.name])
    plain.with_name(f"{plain.name}.gz").unlink()
    kept = (tmp_path / "t10k-labels-idx1-ubyte.gz").stat()
    data.download(tmp_path, mirror.url, CHECKSUMS)
    assert mirror.asked == [wrong.name, broken.name]
    assert broken.read_bytes() == SERVED[broken.name]
    assert wrong.read_bytes() == SERVED[wrong.name]
    assert (tmp_path / "t10k-labels-idx1-ubyte.gz").stat() == kept
    assert names(tmp_path) == set(SERVED) - {f"{plain.name}.gz"} | {plain.name}
    mirror.asked.clear()
    # A complete folder is not written to, because it may be shared and read-only.
    before = tmp_path.stat().st_mtime_ns
    data.download(tmp_path, mirror.url, CHECKSUMS)
    assert mirror.asked == [] and tmp_path.stat().st_mtime_ns == before


def test_download_does_not_leave_a_wrong_plain_file_in_front(tmp_path, mirror):
    wrong = tmp_path / "train-labels-idx1-ubyte"
    wrong.write_bytes(labels_bytes([1, 1, 1]))
    with pytest.raises(data.DataError) as error:
        data.download(tmp_path, mirror.url, CHECKSUMS)
    one_line(error, str(wrong), "remove it")
    assert wrong.read_bytes() == labels_bytes([1, 1, 1])
    assert names(tmp_path) == {"train-images-idx3-ubyte.gz", wrong.name}


FIRST = "train-images-idx3-ubyte.gz"
BAD_ANSWERS = {
    "not there": (404, "HTTP Error 404"),
    "server error": (500, "HTTP Error 500"),
    "a page": (b"<html>please log in</html>", "holds other bytes"),
    "nothing": (b"", "holds other bytes"),
    "truncated": (SERVED[FIRST][:-20], "holds other bytes"),
    "other digits": (gzip.compress(images_bytes(3, seed=9)), "holds other bytes"),
}


@pytest.mark.parametrize(("answer", "part"), BAD_ANSWERS.values(), ids=BAD_ANSWERS.keys())
def test_a_bad_answer_is_one_line_and_leaves_nothing(tmp_path, mirror, answer, part):
    mirror.files[FIRST] = answer
    with pytest.raises(data.DataError) as error:
        data.download(tmp_path, mirror.url, CHECKSUMS)
    one_line(error, mirror.url + FIRST, part)
    assert names(tmp_path) == set()


def test_a_file_over_the_bound_is_not_taken(tmp_path, mirror, monkeypatch):
    monkeypatch.setattr(data, "MAX_BYTES", len(SERVED[FIRST]) - 1)
    with pytest.raises(data.DataError) as error:
        data.download(tmp_path, mirror.url, CHECKSUMS)
    one_line(error, "holds other bytes")
    assert names(tmp_path) == set()


def test_an_answer_that_breaks_off_is_one_line_and_keeps_the_files_before_it(tmp_path, mirror):
    mirror.files["t10k-images-idx3-ubyte.gz"] = SERVED["t10k-images-idx3-ubyte.gz"][:100]
    mirror.promised = 1000
    with pytest.raises(data.DataError) as error:
        data.download(tmp_path, mirror.url, CHECKSUMS)
    one_line(error, "t10k-images-idx3-ubyte.gz")
    assert names(tmp_path) == {"train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"}


def test_a_mirror_that_refuses_or_is_silent_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(data.DataError) as error:
            data.download(tmp_path, url, CHECKSUMS, timeout=0.05)
        one_line(error, "timed out", "try https://")
    with pytest.raises(data.DataError) as error:
        data.download(tmp_path, url, CHECKSUMS, timeout=5)
    one_line(error, url, "refused")
    assert names(tmp_path) == set()


@pytest.mark.parametrize(
    "mirror_address",
    [
        "",
        "example.com/mnist",
        "http://",
        "http://[::1",
        "http://a:b/",
        "http://a\nb",
    ],
)
def test_an_address_that_is_none_is_one_line(tmp_path, mirror_address):
    with pytest.raises(data.DataError) as error:
        data.download(tmp_path, mirror_address, CHECKSUMS)
    one_line(error)
    assert names(tmp_path) == set()


def test_a_mirror_is_on_the_web_even_where_a_file_would_do(tmp_path):
    served, directory = tmp_path / "served", tmp_path / "new"
    served.mkdir()
    fill(served)
    with pytest.raises(data.DataError) as error:
        data.download(directory, served.as_uri(), CHECKSUMS)
    one_line(error, "is not a mirror", "write http")
    assert not directory.exists()


def test_a_directory_that_is_a_file_is_one_line(tmp_path, mirror):
    path = tmp_path / "file"
    path.write_bytes(b"mine")
    for directory in (path, path / "below"):
        with pytest.raises(data.DataError) as error:
            data.download(directory, mirror.url, CHECKSUMS)
        one_line(error, f"{directory} cannot be written")
    assert path.read_bytes() == b"mine" and mirror.asked == []


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, mirror):
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))
    try:
        with pytest.raises(data.DataError) as error:
            data.download(tmp_path, mirror.url, CHECKSUMS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    one_line(error, f"{tmp_path} cannot be written")
    assert names(tmp_path) == set()
