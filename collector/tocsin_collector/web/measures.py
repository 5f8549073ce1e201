"""The web process's own figures, in a registry of its own: requests and how long they took."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class Measures:
    """One per process; labels are route names, never addresses, so that their number is bounded."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("tocsin_web_requests", "Requests answered", ("route", "status"), registry=self.registry)
        self.seconds = Histogram(
            "tocsin_web_request_seconds",
            "Time to the answer",
            ("route",),
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5),
            registry=self.registry,
        )
        self.engine_up = Gauge("tocsin_engine_up", "Whether the engine answers", registry=self.registry)
