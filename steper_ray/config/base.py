"""What every section of the config is made of."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A part of the config: unknown fields are errors, defaults are checked too."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, use_attribute_docstrings=True
    )

    @model_validator(mode="after")
    def _local_paths(self) -> Section:
        for name in type(self).model_fields:
            if isinstance(value := getattr(self, name), Path) and _is_url(value):
                raise ValueError(
                    f"{name}: {value} is a URL, and only paths work: mount the bucket and give its path"
                )
        return self


def _is_url(path: Path) -> bool:
    """Whether a path was written as a URL (s3://bucket/x), of which Path() keeps one slash."""
    scheme, colon, rest = str(path).partition(":")
    return bool(colon) and len(scheme) > 1 and scheme.replace("+", "").isalnum() and rest.startswith("/")
