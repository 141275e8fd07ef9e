"""Prometheus metrics of the endpoint, through Ray: each replica's agent exports them at its node's metrics port.

Names get Ray's prefix `ray_`, and Serve's tags (application, deployment, replica) beside those below. Labels are of few
values: no question, no caller's text. What Serve counts itself is not counted again, such as queued questions
(`ray_serve_deployment_queued_queries`) and healthy replicas. The dashboard is cluster/grafana/reasoner.json.
"""

from __future__ import annotations

from collections import Counter as Tally
from typing import Any

from ray.serve import metrics

from steper_ray.serving.engine import Ask, Generated
from steper_ray.serving.observing import Outcome

#: Seconds: from a cached search to the longest deadline.
SECONDS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0]
STEPS = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0]


class RequestMetrics:
    """Of each question, as the HTTP side sees it (`observing.Observer`).

    `outcome` is the stop reason of an answer (those of `api.DEGRADED` are degraded ones), the code of an error, or
    `client_left`.
    """

    def __init__(self) -> None:
        self._requests = _counter("steper_requests", "Questions by what they came to.", "model", "outcome")
        self._under_way = metrics.Gauge(
            "steper_requests_under_way", description="Questions being answered.", tag_keys=("model",)
        )
        self._seconds = _seconds("steper_request_seconds", "From a question's request to its end.", "model")
        self._first = _seconds("steper_first_token_seconds", "Until the first text of a stream.", "model")
        self._steps = metrics.Histogram(
            "steper_steps", description="Steps of an answer.", boundaries=STEPS, tag_keys=("model",)
        )
        self._retrieval = _seconds("steper_step_retrieval_seconds", "Search of one step.", "model", "step")
        self._generation = _seconds(
            "steper_step_generation_seconds", "Generation of one step.", "model", "step"
        )
        self._tokens = _counter(
            "steper_tokens",
            "Tokens: prompt, completion, and cached (of the prompts, from the engine's cache).",
            "model",
            "kind",
        )
        self._now: Tally[str] = Tally()

    def began(self, ask: Ask) -> None:
        self._count(ask.model, 1)

    def ended(self, ask: Ask, outcome: Outcome) -> None:
        model = {"model": ask.model}
        self._count(ask.model, -1)
        self._requests.inc(tags=model | {"outcome": outcome.name})
        self._seconds.observe(outcome.seconds, tags=model)
        if outcome.first_token_s is not None:
            self._first.observe(outcome.first_token_s, tags=model)
        if outcome.trajectory is None:
            return
        steps = outcome.trajectory.steps
        self._steps.observe(len(steps), tags=model)
        for step in steps:
            number = model | {"step": str(step.index)}
            self._retrieval.observe(step.retrieval_seconds, tags=number)
            self._generation.observe(step.generation_seconds, tags=number)
        for kind in ("prompt", "completion", "cached"):
            used = sum(getattr(step.usage, f"{kind}_tokens") for step in steps)
            if used:  # Ray takes no zero
                self._tokens.inc(used, tags=model | {"kind": kind})

    def _count(self, model: str, change: int) -> None:
        self._now[model] += change
        self._under_way.set(self._now[model], tags={"model": model})


class SearchMetrics:
    """Of the searches of one process; `cached`: yes or no."""

    def __init__(self) -> None:
        self._searches = _counter("steper_searches", "Queries, those found in the cache apart.", "cached")

    def __call__(self, asked: int, cached: int) -> None:
        for name, count in (("yes", cached), ("no", asked - cached)):
            if count:
                self._searches.inc(count, tags={"cached": name})


class EngineMetrics:
    """Of each generation, as an engine sees it; `outcome`: done, aborted (its client left) or failed."""

    def __init__(self) -> None:
        self._generations = _counter("steper_generations", "Generations, one a step.", "model", "outcome")
        self._first = _seconds(
            "steper_generation_first_token_seconds", "Until the engine's first text of a step.", "model"
        )

    def __call__(self, generated: Generated) -> None:
        model = {"model": generated.model}
        self._generations.inc(tags=model | {"outcome": generated.outcome})
        if generated.first_token_s is not None:
            self._first.observe(generated.first_token_s, tags=model)


def _counter(name: str, description: str, *tags: str) -> metrics.Counter:
    names: Any = tags  # Ray's own annotation says that there is one
    return metrics.Counter(name, description=description, tag_keys=names)


def _seconds(name: str, description: str, *tags: str) -> metrics.Histogram:
    names: Any = tags
    return metrics.Histogram(name, description=description, boundaries=SECONDS, tag_keys=names)
