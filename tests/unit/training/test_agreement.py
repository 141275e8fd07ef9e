"""Work that one worker does while the others wait: threads in the place of workers, a real barrier between them."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from steper_ray.training.agreement import one_for_all


class Group:
    """Workers that meet as those of a process group do, and how often they met."""

    def __init__(self, size):
        self._barrier = threading.Barrier(size, action=self._meet, timeout=60)
        self._given = [None] * size
        self.met, self._often = 0, threading.Condition()

    def _meet(self):
        with self._often:
            self.met += 1
            self._often.notify_all()

    def agree_of(self, rank):
        def agree(message):
            self._given[rank] = message
            self._barrier.wait()
            said = next((m for m in self._given if m is not None), None)
            self._barrier.wait()  # nobody gives the next message before all have read this one
            return said

        return agree

    def wait_until_met(self, times):
        with self._often:
            assert self._often.wait_for(lambda: self.met >= times, timeout=60)


def run(group, works, every_s=0.01):
    """What each worker gets from `one_for_all`."""
    with ThreadPoolExecutor(len(works)) as pool:
        results = [
            pool.submit(one_for_all, work, group.agree_of(rank), every_s=every_s)
            for rank, work in enumerate(works)
        ]
        return [result.result(timeout=60) for result in results]


@pytest.mark.parametrize("says", [None, "no room"])
def test_workers_meet_while_one_works_so_that_no_single_wait_is_as_long_as_the_work(says):
    group = Group(3)

    def work():
        group.wait_until_met(20)  # the others are not left in one wait until this returns
        return says

    assert run(group, [work, None, None]) == [says] * 3


def test_work_that_is_done_at_once_is_told_at_once():
    group = Group(2)
    assert run(group, [lambda: "done", None], every_s=3600) == ["done", "done"]


def test_what_the_work_raises_is_raised_by_its_worker():
    def work():
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        one_for_all(work, lambda message: message, every_s=0.01)
