"""The layout turned into tokens: completion style. Knows frameworks; no model, no engine, no Ray."""

from steper_ray.prompts.encoder import PromptEncoder

__all__ = ["PromptEncoder"]
