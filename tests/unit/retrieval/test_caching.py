"""Searches that are remembered: the same answers, no more than a number of them, each counted."""

import threading

from steper_ray.retrieval import CachedSearches
from steper_ray.schema import Hit, Passage


class Spy:
    """Finds a passage named like the query, for each of the k best."""

    def __init__(self):
        self.calls = []

    def search(self, queries, k):
        self.calls.append((tuple(queries), k))
        return [[Hit(Passage(f"{query}{n}", query, ""), 1.0) for n in range(k)] for query in queries]


def ids(found):
    return [[hit.passage.id for hit in hits] for hits in found]


def test_a_query_asked_before_is_not_searched_again_and_finds_the_same():
    spy = Spy()
    cached = CachedSearches(spy, 10)
    assert ids(cached.search(["a", "b"], 2)) == [["a0", "a1"], ["b0", "b1"]]
    assert ids(cached.search(["b", "c", "a", "c"], 2)) == ids(spy.search(["b", "c", "a", "c"], 2))
    assert spy.calls[1] == (("c",), 2)
    assert ids(cached.search(["a"], 1)) == [["a0"]]  # another k is another search
    assert spy.calls[-1] == (("a",), 1)


def test_what_the_reader_does_with_its_list_changes_no_later_answer():
    cached = CachedSearches(Spy(), 10)
    cached.search(["a"], 2)[0].clear()
    assert ids(cached.search(["a"], 2)) == [["a0", "a1"]]


def test_the_query_that_was_not_asked_for_longest_makes_room():
    spy = Spy()
    cached = CachedSearches(spy, 2)
    for query in ("a", "b", "a", "c", "a", "b"):
        cached.search([query], 1)
    assert [queries for queries, _ in spy.calls] == [("a",), ("b",), ("c",), ("b",)]


def test_without_room_every_query_is_searched():
    spy = Spy()
    cached = CachedSearches(spy, 0)
    assert ids(cached.search(["a", "a"], 1)) == ids(cached.search(["a", "a"], 1)) == [["a0"], ["a0"]]
    assert len(spy.calls) == 2


def test_queries_are_counted_once_over_all_threads():
    cached = CachedSearches(Spy(), 100)
    names = [f"q{n}" for n in range(50)]
    cached.search(names, 1)
    threads = [threading.Thread(target=cached.search, args=(names, 1)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cached.take_counts() == (250, 200)
    assert cached.take_counts() == (0, 0)
