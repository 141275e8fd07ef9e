"""One Ray for all integration tests of a run, and one browser for the tests of a file."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from local_ray import local_ray


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    with local_ray():
        yield


@pytest.fixture
def endless(monkeypatch):
    """A LONG request to vLLM goes on to its `max_tokens`, whatever the model would say."""
    from endless import make_endless  # engines are not needed by the other tests

    make_endless(monkeypatch)


@pytest.fixture(scope="module")
def chromium():
    from page_driver import chromium  # selenium is not needed by the other tests

    with chromium() as driver:
        yield driver


@pytest.fixture
def page(chromium):
    """The page as a person has it before him. What is kept in the browser is gone with the test."""
    from page_driver import Page

    yield Page(chromium)
    complaints = [entry["message"] for entry in chromium.get_log("browser")]
    chromium.execute_script("localStorage.clear()")
    # A refused request is in the browser's log whatever the page does with it.
    assert [text for text in complaints if "Failed to load resource" not in text] == []


@pytest.fixture
def page_of(page):
    """Opens the page of an engine that runs in this process."""
    from local_endpoint import listening

    with ExitStack() as stack:

        def open_page(engine, **how):
            url = stack.enter_context(listening(engine, token=how.pop("token", None)))
            page.open(f"{url}/", **how)
            return page

        yield open_page
