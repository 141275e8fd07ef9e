"""A function over many items, in order: by Ray tasks where Ray runs, else in this process.

Ray is imported when the function is called, so that pure rooms may use it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from steper_ray.core.errors import SteperError, in_one_line

T = TypeVar("T")
R = TypeVar("R")

_LEFT_S = 60.0  # wait for tasks whose results are not taken; on a cluster that lost its nodes they never end


def in_order(
    function: Callable[[T], R], items: Iterable[T], num_cpus: float = 1, num_gpus: float = 0
) -> Iterator[R]:
    """The results in the items' order; a few more tasks than CPUs are under way, so memory is bounded.

    A task reserves `num_gpus`, and `num_cpus`, one at most: 0 where a training holds every CPU of the cluster.

    Raises the SteperError of the first task that fails, with its own type. No task outlives the call: those under
    way are waited for, and not cancelled, since Ray 2.60 ends the driver when a cancellation meets a task's reply.
    """
    import ray
    from ray.exceptions import RayError, RayTaskError

    if not ray.is_initialized():
        yield from map(function, items)
        return

    def call(item: T) -> R:  # Ray takes no partial
        return function(item)

    task = ray.remote(call).options(
        num_cpus=min(num_cpus, 1), num_gpus=num_gpus or None, scheduling_strategy="SPREAD"
    )
    ahead = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    waiting: deque[Any] = deque()
    stream = iter(items)
    try:
        while True:
            while len(waiting) < ahead and (item := next(stream, None)) is not None:
                waiting.append(task.remote(item))
            if not waiting:
                return
            try:
                result: R = ray.get(waiting[0])
            except RayTaskError as error:
                raise error.cause if isinstance(error.cause, SteperError) else error from None
            except RayError as error:
                raise SteperError(
                    f"a task was lost with its Ray ({in_one_line(error)}). What is done is kept: run the same command "
                    "again"
                ) from error
            waiting.popleft()
            yield result
    finally:
        if waiting:
            ray.wait([*waiting], num_returns=len(waiting), timeout=_LEFT_S, fetch_local=False)
