"""Links between passages: from each to those whose titles its text mentions. No model takes part.

- A search gives every passage that is linked from one of the best a share of that one's score, and every passage whose
  title the query mentions a bonus: the second hop of a question is found by the first one's passage.
- Titles are compared word by word, case and all, without what stands behind them in brackets; the longest title wins.
- Links are made in parts, which Ray tasks may make side by side; parts that are there are not made again.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from steper_ray.config import LinksConfig
from steper_ray.core.fingerprints import hash64
from steper_ray.core.progress import Bar
from steper_ray.core.tasks import in_order
from steper_ray.retrieval import parts
from steper_ray.retrieval.rank import Ranker, Ranking, stretched
from steper_ray.retrieval.store import BATCH_ROWS, PassageStore

_WORD = re.compile(r"\w+")
_BRACKETS = re.compile(r"\s*\([^()]*\)$")
_LONGEST = 6  # words of a title that is looked for
_SHORTEST = 4  # letters of a title of one word
_NAMESAKES = 5  # passages of one title that a mention links to: the first ones
_ROWS = 5 * BATCH_ROWS  # passages of one part
_TITLES = "titles.npz"
_LINKS = "links.npz"


class Titles(NamedTuple):
    """By ascending hash of the title: `passages[offsets[i] : offsets[i + 1]]` have the i-th one."""

    hashes: array[int]
    offsets: NDArray[np.int64]
    passages: NDArray[np.int32]

    def mentioned(self, text: str) -> Iterator[list[int]]:
        """The passages of each title that a text mentions, each title once."""
        words, at, seen = _WORD.findall(text), 0, set[int]()
        while at < len(words):
            step = 1
            if not words[at][0].islower():
                for n in range(min(_LONGEST, len(words) - at), 0, -1):
                    number = self._number(words[at : at + n])
                    if number is not None:
                        if number not in seen:
                            seen.add(number)
                            yield self.passages[self.offsets[number] : self.offsets[number + 1]].tolist()
                        step = n
                        break
            at += step

    def _number(self, words: Sequence[str]) -> int | None:
        wanted = hash64(" ".join(words))
        found = bisect_left(self.hashes, wanted)
        return found if found < len(self.hashes) and self.hashes[found] == wanted else None


def build(passages: Path, aside: Path, folder: Path) -> None:
    """Writes the titles and links of the passages in an Arrow file into `folder`; `aside` keeps what can be used again.

    Raises StorageError.
    """
    store = PassageStore(passages)
    by_title: dict[int, list[int]] = {}
    for position, passage in enumerate(store):
        words = _WORD.findall(_BRACKETS.sub("", passage.title))[: _LONGEST + 1]
        if 0 < len(words) <= _LONGEST and (len(words) > 1 or len(words[0]) >= _SHORTEST):
            of_title = by_title.setdefault(hash64(" ".join(words)), [])
            if len(of_title) < _NAMESAKES:
                of_title.append(position)
    hashes = sorted(by_title)
    counts = [len(by_title[one]) for one in hashes]
    flat = [position for one in hashes for position in by_title[one]]
    arrays = np.array(hashes, np.uint64), np.cumsum([0, *counts]), np.array(flat, np.int32)
    for place in (aside, folder):
        parts.save(place / _TITLES, *arrays)
    firsts = range(0, len(store), _ROWS)
    bar = Bar("links", "passages", len(store), shown=len(firsts) > 1)
    counted, targets = list[NDArray[np.int64]](), list[NDArray[np.int32]]()
    for path in in_order(partial(_make_part, passages, aside), firsts):
        of_part, to = parts.load(path)
        counted.append(of_part)
        targets.append(to)
        bar.show(len(counted) * _ROWS)
    bar.close()
    offsets = np.concatenate(([0], np.cumsum(np.concatenate(counted))))
    parts.save(folder / _LINKS, offsets, np.concatenate(targets))


class Linked:
    """Another ranker's ranking, with what its best passages link to. Safe to call from several threads."""

    def __init__(self, base: Ranker, folder: Path, config: LinksConfig) -> None:
        """Raises OSError or ValueError for an index that is broken."""
        self._base, self._config = base, config
        self._titles = _load_titles(folder / _TITLES)
        self._offsets, self._targets = parts.load(folder / _LINKS)

    @property
    def together(self) -> int:
        return self._base.together

    def rank(self, queries: Sequence[str], k: int) -> list[Ranking]:
        """See `Ranker.rank`; scores are shares of the best one's, and what links and titles add."""
        found = self._base.rank(queries, max(k, self._config.depth))
        return [self._spread(query, ranking)[:k] for query, ranking in zip(queries, found, strict=True)]

    def _spread(self, query: str, ranking: Ranking) -> Ranking:
        total, seeds = dict(stretched(ranking)), dict(stretched(ranking[: self._config.seeds]))
        for positions in self._titles.mentioned(query):
            for position in positions:
                for shares in (total, seeds):
                    shares[position] = shares.get(position, 0.0) + self._config.title / len(positions)
        for position, share in seeds.items():
            linked = self._targets[self._offsets[position] : self._offsets[position + 1]].tolist()
            for target in linked:
                total[target] = total.get(target, 0.0) + self._config.weight * share / len(linked)
        return sorted(total.items(), key=lambda pair: (-pair[1], pair[0]))


def _make_part(passages: Path, aside: Path, first: int) -> Path:
    """The file of the links from the passages of one part: how many each has, and their targets in ascending order."""
    path = aside / f"links-{first:010d}.npz"
    if not parts.is_whole(path):
        titles = _load_titles(aside / _TITLES)
        counts, targets = array("q"), array("i")
        for position, (_, text) in enumerate(PassageStore(passages).texts(first, first + _ROWS), start=first):
            linked = {one for positions in titles.mentioned(text) for one in positions} - {position}
            counts.append(len(linked))
            targets.extend(sorted(linked))
        parts.save(path, np.frombuffer(counts, np.int64), np.array(targets, np.int32))
    return path


def _load_titles(path: Path) -> Titles:
    hashes, offsets, passages = parts.load(path)
    return Titles(array("Q", hashes.tobytes()), offsets, passages)
