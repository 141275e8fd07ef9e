"""The base of every section of the config."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

from steper_ray.core.storage import as_path, is_remote

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


def _path(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    if is_remote(value) or not isinstance(value, str | Path):
        return value if is_remote(value) else check(value)
    text = str(value)
    if text.startswith("hub:"):  # corpora.hub
        return Path(f"hub:{expand(text.removeprefix('hub:'))}")
    return as_path(expand(text))


FilePath = Annotated[Path, WrapValidator(_path), PlainSerializer(str, return_type=str, when_used="json")]
"""A file or folder of this machine or of a store (s3://bucket/x, gs://bucket/x)."""

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
