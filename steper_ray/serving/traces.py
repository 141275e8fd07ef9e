"""OpenTelemetry traces of the endpoint: a span for each question, and in it one for each step's search and generation.

The spans are made when a question has ended, from the times that its trajectory holds: nothing is measured twice, and
the path of a request has no tracing in it. A client's `traceparent` becomes the parent. Spans hold numbers, the model
and the stop reason, never a question, passage or answer. No Ray.
"""

from __future__ import annotations

import time
from typing import Any

from steper_ray.core.errors import SteperError
from steper_ray.schema import Step
from steper_ray.serving.engine import Ask
from steper_ray.serving.observing import CLIENT_LEFT, Outcome

SERVICE = "steper_ray"
_NANO = 1_000_000_000


class Traces:
    """Sends spans to an OTLP/HTTP collector, in the background (`observing.Observer`).

    `url` is the collector's whole address, such as http://collector:4318/v1/traces. Headers with its key come from
    OpenTelemetry's own variable OTEL_EXPORTER_OTLP_HEADERS. Raises SteperError where the library is missing.
    """

    def __init__(self, url: str) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as error:
            raise SteperError(
                f"serve.traces_url: OpenTelemetry cannot be imported ({error}): install the extra `tracing`"
            ) from error
        # A provider of our own: the process' global one is its owner's.
        self._provider = TracerProvider(resource=Resource.create({"service.name": SERVICE}))
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=url)))
        self._tracer = self._provider.get_tracer(SERVICE)
        self._propagator = TraceContextTextMapPropagator()

    def began(self, ask: Ask) -> None:
        pass

    def ended(self, ask: Ask, outcome: Outcome) -> None:
        from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context

        end = time.time_ns()
        start = end - int(outcome.seconds * _NANO)
        parent = self._propagator.extract({"traceparent": ask.trace}) if ask.trace else None
        span = self._tracer.start_span("steper.reason", parent, SpanKind.SERVER, start_time=start)
        span.set_attributes({"steper.id": ask.id, "steper.model": ask.model, "steper.outcome": outcome.name})
        if outcome.first_token_s is not None:
            span.add_event("first_token", timestamp=start + int(outcome.first_token_s * _NANO))
        if outcome.trajectory is not None:
            self._add_steps(outcome.trajectory.steps, start, end, set_span_in_context(span))
        elif outcome.name != CLIENT_LEFT:
            span.set_status(Status(StatusCode.ERROR, outcome.name))
        span.end(end)

    def _add_steps(self, steps: tuple[Step, ...], start: int, end: int, context: Any) -> None:
        """Spans of the steps, one after the other up to the end: what is before the first is the wait for an engine."""
        spent = sum(step.retrieval_seconds + step.generation_seconds for step in steps)
        at = max(start, end - int(spent * _NANO))
        for step in steps:
            for name, seconds in (
                ("steper.retrieve", step.retrieval_seconds),
                ("steper.generate", step.generation_seconds),
            ):
                span = self._tracer.start_span(name, context, start_time=at)
                span.set_attribute("steper.step", step.index)
                if name == "steper.generate":
                    span.set_attributes(
                        {
                            "gen_ai.usage.input_tokens": step.usage.prompt_tokens,
                            "gen_ai.usage.output_tokens": step.usage.completion_tokens,
                        }
                    )
                else:
                    span.set_attribute("steper.passages", len(step.hits))
                at += int(seconds * _NANO)
                span.end(at)

    def close(self) -> None:
        """Sends what is left, and ends the sending."""
        self._provider.shutdown()
