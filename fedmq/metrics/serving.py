"""The door to prometheus_client: samples as a page of text, and a page of text at a port.

Owns the registry, the port and how often figures are made. A scrape never waits for a program's loop, and the loop
never for a scrape: figures are made in the thread that serves them, from files that can be read beside their writer
and from numbers that can be read at any moment. They are made again when they are a second old, and no sooner than ten
times as long after as it took to make them, so that scraping costs a tenth of a core at most.

What it does not do: no TLS, no password. It listens on loopback unless told otherwise; whoever reaches it may read.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Self

from fedmq import __version__
from fedmq.metrics.families import Histogram, Metric, Sample

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric as Family

__all__ = ["METRICS", "Cached", "Endpoint", "MissingExtraError", "require", "to_text"]

log = logging.getLogger("fedmq.metrics")

KEPT_SECONDS = 1.0
KEPT_COSTS = 10.0

BUILD = Metric(
    name="fedmq_build", kind="info", about="The version of fedmq that serves this page.", labels=("version",)
)
OK = Metric(
    name="fedmq_scrape_ok",
    kind="gauge",
    about="1 where the figures on this page could be made; 0 where they could not, and then they are not on it.",
)
SECONDS = Metric(
    name="fedmq_scrape_seconds", kind="gauge", about="How long it took to make the figures on this page, in seconds."
)
METRICS = (BUILD, OK, SECONDS)
"""Of every program that serves a page."""


class MissingExtraError(ImportError):
    """prometheus_client is not installed."""


def require() -> None:
    """Raises MissingExtraError, which says what to do."""
    try:
        import prometheus_client  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            "metrics need the package prometheus-client: pip install 'fedmq[metrics]'"
            " (where it was installed from a wheel: 'fedmq[metrics] @ FILE')"
        ) from error


def to_text(samples: Iterable[Sample]) -> str:
    """In the text format of Prometheus, which node_exporter's textfile collector takes too."""
    require()
    from prometheus_client import CollectorRegistry, generate_latest

    taken = list(samples)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(lambda: taken))
    return generate_latest(registry).decode()


class Cached:
    """Samples that are made anew when they are old enough. For any thread; `make` is called by one at a time.

    Where it raises ValueError or OSError there are no samples but the one that says so, until the next time.
    """

    def __init__(self, make: Callable[[], Iterable[Sample]], monotonic: Callable[[], float] = time.monotonic) -> None:
        self._make = make
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._samples: tuple[Sample, ...] = ()
        self._due_at: float | None = None
        self._failed = ""

    def __call__(self) -> tuple[Sample, ...]:
        with self._lock:
            began = self._monotonic()
            if self._due_at is None or began >= self._due_at:
                made, failed = self._try()
                ended = self._monotonic()
                told = (
                    Sample(metric=OK, value=float(not failed)),
                    Sample(metric=SECONDS, value=ended - began),
                )
                self._samples = (*made, *told)
                self._due_at = ended + max(KEPT_SECONDS, KEPT_COSTS * (ended - began))
                if failed and failed != self._failed:
                    log.error("the figures cannot be made: %s", failed)
                self._failed = failed
            return self._samples

    def _try(self) -> tuple[tuple[Sample, ...], str]:
        try:
            return tuple(self._make()), ""
        except (ValueError, OSError) as error:
            return (), str(error) or type(error).__name__


class Endpoint:
    """A page of metrics at `listen` ("127.0.0.1:9464"), in a thread of its own, from `start` or `with` to `close`."""

    def __init__(self, listen: str, make: Callable[[], Iterable[Sample]]) -> None:
        """Raises MissingExtraError, ValueError for a place that is none."""
        require()
        from fedmq_protocol.observing import place

        self._host, self._port = place(listen)
        self._make = Cached(make)
        self._close: Callable[[], None] = lambda: None

    @property
    def port(self) -> int:
        """The one in use, once it has started."""
        return self._port

    def start(self) -> Self:
        """Raises OSError where nothing can listen there."""
        from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server

        registry: CollectorRegistry = CollectorRegistry(auto_describe=False)
        build = Sample(metric=BUILD, value=1, labels=(__version__,))
        registry.register(_Collector(lambda: (build, *self._make())))
        ProcessCollector(registry=registry)
        try:
            server, thread = start_http_server(self._port, self._host, registry)
        except OSError as error:
            raise OSError(
                f"metrics.listen: cannot listen on {self._host} port {self._port}: {error.strerror or error}"
            ) from error
        self._port = int(server.server_port)

        def close() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        self._close = close
        log.info("metrics at http://%s:%d/metrics", self._host, self._port)
        if self._host not in ("127.0.0.1", "::1", "localhost"):
            log.warning("whoever reaches %s port %d may read the metrics: no password is asked", self._host, self._port)
        return self

    def close(self) -> None:
        self._close()
        self._close = lambda: None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Collector:
    """What prometheus_client asks for the families of a page."""

    def __init__(self, samples: Callable[[], Iterable[Sample]]) -> None:
        self._samples = samples

    def collect(self) -> Iterator[Family]:
        by_metric: dict[Metric, list[Sample]] = {}
        for sample in self._samples():
            by_metric.setdefault(sample.metric, []).append(sample)
        for metric, samples in by_metric.items():
            yield _family(metric, samples)


def _family(metric: Metric, samples: Iterable[Sample]) -> Family:
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
        InfoMetricFamily,
    )

    name, about, labels = metric.name, metric.about, metric.labels
    if metric.kind == "histogram":
        histograms = HistogramMetricFamily(name, about, labels=labels)
        for sample in samples:
            assert isinstance(sample.value, Histogram)  # of a histogram
            histograms.add_metric(sample.labels, list(sample.value.buckets), sample.value.total)
        return histograms
    if metric.kind == "info":
        infos = InfoMetricFamily(name, about)
        for sample in samples:
            infos.add_metric((), dict(zip(labels, sample.labels, strict=True)))
        return infos
    family: CounterMetricFamily | GaugeMetricFamily
    if metric.kind == "counter":
        family = CounterMetricFamily(name, about, labels=labels)
    else:
        family = GaugeMetricFamily(name, about, labels=labels)
    for sample in samples:
        assert not isinstance(sample.value, Histogram)  # of a counter or a gauge
        family.add_metric(sample.labels, sample.value)
    return family
