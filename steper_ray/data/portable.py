"""A run's settings for publication: names in place of absolute paths, and no addresses. Pure."""

from __future__ import annotations

from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

URL = "<url>"


def portable(value: Any) -> Any:
    """The same plain value with paths that hold on one machine alone cut to their last name, and URLs omitted.

    A URL may hold a password, and names a machine; a model's name or a path within the project stays.
    """
    if isinstance(value, dict):
        return {portable(key): portable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [portable(item) for item in value]
    if not isinstance(value, str):
        return value
    if "://" in value:
        return URL
    path: PurePosixPath | PureWindowsPath = PureWindowsPath(value)
    if not path.is_absolute():
        path = PurePosixPath(value)
    outside = path.is_absolute() or value.startswith("~") or ".." in path.parts
    return (path.name or ".") if outside else value
