"""Opens the engine that a config names. The engines' libraries are imported only here, and only when asked for."""

from __future__ import annotations

from collections.abc import Mapping

from steper_ray.config import EngineConfig
from steper_ray.generation.base import Generator
from steper_ray.models import check_adapter


def open_students(config: EngineConfig, students: Mapping[str, str | None]) -> dict[str, Generator]:
    """One loaded engine as each of its students: the model itself, or with the LoRA adapter of a folder (vLLM alone).

    Closing any of them closes the engine. Raises ModelError as `open_generator`.
    """
    adapters = {name: folder for name, folder in students.items() if folder is not None}
    if not adapters:
        return dict.fromkeys(students, open_generator(config))
    for folder in adapters.values():
        check_adapter(folder, config)
    from steper_ray.generation.vllm_engine import VllmGenerator

    engine = VllmGenerator(config, adapters)
    return {name: engine.adapted(name) if folder else engine for name, folder in students.items()}


def open_generator(config: EngineConfig, top_logprobs: int = 0) -> Generator:
    """A loaded engine, ready for requests; `await close()` ends it. Raises ModelError.

    `top_logprobs` is the number of likeliest tokens that its chunks hold for each token (`Chunk.top`); an endpoint that
    gives none raises EngineSetupError.

    It may be called before an event loop runs or inside one (loading blocks either way: seconds for transformers,
    up to minutes for vLLM). Then use the generator in one event loop only.
    """
    match config.kind:
        case "transformers":
            from steper_ray.generation.transformers_engine import TransformersGenerator

            return TransformersGenerator(config, top_logprobs)
        case "vllm":
            from steper_ray.generation.vllm_engine import VllmGenerator

            return VllmGenerator(config, top_logprobs=top_logprobs)
        case "openai":
            from steper_ray.generation.endpoint.client import OpenAIGenerator

            return OpenAIGenerator(config, top_logprobs)
