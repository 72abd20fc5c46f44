"""Counters for Prometheus, under vLLM's names where vLLM counts the same."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from ..runtime.reply import Reply
from .engine import Engine, Job

#: Prometheus' text format, for the response's header.
CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 150, 600)
_MODEL = ("model_name",)


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self, engine: Engine) -> None:
        self._registry = CollectorRegistry()
        running = Gauge("vllm:num_requests_running", "Requests being answered.", _MODEL, registry=self._registry)
        waiting = Gauge("vllm:num_requests_waiting", "Requests waiting for their turn.", _MODEL, registry=self._registry)
        for name in engine.pairs:
            running.labels(name).set_function(lambda name=name: engine.counts()[name][0])  # type: ignore[misc]
            waiting.labels(name).set_function(lambda name=name: engine.counts()[name][1])  # type: ignore[misc]
        self._first = self._histogram("vllm:time_to_first_token_seconds", "From the request to its first text.")
        self._whole = self._histogram("vllm:e2e_request_latency_seconds", "From the request to the end of its reply.")
        self._queued = self._histogram("vllm:request_queue_time_seconds", "Time in the queue.")
        self._read = self._counter("vllm:prompt_tokens", "Prompt tokens.")
        self._written = self._counter("vllm:generation_tokens", "Reply tokens.")
        self._drafted = self._counter("vllm:spec_decode_num_draft_tokens", "Drafted tokens.")
        self._accepted = self._counter("vllm:spec_decode_num_accepted_tokens", "Accepted tokens.")
        self._blocks = self._counter("vllm:spec_decode_num_drafts", "Blocks.")
        self._ended = self._counter("vllm:request_success", "Replies by finish reason.", (*_MODEL, "finished_reason"))
        self._refused = self._counter("speccascade:requests_refused", "Error responses by status.", ("status",))

    def count_reply(self, model: str, job: Job, reply: Reply, first_s: float, whole_s: float) -> None:
        """Count one reply, whose first text came after ``first_s`` seconds and whose end after ``whole_s``."""
        stats = reply.stats
        for histogram, seconds in ((self._first, first_s), (self._whole, whole_s), (self._queued, job.queued_s)):
            histogram.labels(model).observe(seconds)
        counts = {
            self._read: stats.prompt_tokens,
            self._written: stats.tokens,
            self._drafted: stats.drafted,
            self._accepted: stats.accepted,
            self._blocks: stats.blocks,
        }
        for counter, count in counts.items():
            counter.labels(model).inc(count)
        self._ended.labels(model, reply.finish_reason or "abort").inc()

    def count_refusal(self, status: int) -> None:
        self._refused.labels(str(status)).inc()

    def text(self) -> bytes:
        return generate_latest(self._registry)

    def _histogram(self, name: str, description: str) -> Histogram:
        return Histogram(name, description, _MODEL, buckets=_SECONDS, registry=self._registry)

    def _counter(self, name: str, description: str, labels: tuple[str, ...] = _MODEL) -> Counter:
        return Counter(name, description, labels, registry=self._registry)
