"""The one place where tests poll: for conditions of other processes, which nothing announces."""

import time
from collections.abc import Callable
from typing import TypeVar

import httpx

T = TypeVar("T")


def wait_until(
    condition: Callable[[], T],
    what: str,
    *,
    seconds: float = 240.0,
    in_vain: Callable[[], object] = lambda: None,
    every: float = 0.05,
) -> T:
    """The first true value of `condition`, which is called `every` so many seconds.

    Fails after `seconds`, or as soon as `in_vain` returns something true: why there is nothing to wait for any more.
    """
    until = time.monotonic() + seconds
    while not (value := condition()):
        if why := in_vain():
            # What ended the wait may have come right after the condition.
            if value := condition():
                break
            raise AssertionError(f"waiting for {what}, in vain: {why}")
        if time.monotonic() > until:
            raise AssertionError(f"waited {seconds:.0f} s for {what}")
        time.sleep(every)
    return value


def answers(url: str) -> bool:
    """Whether a server answers a GET with status 200."""
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False
