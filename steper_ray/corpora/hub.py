"""Data sets of the Hugging Face hub, or local folders of the same form, as Arrow files.

They are downloaded once, into the cache folder of `datasets`, and read from there.
"""

from __future__ import annotations

from pathlib import Path

from steper_ray.core.errors import DataError, in_one_line

PREFIX = "hub:"
_FORM = (
    "hub:OWNER/NAME/SPLIT or hub:OWNER/NAME/CONFIG/SPLIT (NAME may be NAME@REVISION), or hub:./FOLDER/SPLIT"
)


def is_local(name: str) -> bool:
    """Whether a `hub:` name is a folder's; such a name begins with `/`, `./`, `../` or `~`."""
    return name.removeprefix(PREFIX).startswith(("/", "./", "../", "~"))


def parse(name: str) -> tuple[str, str | None, str | None, str]:
    """The repository or folder, revision, config and split of `hub:REPOSITORY[@REVISION][/CONFIG]/SPLIT`.

    Raises DataError.
    """
    path = Path(name.removeprefix(PREFIX)).expanduser()
    revision = ""
    if is_local(name):
        folder = next((one for one in path.parents if one.is_dir()), path)
        repository, rest = str(folder), path.relative_to(folder).parts
    else:
        repository, rest = "/".join(path.parts[:2]), path.parts[2:]
        repository, _, revision = repository.partition("@")
    if not 1 <= len(rest) <= 2 or "[" in rest[-1]:
        raise DataError(f"{name}: write {_FORM}; for a part of a split, set corpus.limit")
    return repository, revision or None, rest[0] if len(rest) == 2 else None, rest[-1]


def hub_files(name: str, setting: str) -> list[Path]:
    """The Arrow files of one split, downloaded where they are not here. Raises DataError."""
    repository, revision, config, split = parse(name)
    from datasets import load_dataset

    try:
        dataset = load_dataset(repository, config, split=split, revision=revision)
    except Exception as error:  # of the network, the hub's client and every file format
        raise DataError(f"{setting}={name}: cannot be loaded: {in_one_line(error)}") from error
    return [Path(one["filename"]) for one in dataset.cache_files]
