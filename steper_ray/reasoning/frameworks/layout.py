"""The prompt layout a config asks for: its framework's, with or without demonstrations."""

from __future__ import annotations

from dataclasses import replace
from importlib import resources
from pathlib import Path

from steper_ray.config import ReasoningConfig
from steper_ray.errors import DataError
from steper_ray.prompt import LAYOUTS, Layout


def layout_for(config: ReasoningConfig) -> Layout:
    """The framework's layout, with demonstrations in front where the config asks for them.

    Raises DataError for a demonstrations file that cannot be read.
    """
    layout = LAYOUTS[config.framework]
    if config.demonstrations is not None:
        return replace(layout, preamble=_read(config.demonstrations))
    if config.few_shot:
        shown = resources.files("steper_ray.reasoning") / "demonstrations" / f"{config.framework}.txt"
        return replace(layout, preamble=shown.read_text(encoding="utf-8"))
    return layout


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").rstrip("\n") + "\n\n"
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"reasoning.demonstrations: {path} cannot be read: {error}") from error
