"""One Ray for all builds whose case leaves it alive, and one undisturbed build that all are compared with."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from builds import Watched, config
from local_ray import local_ray

from steper_ray.data.build import build_data


@pytest.fixture
def ray_folder() -> Iterator[str]:
    """Short: a socket's path may have 107 characters, and pytest's own folders leave too few of them."""
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def cluster(bucket: str) -> Iterator[None]:
    """Of the tests' own process, whose environment names the bucket's server. It has lost workers, so no other tests
    get it."""
    with local_ray():
        yield


@pytest.fixture(scope="module")
def whole(cluster, tmp_path_factory: pytest.TempPathFactory) -> Watched:
    """The undisturbed build."""
    run_dir: Path = tmp_path_factory.mktemp("whole")
    build_data(config(run_dir))
    return Watched(run_dir)
