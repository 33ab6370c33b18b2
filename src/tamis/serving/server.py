"""``tamis serve``: one process from a bundle and a store to a listening server."""

import contextlib
import gc
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn

from tamis.errors import ArtifactError, ConfigError
from tamis.funnel.bundle import read_bundle
from tamis.serving.app import make_app
from tamis.serving.drift import DriftWatch
from tamis.serving.engine import Engine, EngineSettings
from tamis.serving.guard import LOOPBACK, Token, check_secret
from tamis.serving.live import Live
from tamis.serving.metrics import Metrics
from tamis.serving.store import Store

_MAX_CONNECTIONS = 1_000


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerSettings:
    """Where the server listens, and who may change something."""

    host: str = "127.0.0.1"
    """Address to listen at; other machines reach only one that is not loopback."""
    port: int = 8000
    """Port to listen at; 0 takes a free one."""
    token: str = ""
    """Secret that whoever writes or changes must know. It may be empty on loopback alone."""
    bundles: Path | None = None
    """Folder of the bundles that may be changed to; None: that in which the first one lies."""
    settle_s: float = 600.0
    """How long after an answer its events count for the drift watch. Positive."""
    engine: EngineSettings = field(default_factory=EngineSettings)
    """What the engine may spend."""

    def __post_init__(self) -> None:
        if not 0 <= self.port < 65_536:
            raise ConfigError(f"port: must be in 0 to 65535, got {self.port!r}.")
        if self.token:
            check_secret(self.token, where="token", advice="Make one with 'openssl rand -hex 32'.")
        if not 0 < self.settle_s < float("inf"):
            raise ConfigError(f"settle_s: must be positive seconds, got {self.settle_s!r}.")
        if not self.token and self.host not in LOOPBACK:
            raise ConfigError(
                f"token: must be set to listen at {self.host}, which other machines reach, got "
                f"none. Set TAMIS_TOKEN or --token, or listen at 127.0.0.1."
            )


def serve(
    bundle: Path,
    store_url: str,
    settings: ServerSettings,
    *,
    ready: Callable[[str, Live], None],
) -> None:
    """Serve until the process is told to end; what was taken is answered and written first.

    Args:
        bundle: What serves at the start.
        store_url: Where ads and events are.
        settings: Where to listen.
        ready: Told the server's address and what serves, before the first request is answered.

    Raises:
        ArtifactError: The bundle is damaged or cannot be served, or the store is of another
            version.
        ConfigError: The store's URL is none, or the address cannot be listened at.
        StoreError: The store cannot be reached or written.
    """
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(_listener(settings))
        store = Store(store_url)
        stack.callback(store.close)
        metrics = Metrics(DriftWatch(settle_s=settings.settle_s))
        found = read_bundle(bundle)
        try:
            engine = Engine(found, store, metrics, settings.engine)
        except ArtifactError as error:
            # The engine does not know where its bundle lies.
            raise ArtifactError(str(error).replace("bundle:", f"{bundle}:", 1)) from error
        stack.callback(engine.close)
        metrics.add_gauge("tamis_ads", "Live ads.", lambda: len(engine.live.ads))
        metrics.add_gauge("tamis_waiting", "Rankings that wait.", lambda: engine.num_waiting)
        metrics.add_gauge(
            "tamis_not_recorded", "Answered requests that are in no store.",
            lambda: engine.recorder.num_lost,
        )  # fmt: skip
        app = make_app(
            engine,
            metrics,
            bundles=bundle.resolve().parent if settings.bundles is None else settings.bundles,
            token=Token(settings.token) if settings.token else None,
            # A web page could have its own name point at this machine, and be let in by browsers.
            hosts=None if settings.token else LOOPBACK,
        )
        host, port = listener.getsockname()[:2]
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        server = _Server(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,  # it would hold ids
                server_header=False,
                limit_concurrency=_MAX_CONNECTIONS,
                timeout_graceful_shutdown=10,
                lifespan="on",
            ),
            ready=lambda: ready(address, engine.live),
        )
        # What is here by now stays: a look through all of it, mostly libraries, would hold up every
        # request for a third of a second, again and again.
        gc.collect()
        gc.freeze()
        server.run(sockets=[listener])


class _Server(uvicorn.Server):
    """Says that it is ready once signals end it well, and before it answers anybody."""

    def __init__(self, config: uvicorn.Config, *, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._ready()


def _listener(settings: ServerSettings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        listener = socket.create_server((settings.host, settings.port), family=family, backlog=2048)
    except OSError as error:
        raise ConfigError(
            f"host and port: must be an address that is free, got {settings.host}:{settings.port}: "
            f"{error.strerror or error}. Choose another port with --port."
        ) from error
    # Connections inherit it. asyncio sets it for sockets that it makes itself alone, and without it
    # the body of an answer waits until its head was acknowledged: 40 ms.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener
