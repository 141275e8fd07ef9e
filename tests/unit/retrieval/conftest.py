"""Indexes are built in this process, whatever Ray an earlier test left: a task would not have what a test replaces."""

import pytest
import ray


@pytest.fixture(autouse=True)
def _without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
