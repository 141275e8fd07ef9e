"""One Ray for all integration tests of a run."""

from collections.abc import Iterator

import pytest
from local_ray import local_ray


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    with local_ray():
        yield
