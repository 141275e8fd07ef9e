"""What every section of the config is made of."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

Positive = Annotated[int, Field(ge=1)]

_VARIABLE = re.compile(r"\$(?:\{\w+\}|[A-Za-z_]\w*)")


def expand(text: str) -> str:
    """A path as a shell reads it: `~` and environment variables are replaced. Raises ValueError for an unset one."""
    expanded = os.path.expanduser(os.path.expandvars(text))
    if unset := _VARIABLE.search(expanded):
        raise ValueError(f"the environment variable {unset[0]} is not set: set it, or write the whole path")
    if expanded.startswith("~"):
        raise ValueError(f"{text}: there is no such user: write the whole path")
    return expanded


FolderOrName = Annotated[str, AfterValidator(expand)]
"""A model's folder, or its name on the hub."""


class Section(BaseModel):
    """A part of the config: unknown fields are errors, defaults are checked too, numbers are finite."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        validate_default=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
    )

    @field_validator("*")
    @classmethod
    def _local_path(cls, value: Any) -> Any:
        if not isinstance(value, Path):
            return value
        if str(value).startswith("hub:"):  # corpora.hub
            return Path(f"hub:{expand(str(value).removeprefix('hub:'))}")
        if _is_url(value):
            raise ValueError(f"{value} is a URL, and only paths work: mount the bucket and give its path")
        return Path(expand(str(value)))


def _is_url(path: Path) -> bool:
    """Whether a path was written as a URL (s3://bucket/x), of which Path() keeps one slash."""
    scheme, colon, rest = str(path).partition(":")
    return bool(colon) and len(scheme) > 1 and scheme.replace("+", "").isalnum() and rest.startswith("/")
