"""Prometheus metrics of a server: calls by outcome, latencies, waiting rooms, memory of the
process.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

BUCKETS_S = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
Statistics = Mapping[str, Mapping[str, float]]
Family = type[GaugeMetricFamily] | type[CounterMetricFamily]


class Metrics:
    """Counts of one server; several servers in a process do not mix."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self._calls = Counter(
            'tools_calls', 'Calls by outcome: ok or a kind of failure',
            ['tool', 'backend', 'outcome', 'cache_hit'], registry=self._registry,
        )  # fmt: skip
        self._seconds = Histogram(
            'tools_call_seconds', 'Time from request to answer', ['tool'], buckets=BUCKETS_S,
            registry=self._registry,
        )  # fmt: skip
        self._degraded = Counter(
            'tools_degraded',
            'Answers that lacked something',
            ['tool', 'backend'],
            registry=self._registry,
        )

    def observe(
        self, tool: str, backend: str, outcome: str, cache_hit: bool, seconds: float
    ) -> None:
        """Counts one call.

        Args:
            tool: its name.
            backend: that answered.
            outcome: 'ok' or a failure kind.
            cache_hit: whether no back end was asked.
            seconds: that the call took.
        """
        self._calls.labels(tool, backend, outcome, str(cache_hit).lower()).inc()
        self._seconds.labels(tool).observe(seconds)

    def observe_degraded(self, tool: str, backend: str) -> None:
        """Counts one answer that lacked something."""
        self._degraded.labels(tool, backend).inc()

    def watch(
        self,
        name: str,
        help_text: str,
        read: Callable[[], Statistics],
        family: Family = GaugeMetricFamily,
    ) -> None:
        """Adds a metric for each value of a table that is read whenever metrics are asked for.

        Args:
            name: of the metric.
            help_text: a sentence about it.
            read: gives {tool: {label: value}}.
            family: a gauge; a counter for values that only grow.
        """
        self._registry.register(_Watched(name, help_text, read, family))

    def text(self) -> bytes:
        """All metrics in Prometheus's text format."""
        return generate_latest(self._registry)


class Tally:
    """Counts by name. Safe to share between threads."""

    def __init__(self, *names: str):
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(names, 0)

    def add(self, name: str) -> None:
        """Counts one more of these."""
        with self._lock:
            self._counts[name] += 1

    def counts(self) -> dict[str, int]:
        """Numbers of each so far."""
        with self._lock:
            return dict(self._counts)


@dataclass(eq=False)
class _Watched(Collector):
    name: str
    help_text: str
    read: Callable[[], Statistics]
    family: Family

    def collect(self):
        family = self.family(self.name, self.help_text, labels=['tool', 'what'])
        for tool, values in self.read().items():
            for what, value in values.items():
                family.add_metric([tool, what], value)
        yield family
