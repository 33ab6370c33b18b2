"""What the server measures of itself, for Prometheus."""

from collections.abc import Callable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from tamis.serving.answers import Answer
from tamis.serving.drift import DriftWatch
from tamis.serving.pulse import Pulse
from tamis.serving.records import Event

METRICS_TYPE = CONTENT_TYPE_LATEST
RELEASE_CHARACTERS = 12
"""Of a release in labels: as many as name it for a reader."""
RANK_ROUTE = "/v1/rank"
_SECONDS = (1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class Metrics:
    """Counters and histograms of one server; none of them knows a user."""

    def __init__(self, drift: DriftWatch | None = None) -> None:
        """Start from zero, with a registry of its own.

        Args:
            drift: Joins answers with events; None: one that waits for events as long as usual.
        """
        self.drift = DriftWatch() if drift is None else drift
        self.pulse = Pulse()
        registry = self._registry = CollectorRegistry()
        self._http = Counter(
            "tamis_http_answers", "Answers over HTTP.", ("route", "status"), registry=registry
        )
        self._http_seconds = Histogram(
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
        self._events = Counter(
            "tamis_events", "New events on the disk.", ("kind",), registry=registry
        )
        registry.register(_DriftCollector(self.drift))

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
        self.drift.answered(answer)

    def answered_http(self, route: str, status: int, seconds: float) -> None:
        """Count an answer of any kind over HTTP."""
        self._http.labels(route, str(status)).inc()
        self._http_seconds.labels(route).observe(seconds)
        if route == RANK_ROUTE and status == 200:
            self.pulse.ranked(seconds)

    def happened(self, events: Sequence[Event], is_new: Sequence[bool]) -> None:
        """Count events that are on the disk.

        Args:
            events: In the order in which they were told.
            is_new: For each whether it was not told before.
        """
        for event, new in zip(events, is_new, strict=True):
            self._events.labels(event.kind).inc(int(new))
        self.drift.happened(events)

    def turned_away(self) -> None:
        """Count a request that was turned away; see ``engine.Watch``."""
        self._turned_away.inc()
        self.pulse.turned_away()

    def past_missing(self) -> None:
        """Count a ranking without the user's past; see ``engine.Watch``."""
        self._past_missing.inc()

    def text(self) -> bytes:
        """Everything, as Prometheus reads it."""
        return generate_latest(self._registry)


class _DriftCollector(Collector):
    """Reads the drift whenever somebody looks; releases come and go, and so do its gauges."""

    def __init__(self, drift: DriftWatch) -> None:
        self._drift = drift

    def collect(self) -> Iterator[GaugeMetricFamily]:
        texts = {
            "rows": "Seen ads whose label is known, since the release went live.",
            "positives": "Those whose label is 1.",
            "normalised_entropy": "Of these rows, against their own base rate.",
            "calibration": "Sum of probabilities over number of positives of these rows.",
            "stability_index": "Newest probabilities against the release's first ones.",
            "stability_index_expected": "What that index is on average when nothing shifts.",
        }
        families = {
            name: GaugeMetricFamily(f"tamis_drift_{name}", text, labels=("release", "task"))
            for name, text in texts.items()
        }
        for labels, name, value in self._values():
            if value is not None:
                families[name].add_metric(labels, value)
        yield from families.values()
        yield GaugeMetricFamily(
            "tamis_drift_late_events", "Events that came after their request's labels were fixed.",
            value=self._drift.num_late,
        )  # fmt: skip
        yield GaugeMetricFamily(
            "tamis_drift_passed_over", "Requests whose events were not waited for.",
            value=self._drift.num_passed_over,
        )  # fmt: skip

    def _values(self) -> Iterator[tuple[tuple[str, str], str, float | None]]:
        for release in self._drift.report():
            for task, found in release.tasks.items():
                labels = release.release[:RELEASE_CHARACTERS], task
                yield labels, "rows", found.all.rows
                yield labels, "positives", found.all.positives
                yield labels, "normalised_entropy", found.all.ne
                yield labels, "calibration", found.all.calibration
                if found.shift is not None:
                    yield labels, "stability_index", found.shift.value
                    yield labels, "stability_index_expected", found.shift.expected
