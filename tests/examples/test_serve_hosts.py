"""The Host header of a request appears in no answer."""

import http.client
from contextlib import closing

import pytest

from tests.examples.serving import address_of, answer_of, connect, even, served

pytestmark = pytest.mark.slow

FOREIGN = "evil.example"


@pytest.fixture(scope="module")
def address():
    with served(even) as found:
        yield found


@pytest.mark.parametrize("path", ["/predict/", "/healthz/", "//evil.example/predict/", "/a/.."])
@pytest.mark.parametrize("method", ["GET", "POST", "HEAD"])
def test_an_address_that_there_is_not_is_no_redirect(address, path, method):
    with closing(http.client.HTTPConnection(*address_of(address))) as connection:
        connection.putrequest(method, path, skip_host=True)
        connection.putheader("Host", FOREIGN)
        connection.putheader("X-Forwarded-Host", FOREIGN)
        connection.endheaders()
        answer = connection.getresponse()
        assert (answer.status, answer.headers["location"]) == (404, None)
        assert method == "HEAD" or answer_of(answer)[1] == {"error": "Not Found"}


@pytest.mark.parametrize("path", ["/", "/healthz", "/predict", "http://evil.example/predict/"])
def test_no_answer_repeats_the_host(address, path):
    """The server answers under any name, because a proxy may use its own."""
    request = f"GET {path} HTTP/1.1\r\nhost: {FOREIGN}\r\nconnection: close\r\n\r\n"
    with connect(address) as client:
        client.sendall(request.encode())
        said = b"".join(iter(lambda: client.recv(1 << 16), b""))
    expected = {"/predict": b"405", "http://evil.example/predict/": b"404"}.get(path, b"200")
    assert said.split()[1] == expected
    assert FOREIGN.encode() not in said and b"location" not in said.lower().split(b"\r\n\r\n")[0]
