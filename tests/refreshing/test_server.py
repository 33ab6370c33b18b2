"""What is said to a server over HTTP, and what its refusals become."""

import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from tamis.errors import ConfigError, ServerError
from tamis.refreshing.server import Server

Answer = tuple[int, bytes]


@pytest.fixture
def listen() -> Iterator[Callable[[Answer], tuple[str, list[Any]]]]:
    """A server that gives one answer, and remembers what it was asked."""
    servers: list[HTTPServer] = []

    def make(answer: Answer) -> tuple[str, list[Any]]:
        asked: list[Any] = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                length = int(self.headers.get("Content-Length", 0))
                asked.append(
                    (self.command, self.path, self.headers.get("Authorization"),
                     self.rfile.read(length))
                )  # fmt: skip
                self.send_response(answer[0])
                self.end_headers()
                self.wfile.write(answer[1])

            do_POST = do_GET  # noqa: N815

            def log_message(self, *arguments: object) -> None: ...

        server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}", asked

    yield make
    for server in servers:
        server.shutdown()
        server.server_close()


def test_release_is_what_the_server_says(listen: Callable[..., tuple[str, list[Any]]]) -> None:
    address, asked = listen((200, b'{"status": "ok", "release": "abc", "ads": 3}'))

    assert Server(f"{address}/").release() == "abc"
    assert asked == [("GET", "/readyz", None, b"")]


def test_change_carries_token_and_both_releases(
    listen: Callable[..., tuple[str, list[Any]]],
) -> None:
    address, asked = listen((200, b"{}"))

    Server(address, token="secret-secret-secret").change(replaces="a", release="b")

    ((method, path, token, body),) = asked
    assert (method, path, token) == ("POST", "/v1/admin/bundle", "Bearer secret-secret-secret")
    assert json.loads(body) == {"replaces": "a", "release": "b"}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((409, b'{"error": {"field": "body.replaces", "message": "another"}}'), "got 409. another"),
        ((401, b'{"error": {"field": "x", "message": "must be"}}'), "got 401. must be"),
        ((502, b"<html>"), "got 502"),
        ((500, b'{"error": "text"}'), "got 500"),
    ],
)
def test_refusal_is_an_error_without_the_token(
    listen: Callable[..., tuple[str, list[Any]]], answer: Answer, message: str
) -> None:
    address, _ = listen(answer)

    with pytest.raises(ServerError, match=message) as got:
        Server(address, token="secret-secret-secret").change(replaces="a", release="b")
    assert "secret" not in str(got.value)


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("secret-secret-secret\n", "TAMIS_TOKEN: must be of ASCII letters, digits and signs"),
        ("secret-secret secret", "TAMIS_TOKEN: must be of ASCII letters, digits and signs"),
        ("secret-secret-secrét", "TAMIS_TOKEN: must be of ASCII letters, digits and signs"),
        ("secret", "TAMIS_TOKEN: must have at least 16 characters, got 6"),
    ],
)
def test_token_that_no_server_has_is_refused_unquoted(token: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as got:
        Server("http://127.0.0.1:9", token=token)
    assert "secret" not in str(got.value)


@pytest.mark.parametrize("address", ["http://127.0.0.1:9", "http://127..1", "http://127.0.0.1/ä"])
def test_server_that_is_away_is_an_error(address: str) -> None:
    message = re.escape(f"{address}: must be a server that can be reached")
    with pytest.raises(ServerError, match=message):
        Server(address).release()


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("http://[::1]", ("::1", 80)),
        ("https://[::1]", ("::1", 443)),
        ("http://[::1]:8000", ("::1", 8000)),
    ],
)
def test_port_is_that_of_the_address_or_of_its_scheme(
    address: str, expected: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def connect(place: Any, *arguments: object) -> None:
        asked.append(place)
        raise OSError

    monkeypatch.setattr("socket.create_connection", connect)

    with pytest.raises(ServerError):
        Server(address).release()
    assert asked == [expected]


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1:8000",
        "ftp://x",
        "http://",
        "http://user:password@x",
        "",
        "http://127.0.0.1:99999",
        "http://127.0.0.1:password",
        "http://[::1",
    ],
)
def test_other_addresses_are_refused_unquoted(address: str) -> None:
    with pytest.raises(ConfigError, match="server: must be an address such as http") as got:
        Server(address)
    assert "password" not in str(got.value)
