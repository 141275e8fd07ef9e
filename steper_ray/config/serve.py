"""Settings of the reasoner endpoint: what is served, how each deployment scales, and the limits of a request."""

from __future__ import annotations

from pydantic import Field, model_validator

from steper_ray.config.base import FolderOrName, Positive, Section


class AutoscaleConfig(Section):
    """How a deployment grows from its `replicas`, the fewest, to `max_replicas`, and shrinks again."""

    max_replicas: Positive
    target_ongoing_requests: float = Field(32.0, gt=0)
    """Requests a replica should have under way: more add replicas, fewer take them away."""
    upscale_delay_s: float = Field(10.0, ge=0)
    """How long there must be too many before a replica is added."""
    downscale_delay_s: float = Field(300.0, ge=0)
    """How long there must be too few before one is taken away: to load a model again costs minutes."""


class RetrieverServeConfig(Section):
    """The retriever as separate deployments; without them each engine searches by itself."""

    shards: Positive = 1
    """Parts of the corpus that are searched side by side, each by its own replicas (bm25 alone): the result is
    that of the whole index."""
    replicas: Positive = 1
    """Replicas of each shard."""
    autoscale: AutoscaleConfig | None = None
    """Of each shard."""
    max_surge_percent: int = Field(100, ge=0, le=100)
    """As `serve.max_surge_percent`, of each shard: without it a shard of one replica is not searched while an update
    opens the next one."""
    num_cpus: float = Field(0.5, gt=0)
    """CPUs reserved for each replica."""
    max_ongoing_requests: Positive = 64
    """Searches that a replica takes at once."""


class StudentConfig(Section):
    """One model of several that an endpoint serves, by its name."""

    name: str = Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@+-]*$")
    """Its name in requests and in `GET /v1/models`."""
    model: FolderOrName | None = None
    """As `engine.model`, which is the default. Students of the same model share its engine."""
    adapter: FolderOrName | None = None
    """Folder of a LoRA adapter over `model` (vLLM alone; elsewhere serve the merged student)."""
    replicas: Positive | None = None
    """Replicas of its engine; by default `serve.replicas`."""


class ServeConfig(Section):
    """The reasoner endpoint."""

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=1, le=65535)
    students: tuple[StudentConfig, ...] = ()
    """The students by name, the default one first; by default `engine.model` alone."""
    replicas: Positive = 1
    """Replicas of each engine deployment."""
    autoscale: AutoscaleConfig | None = None
    """Of each engine deployment."""
    max_surge_percent: int = Field(0, ge=0, le=100)
    """Replicas of each engine that an update may have besides its own, in percent of them, rounded up. With one the
    old model answers until the new one is ready, which needs room for it (a GPU) that the cluster must have or add:
    the update waits for it. With 0 an old replica ends before the next one begins, and where it is the only one
    questions wait."""
    ingress_replicas: Positive = 1
    """Replicas of the HTTP side."""
    ingress_autoscale: AutoscaleConfig | None = None
    retriever: RetrieverServeConfig | None = None
    """The retriever on its own; by default within each engine."""
    num_cpus: float = Field(1.0, gt=0)
    """CPUs reserved for each engine replica: the threads of an engine without a GPU."""
    num_gpus: float = Field(0.0, ge=0)
    """GPUs reserved for each engine replica; set it to `engine.tensor_parallel_size` with vLLM on a GPU cluster."""
    max_ongoing_requests: Positive = 64
    """Questions that an engine replica works on at once."""
    max_queued_requests: Positive = 256
    """Questions that wait when all replicas are busy; one more is refused with 429."""
    request_timeout_s: float = Field(60.0, gt=0)
    """End-to-end deadline of one question."""
    retrieval_timeout_s: float = Field(10.0, gt=0)
    """Longest search of one step: then the answer so far is given, with the stop reason `retriever_failed`."""
    traces_url: str | None = Field(None, pattern=r"^https?://")
    """OTLP/HTTP address to which OpenTelemetry traces go, such as http://collector:4318/v1/traces; by default none are
    made. They hold times and numbers, never a text."""
    token_env: str = "STEPER_API_TOKEN"
    """Name of the environment variable with the bearer token; while it is unset, only loopback clients are served."""

    @model_validator(mode="after")
    def _names(self) -> ServeConfig:
        names = [student.name for student in self.students]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"students: the name '{name}' comes twice: give each student another name")
        return self
