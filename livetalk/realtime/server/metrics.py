"""What the server counts, for Prometheus."""

from __future__ import annotations

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = CONTENT_TYPE_LATEST
SHORT = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
LONG = (0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0)


class Metrics:
    """One registry for each server, so that two in a process do not add up. Labels have few values, none of them a
    viewer's."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.sessions = Gauge("livetalk_sessions", "Sessions that are open", registry=registry)
        self.most_sessions = Gauge("livetalk_sessions_limit", "Sessions that may be open", registry=registry)
        self.opened = Counter("livetalk_sessions_opened", "Sessions opened", registry=registry)
        self.ended = Counter("livetalk_sessions_ended", "Sessions ended", ["reason"], registry=registry)
        self.refused = Counter("livetalk_refused", "Requests and messages refused", ["code"], registry=registry)
        self.requests = Counter(
            "livetalk_http_requests", "HTTP requests answered", ["method", "route", "status"], registry=registry
        )
        self.messages = Counter("livetalk_messages", "Control messages carried out", ["type"], registry=registry)
        self.frames = Counter("livetalk_frames", "Frames shown", registry=registry)
        self.repeated = Counter("livetalk_frames_repeated", "Ticks without a new frame in time", registry=registry)
        self.blocks = Counter("livetalk_blocks", "Blocks rendered", ["kind"], registry=registry)
        self.interruptions = Counter("livetalk_interruptions", "Answers interrupted", registry=registry)
        self.interrupting = Histogram(
            "livetalk_interruption_seconds", "From the wish to stop until it is done", buckets=SHORT, registry=registry
        )
        self.first_frame = Histogram(
            "livetalk_first_frame_seconds",
            "From the end of a typed sentence to the first frame that speaks",
            buckets=LONG,
            registry=registry,
        )
        self.opening = Histogram(
            "livetalk_opening_seconds", "From an offer to its answer", buckets=LONG, registry=registry
        )
        self.lag = Gauge("livetalk_loop_lag_seconds", "How late the event loop was, lately", registry=registry)

    def text(self) -> bytes:
        """In the text format of Prometheus."""
        return generate_latest(self.registry)
