"""One local Ray for all integration tests of a run: four logical CPUs, no dashboard, gone at the end."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A running Ray. Its files lie below /tmp: a socket's path may have 107 characters, and pytest's own
    temporary folders leave too little of them."""
    import ray

    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    ray.init(
        address="local",
        num_cpus=4,
        num_gpus=0,
        include_dashboard=False,
        log_to_driver=False,
        _temp_dir=folder,
    )
    yield
    ray.shutdown()
    shutil.rmtree(Path(folder), ignore_errors=True)
