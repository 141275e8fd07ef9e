"""Frameworks, one file each: layout, how a chain is cut into steps, what a step asks, its gold chain, demonstrations.

- `reasoning.framework` names one of FRAMEWORKS, or `package.module:Name`, an object or a class that can be imported.
- Pure text: no tokenizer, no engine, no Ray.
"""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from pathlib import Path

from steper_ray.config import ReasoningConfig
from steper_ray.core.errors import DataError, SteperError
from steper_ray.frameworks.base import Fact, Framework, rewrites
from steper_ray.frameworks.ircot import IRCoT
from steper_ray.frameworks.iter_retgen import IterRetgen
from steper_ray.frameworks.layout import Layout
from steper_ray.frameworks.react import ReAct
from steper_ray.frameworks.self_ask import SelfAsk

__all__ = ["FRAMEWORKS", "Fact", "Framework", "Layout", "framework_of", "layout_for", "layouts", "rewrites"]

#: By name. Those of other packages join when `framework_of` first imports them.
FRAMEWORKS: dict[str, Framework] = {
    "ircot": IRCoT(),
    "self_ask": SelfAsk(),
    "react": ReAct(),
    "iter_retgen": IterRetgen(),
}
_PARTS = ("layout", "stop", "next_query", "cut", "clean", "gold_chain")


def framework_of(name: str) -> Framework:
    """The framework by its name, or imported from `package.module:Name`. Raises SteperError."""
    if name not in FRAMEWORKS:
        FRAMEWORKS[name] = _imported(name)
    return FRAMEWORKS[name]


def layouts() -> dict[str, Layout]:
    """The layouts of all known frameworks, by name."""
    return {name: framework.layout for name, framework in FRAMEWORKS.items()}


def layout_for(config: ReasoningConfig) -> Layout:
    """The framework's layout, with demonstrations in front where the config asks for them.

    Raises SteperError for an unknown framework, and DataError for demonstrations that cannot be read.
    """
    framework = framework_of(config.framework)
    if config.demonstrations is not None:
        return replace(framework.layout, preamble=_read(config.demonstrations))
    if config.few_shot:
        return replace(framework.layout, preamble=framework.demonstrations)
    return framework.layout


def _imported(name: str) -> Framework:
    module, colon, attribute = name.partition(":")
    if not colon:
        known = ", ".join(FRAMEWORKS)
        raise SteperError(f"reasoning.framework: '{name}' is unknown: use {known}, or package.module:Name")
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise SteperError(f"reasoning.framework: '{name}' cannot be imported: {error}") from error
    framework: Framework = found() if isinstance(found, type) else found
    if missing := [part for part in _PARTS if not hasattr(framework, part)]:
        raise SteperError(
            f"reasoning.framework: '{name}' has no {missing[0]}: see steper_ray/frameworks/base.py"
        )
    return framework


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").rstrip("\n") + "\n\n"
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"reasoning.demonstrations: {path} cannot be read: {error}") from error
