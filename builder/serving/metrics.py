"""Counts and times of a server, in the text format of Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
SIZES = (1, 2, 4, 8, 16, 32)


class Metrics:
    """Counts and times of one server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.answers = Counter(
            "policysmith_answers", "Messages, by answer", ["answer"], registry=self._registry
        )
        """Messages of clients: `chunk`, `observed`, `reset`, `refused` or `failed`."""
        self.refusals = Counter(
            "policysmith_refused_connections", "Connections refused", ["reason"], registry=self._registry
        )
        """Connections refused: `token`, `clients` or `starting`."""
        self.clients = Gauge("policysmith_clients", "Open connections", registry=self._registry)
        self.waiting = Gauge(
            "policysmith_waiting_observations", "Observations not yet in a batch", registry=self._registry
        )
        self.request_seconds = Histogram(
            "policysmith_request_seconds",
            "From a message to its chunk",
            buckets=SECONDS,
            registry=self._registry,
        )
        self.inference_seconds = Histogram(
            "policysmith_inference_seconds", "Prediction of a batch", buckets=SECONDS, registry=self._registry
        )
        self.batch_size = Histogram(
            "policysmith_batch_size", "Observations in a batch", buckets=SIZES, registry=self._registry
        )

    def text(self) -> str:
        """Return all values."""
        return generate_latest(self._registry).decode()
