"""Arguments that every builder of a Serve application takes: a run's config and what lies over it."""
# No `from __future__ import annotations`: Serve reads a builder's annotations and takes text for no model.

import json
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator

from steper_ray.config import Config
from steper_ray.config.file import load_config


class ConfigArgs(BaseModel):
    """Relative paths are seen from where the builder runs."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    config: Path | None = None
    """YAML file of a run."""
    overrides: tuple[str, ...] = ()
    """Such as `reasoning.unit=chain`: a list, a mapping, or on a command line all in one, parted by blanks."""
    model: str | None = None
    """engine.model."""

    @field_validator("overrides", mode="before")
    @classmethod
    def _as_list(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(shlex.split(value))
        if isinstance(value, Mapping):
            return tuple(_dotted(value))
        return tuple(value) if isinstance(value, list) else value

    def named(self) -> dict[str, Any]:
        """Config fields that have their own argument; None leaves them to the file."""
        return {"engine.model": self.model}

    def resolve(self) -> Config:
        """Raises ConfigError."""
        short = [
            f"{key}={json.dumps(str(value))}" for key, value in self.named().items() if value is not None
        ]
        return load_config(self.config, [*self.overrides, *short])


def _dotted(value: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, item in value.items():
        if isinstance(item, Mapping):
            yield from _dotted(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}={json.dumps(item)}"
