"""Generation: transformers, vLLM in process, or an OpenAI-compatible endpoint, behind one protocol."""

from steper_ray.generation.base import Chunk, Completion, Generator, Prompt, generate
from steper_ray.generation.factory import open_generator, open_students

__all__ = ["Chunk", "Completion", "Generator", "Prompt", "generate", "open_generator", "open_students"]
