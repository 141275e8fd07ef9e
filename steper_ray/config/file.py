"""Reads a Config from a YAML file and dotted overrides (`train.epochs=3`), and checks every field.

An unknown or out-of-range field ends in a ConfigError that names the file, the field's path and the fix.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from steper_ray.config import Config, Section
from steper_ray.core.errors import SteperError
from steper_ray.core.storage import as_path


class ConfigError(SteperError):
    """A config file or an override that cannot be used; the message names the field and the fix."""


#: The project's configs: the checkout's, where one is in it, else those that came with the package.
CONFIGS = Path("jobs/configs") if Path("jobs/configs").is_dir() else Path(__file__).parents[1] / "configs"


def load_config(path: Path | str | None = None, overrides: Sequence[str] = ()) -> Config:
    """A checked config from a YAML file (or the defaults) with dotted overrides `a.b=value` on top.

    Values of overrides are YAML. Raises ConfigError.
    """
    where = str(path) if path is not None else "defaults"
    data: dict[str, Any] = {}
    if path is not None:
        try:
            loaded = _parse(_file(path).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise ConfigError(f"{path}: no such config file") from error
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror}. Give a YAML file") from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path}: not UTF-8 (byte {error.start}). Save it as UTF-8") from error
        except yaml.YAMLError as error:
            raise ConfigError(f"{path}: not valid YAML: {error}") from error
        if loaded is not None and not isinstance(loaded, dict):
            raise ConfigError(f"{path}: a config is a mapping of sections, this is a {type(loaded).__name__}")
        data = loaded or {}
    return _checked(data, overrides, where)


def with_overrides(config: Config, overrides: Sequence[str]) -> Config:
    """The config with dotted overrides on top. Raises ConfigError, which names them."""
    return _checked(config.model_dump(mode="json"), overrides, ", ".join(overrides)) if overrides else config


def _checked(data: dict[str, Any], overrides: Sequence[str], where: str) -> Config:
    for override in overrides:
        _override(data, override)
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        raise ConfigError("\n".join(f"{where}: {_explain(e)}" for e in error.errors())) from None


def _file(path: Path | str) -> Path:
    try:
        return as_path(path).expanduser()
    except ValueError as error:
        raise ConfigError(str(error)) from error


class _Loader(yaml.SafeLoader):
    """YAML in which a key comes once and a date is text."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and not key.tag.endswith(":merge"):
                if key.value in lines:
                    raise yaml.constructor.ConstructorError(
                        None,
                        None,
                        f"'{key.value}' comes twice, first in line {lines[key.value]}: keep one",
                        key.start_mark,
                    )
                lines[key.value] = key.start_mark.line + 1
        return super().construct_mapping(node, deep=deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _parse(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)  # a SafeLoader


def _override(data: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals:
        raise ConfigError(f"override '{override}': write section.field=value")
    *sections, leaf = key.strip().split(".")
    node = data
    for section in sections:
        child = node.setdefault(section, {})
        if not isinstance(child, dict):
            raise ConfigError(f"override '{override}': '{section}' is a value, not a section")
        node = child
    try:
        node[leaf] = _parse(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"override '{override}': the value is not valid YAML: {error}") from error


def _explain(error: Any) -> str:
    path = ".".join(str(part) for part in error["loc"]) or "config"
    if error["type"] != "extra_forbidden":
        return f"{path}: {error['msg'].removeprefix('Value error, ')} (given: {error['input']!r})"[:500]
    model: Any = Config
    for part in error["loc"][:-1]:
        field = model.model_fields.get(part)  # None for a number: the place in a list of sections
        model = model if field is None else _section(field.annotation) or model
    near = difflib.get_close_matches(str(error["loc"][-1]), model.model_fields, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"fields here: {', '.join(model.model_fields)}"
    return f"{path}: unknown field; {hint}"


def _section(annotation: Any) -> type[Section] | None:
    """The section that a field holds, perhaps one of several, or None."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next((found for part in get_args(annotation) if (found := _section(part))), None)
