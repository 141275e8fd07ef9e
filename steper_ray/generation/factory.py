"""Opens the engine that a config names. The engines' libraries are imported only here, and only when asked for."""

from __future__ import annotations

from steper_ray.config import EngineConfig
from steper_ray.generation.base import Generator


def open_generator(config: EngineConfig) -> Generator:
    """A loaded engine, ready for requests; `await close()` ends it. Raises ModelError.

    It may be called before an event loop runs or inside one (loading blocks either way: seconds for transformers,
    up to minutes for vLLM). Then use the generator in one event loop only.
    """
    match config.kind:
        case "transformers":
            from steper_ray.generation.transformers_engine import TransformersGenerator

            return TransformersGenerator(config)
        case "vllm":
            from steper_ray.generation.vllm_engine import VllmGenerator

            return VllmGenerator(config)
        case "openai":
            from steper_ray.generation.openai_http import OpenAIGenerator

            return OpenAIGenerator(config)
