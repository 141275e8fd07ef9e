"""A teacher that many rollouts share: the config's engine behind an OpenAI-compatible endpoint, by Ray Serve LLM.

Run as: serve run steper_ray.serving.teacher:build config=jobs/configs/paper_musique.yaml replicas=2
Rollouts reach it at every node that runs a replica, with: engine.kind=openai engine.url=http://127.0.0.1:8000/v1
engine.tokenizer=MODEL build.num_gpus=0, and engine.model where the name it serves is another one (`served_name`).

Serve listens on loopback by default, and the endpoint asks for no key: whatever reaches the port may
use it. Prompts go in as token ids; ids and log-probabilities come back with every chunk, the usage with cached tokens
at a stream's end. What Ray 2.60 does not do: refuse a request when its queue is long (it waits), and report in the
status that a prompt is wrong in a stream (the stream's only event does).
"""
# No `from __future__ import annotations`: Serve reads the annotation of `build` and takes text for no model.

import os
from typing import Any

from ray import serve

from steper_ray.config import Config
from steper_ray.config.base import Positive
from steper_ray.core.errors import ModelError
from steper_ray.models import absolute_engine, resolve_model
from steper_ray.serving.args import ConfigArgs
from steper_ray.serving.deployments import INGRESS_CPUS
from steper_ray.serving.plan import public_name

# Ray 2.60 logs no prompts; versions that do read this.
_ENVIRONMENT = {"RAYLLM_ENABLE_REQUEST_PROMPT_LOGS": "0"}


class TeacherArgs(ConfigArgs):
    """Arguments of the builder."""

    replicas: Positive = 1
    """Engines, each with `build.num_cpus`, or with `engine.tensor_parallel_size` GPUs where `build.num_gpus` is set."""
    accelerator_type: str | None = None
    """Ray's name of the GPUs to use, such as `H100`; by default any."""


def build(args: TeacherArgs) -> serve.Application:
    """The application. Raises ConfigError and ModelError."""
    from ray.serve.llm import build_openai_app  # brings vLLM's settings

    return build_openai_app(openai_args(args.resolve(), args.replicas, args.accelerator_type))


def served_name(model: str) -> str:
    """The name by which requests ask for `engine.model`: Ray takes what follows a colon for an adapter."""
    return public_name(model).rpartition(":")[2]


def openai_args(config: Config, replicas: int, accelerator_type: str | None = None) -> dict[str, Any]:
    """Arguments of Ray's own builder. Raises ModelError."""
    from steper_ray.generation.vllm_settings import ENVIRONMENT, vllm_arguments

    engine = absolute_engine(config.engine)
    if engine.kind != "vllm":
        raise ModelError(f"engine.kind={engine.kind}: a shared teacher runs on vLLM: set engine.kind=vllm")
    on_cpu = config.build.num_gpus == 0
    arguments = vllm_arguments(engine, on_cpu) | {"enable_prompt_tokens_details": True}  # cached tokens
    environment = {name: os.environ.get(name, value) for name, value in ENVIRONMENT.items()} | _ENVIRONMENT
    teacher = {
        "model_loading_config": {
            "model_id": served_name(engine.model),
            "model_source": resolve_model(engine.model),
        },
        "engine_kwargs": arguments,
        "accelerator_type": accelerator_type,
        # On GPUs Ray reserves one a worker, wherever they are.
        "placement_group_config": {"bundle_per_worker": {"CPU": config.build.num_cpus}} if on_cpu else None,
        "runtime_env": {"env_vars": environment},
        "deployment_config": {
            "num_replicas": replicas,
            # A replica gets what its engine runs together; the others wait for whichever is free first.
            "max_ongoing_requests": engine.max_batch,
            "graceful_shutdown_timeout_s": engine.timeout_s,
            "ray_actor_options": {"num_cpus": 0 if on_cpu else config.build.num_cpus},
        },
    }
    ingress = {
        "num_replicas": replicas,
        "max_ongoing_requests": 1 << 20,  # it only passes on
        "ray_actor_options": {"num_cpus": INGRESS_CPUS},
    }
    return {"llm_configs": [teacher], "ingress_deployment_config": ingress}
