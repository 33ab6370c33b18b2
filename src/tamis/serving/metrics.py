"""What the server measures of itself, for Prometheus."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from tamis.serving.answers import Answer

METRICS_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class Metrics:
    """Counters and histograms of one server; none of them knows a user."""

    def __init__(self) -> None:
        """Start from zero, with a registry of its own."""
        registry = self._registry = CollectorRegistry()
        self.http = Counter(
            "tamis_http_answers", "Answers over HTTP.", ("route", "status"), registry=registry
        )
        self.http_seconds = Histogram(
            "tamis_http_seconds", "From request to answer.", ("route",),
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self._wait_seconds = Histogram(
            "tamis_wait_seconds", "Wait of a ranking for its turn.",
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self._stage_seconds = Histogram(
            "tamis_stage_seconds", "Time of a stage.", ("stage",),
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self._fallbacks = Counter(
            "tamis_stage_fallbacks", "Rankings in which a stage kept the order of the one before.",
            ("stage",), registry=registry,
        )  # fmt: skip
        self._shown = Counter("tamis_ads_shown", "Ads in answers.", registry=registry)
        self._turned_away = Counter(
            "tamis_turned_away", "Rankings turned away, as too many waited.", registry=registry
        )
        self._past_missing = Counter(
            "tamis_past_missing", "Rankings without the user's past, as the store was away.",
            registry=registry,
        )  # fmt: skip
        self.events = Counter(
            "tamis_events", "New events on the disk.", ("kind",), registry=registry
        )

    def add_gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        """Show a number that is read whenever somebody looks."""
        gauge = Gauge(name, text, registry=self._registry)
        gauge.set_function(read)

    def answered(self, answer: Answer, *, waited_ms: float, took_ms: float) -> None:
        """Count an answer; see ``engine.Watch``."""
        del took_ms  # the stages' own times say more
        self._wait_seconds.observe(waited_ms / 1e3)
        for stage in () if answer.trace is None else answer.trace.stages:
            self._stage_seconds.labels(stage.name).observe(stage.elapsed_ms / 1e3)
            if stage.fallback:
                self._fallbacks.labels(stage.name).inc()
        self._shown.inc(len(answer.ads))

    def turned_away(self) -> None:
        """Count a request that was turned away; see ``engine.Watch``."""
        self._turned_away.inc()

    def past_missing(self) -> None:
        """Count a ranking without the user's past; see ``engine.Watch``."""
        self._past_missing.inc()

    def text(self) -> bytes:
        """Everything, as Prometheus reads it."""
        return generate_latest(self._registry)
