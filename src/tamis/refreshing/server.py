"""The few words that a refresh has with a running server."""

import http.client
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from tamis.errors import ConfigError, ServerError
from tamis.serving.guard import check_secret

_TIMEOUT_S = 600.0
"""A change of the bundle reads and warms up the new one before it is answered."""


class Server:
    """A server of ``tamis serve``, by its address."""

    def __init__(self, address: str, *, token: str = "") -> None:
        """Take an address; nothing is sent yet.

        Args:
            address: Such as ``http://127.0.0.1:8000``.
            token: Secret that the server asks for; empty: none.

        Raises:
            ConfigError: It is no address of HTTP, or the token is none that a server has.
        """
        try:
            parts = urlsplit(address)
            port = parts.port
        except ValueError:
            # It quotes the address, which may hold a password.
            parts, port = urlsplit(""), None
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
            raise ConfigError(
                "server: must be an address such as http://127.0.0.1:8000, got another text. Give "
                "what tamis serve printed."
            )
        if token:
            # Else the HTTP client would refuse it, and quote it.
            check_secret(
                token, where="TAMIS_TOKEN", advice="Give the token that tamis serve was given."
            )
        self._address, self._token, self._parts = address, token, parts
        # Without one the HTTP client would take the end of an IPv6 address for it.
        self._port = (443 if parts.scheme == "https" else 80) if port is None else port

    def release(self) -> str:
        """The release that serves.

        Raises:
            ServerError: The server cannot be reached, or does not answer requests.
        """
        return str(self._ask("GET", "/readyz", None).get("release", ""))

    def change(self, *, replaces: str, release: str) -> None:
        """Have it serve another release, if it serves the one that was expected.

        Raises:
            ServerError: It refuses, or cannot be reached; then it serves the one or the other.
        """
        self._ask("POST", "/v1/admin/bundle", {"replaces": replaces, "release": release})

    def _ask(self, method: str, path: str, body: Mapping[str, str] | None) -> dict[str, Any]:
        kind = (
            http.client.HTTPSConnection
            if self._parts.scheme == "https"
            else http.client.HTTPConnection
        )
        headers = {"Content-Type": "application/json"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        assert self._parts.hostname is not None
        connection = kind(self._parts.hostname, self._port, timeout=_TIMEOUT_S)
        try:
            text = None if body is None else json.dumps(body)
            connection.request(method, self._parts.path.rstrip("/") + path, text, headers)
            answer = connection.getresponse()
            status, said = answer.status, _read(answer.read())
        except (OSError, UnicodeError, http.client.HTTPException) as error:
            raise ServerError(
                f"{self._address}: must be a server that can be reached, got "
                f"{getattr(error, 'strerror', None) or type(error).__name__}. Start it, or leave "
                f"--server out and change the bundle later."
            ) from error
        finally:
            connection.close()
        if status != 200:
            problem = said.get("error")
            why = problem.get("message", "") if isinstance(problem, dict) else ""
            raise ServerError(
                f"{self._address}{path}: must be answered with 200, got {status}. {why}".rstrip()
            )
        return said


def _read(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {}
