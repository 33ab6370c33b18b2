"""What stands before every route: size of the body, host, token, and headers of the answer."""

import hashlib
import hmac
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from tamis.errors import ConfigError
from tamis.serving.refused import RefusedError

_log = logging.getLogger(__name__)

MAX_BODY_BYTES = 1 << 20
_FEWEST_CHARACTERS = 16
LOOPBACK = ("127.0.0.1", "::1", "localhost")

_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]
_App = Callable[[_Message, _Receive, _Send], Awaitable[None]]

_HEADERS = (
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
)


class Guard:
    """An ASGI application around another: refuses what no route should see, and sets headers.

    Failures that nobody foresaw end here, and nothing of the request reaches a log.

    A body is read here, whole, before the application is called: one that says no length, or a
    wrong one, is cut off at the limit all the same.
    """

    def __init__(
        self,
        app: _App,
        *,
        refuse: Callable[[RefusedError], _App],
        hosts: tuple[str, ...] | None,
    ) -> None:
        """Take what is guarded.

        Args:
            app: The application.
            refuse: Makes the answer to a refused request.
            hosts: Names under which it may be called; None for any. On loopback this keeps web
                pages out whose name was made to point here.
        """
        self._app, self._refuse, self._hosts = app, refuse, hosts

    async def __call__(self, scope: _Message, receive: _Receive, send: _Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: _Message) -> None:
            if message["type"] == "http.response.start":
                own = [*message.get("headers", ())]
                # A page says itself what it may load.
                said = {name for name, _ in own}
                message["headers"] = own + [item for item in _HEADERS if item[0] not in said]
            await send(message)

        try:
            self._check_host(scope)
            body = await _whole_body(receive)
        except RefusedError as error:
            await self._refuse(error)(scope, receive, send_with_headers)
            return
        if body is None:
            return
        try:
            await self._app(scope, _once(body, receive), send_with_headers)
        except Exception as error:  # noqa: BLE001  (it is answered; the server would log all of it)
            # A traceback, and messages of others' libraries, quote what users sent.
            _log.error("a request could not be answered: %s", type(error).__name__)

    def _check_host(self, scope: _Message) -> None:
        if self._hosts is None:
            return
        host = dict(scope["headers"]).get(b"host", b"").decode("latin-1").lower()
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
        if name.strip("[]") not in self._hosts:
            raise RefusedError(
                421, "header.host", f"must be one of {', '.join(self._hosts)}. Call it by that."
            )


def check_secret(secret: str, *, where: str, advice: str) -> None:
    """Refuse a token that no server takes, without a word of it.

    Args:
        secret: The token.
        where: Where it was given, for the message.
        advice: What to do, for the message.

    Raises:
        ConfigError: It is too short, or a header cannot hold it.
    """
    if len(secret) < _FEWEST_CHARACTERS:
        raise ConfigError(
            f"{where}: must have at least {_FEWEST_CHARACTERS} characters, got {len(secret)}. "
            f"{advice}"
        )
    if not (secret.isascii() and secret.isprintable()) or " " in secret:
        # In a header it would arrive as another, and nobody could ever be let in.
        raise ConfigError(
            f"{where}: must be of ASCII letters, digits and signs, got a blank or another "
            f"character, such as a line end. {advice}"
        )


class Token:
    """A secret that whoever changes something must know."""

    def __init__(self, secret: str) -> None:
        """Keep a hash of the secret."""
        self._digest = hashlib.sha256(secret.encode()).digest()

    def check(self, authorization: str) -> None:
        """Compare in a time that does not tell how much of it was right.

        Args:
            authorization: The header, ``Bearer SECRET``.

        Raises:
            RefusedError: It is another, or none.
        """
        scheme, _, secret = authorization.partition(" ")
        # Hashes are of one length, whatever the secrets'; the header may hold any character.
        digest = hashlib.sha256(secret.strip().encode("utf-8", "surrogateescape")).digest()
        is_right = hmac.compare_digest(digest, self._digest)
        if scheme.lower() != "bearer" or not is_right:
            raise RefusedError(
                401, "header.authorization", "must be 'Bearer TOKEN' with the server's token."
            )


async def _whole_body(receive: _Receive) -> bytes | None:
    """A request's body; None where whoever asked has gone."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        body += message.get("body", b"")
        if len(body) > MAX_BODY_BYTES:
            raise RefusedError(
                413, "body", f"must hold at most {MAX_BODY_BYTES:,} bytes. Send it in parts."
            )
        if not message.get("more_body", False):
            return bytes(body)


def _once(body: bytes, receive: _Receive) -> _Receive:
    """A body that was read already, then whatever comes after it."""
    is_sent = False

    async def again() -> _Message:
        nonlocal is_sent
        if is_sent:
            return await receive()
        is_sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
