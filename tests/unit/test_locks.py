"""Each accelerator's lock pins what pyproject.toml asks for."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("accelerator", "lock"), [("cpu", "constraints.txt"), ("gpu", "constraints-gpu.txt")]
)
def test_a_lock_has_every_package_in_a_version_that_the_project_accepts(accelerator: str, lock: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    asked = [
        *project["dependencies"],
        *(each for name in (accelerator, "lucene", "dev") for each in extras[name]),
    ]
    lines = (ROOT / lock).read_text(encoding="utf-8").splitlines()
    pinned = dict(line.partition(";")[0].strip().split("==") for line in lines if not line.startswith("#"))
    missing = []
    for requirement in map(Requirement, asked):
        name = canonicalize_name(requirement.name)
        if name == "steper-ray" or (requirement.marker and not requirement.marker.evaluate()):
            continue
        if name not in pinned or not requirement.specifier.contains(pinned[name], prereleases=True):
            missing.append(str(requirement))
    assert not missing, f"{lock}: run make lock"
    pyserini = [Requirement(line) for line in lines if line.startswith("pyserini==")]
    for python in ("3.11", "3.12"):  # installed without its requirements, a version for each Python
        fitting = [one for one in pyserini if one.marker and one.marker.evaluate({"python_version": python})]
        assert len(fitting) == 1, python
