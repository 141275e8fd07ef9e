"""The layout turned into prompts, as plain text or in a model's chat template. Knows frameworks, and no engine."""

from steper_ray.prompts.encoder import PromptEncoder
from steper_ray.prompts.style import MARK, PromptWriter, encoder_for, end_of, mark_style, style_of

__all__ = ["MARK", "PromptEncoder", "PromptWriter", "encoder_for", "end_of", "mark_style", "style_of"]
