"""Agreement of workers on one answer, and work that one does while the others wait. Neither torch nor Ray."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait

#: Every worker gives its own message, or None, and gets the first one that was given. A barrier.
Agree = Callable[[str | None], str | None]

_AT_WORK = "\0at work"


def one_for_all(work: Callable[[], str | None] | None, agree: Agree, *, every_s: float = 10.0) -> str | None:
    """Sends what `work` returns on the worker that gives it to all. All call it together, the others with None.

    They meet every `every_s` seconds until it is done, because a process group gives up on a worker that keeps the
    others waiting for longer than its timeout, half an hour on Ray Train. What `work` raises is raised on its worker
    alone.
    """
    if work is None:
        while (said := agree(None)) == _AT_WORK:
            pass
        return said
    with ThreadPoolExecutor(1, thread_name_prefix="one-for-all") as pool:
        future = pool.submit(work)
        while not wait([future], every_s).done:
            agree(_AT_WORK)
        return agree(future.result())
