"""The wheel, installed beside its dependencies and used in a folder that is no checkout."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMAND = "from steper_ray.cli.main import main; main()"


def files(folder):
    return {
        f"{folder.name}/{file.relative_to(folder)}"
        for path, _, names in os.walk(folder, followlinks=True)
        for name in names
        if "__pycache__" not in (file := Path(path) / name).parts
    }


def pip(*arguments):
    done = subprocess.run([sys.executable, "-m", "pip", "-q", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy: a build leaves folders beside its sources."""
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("wheel")
    for name in ("steper_ray", "jobs", "pyproject.toml", "README.md", "LICENSE"):
        (copy / name).symlink_to(ROOT / name)
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(out), str(copy))
    (built,) = out.glob("*.whl")
    return built


def test_everything_of_the_package_is_in_the_wheel(wheel):
    held = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("steper_ray/")}
    assert held == files(ROOT / "steper_ray")
    assert "steper_ray/configs/miniature.yaml" in held


def test_an_installed_package_asks_its_teacher_and_knows_the_projects_configs(wheel, tmp_path):
    installed, empty = tmp_path / "installed", tmp_path / "empty"
    empty.mkdir()
    pip("install", "--no-deps", "--target", str(installed), str(wheel))

    def steper(*arguments):
        env = os.environ | {"PYTHONPATH": str(installed)}
        return subprocess.run(
            [sys.executable, "-c", COMMAND, *arguments], cwd=empty, env=env, capture_output=True, text=True
        )

    demo = steper("demo", "--dry-run")
    assert "run_dir: runs/demo" in demo.stdout, demo.stderr
    small = ("corpus.miniature.worlds=1", "corpus.miniature.questions_per_world=2", "sampling.max_tokens=24")
    built = steper("build", "engine.model=miniature:teacher", *small)
    assert "written to  runs/default/data" in built.stdout, built.stderr
    assert (empty / "runs" / "default" / "data" / "manifest.json").is_file()
