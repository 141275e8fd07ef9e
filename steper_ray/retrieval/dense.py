"""Search by vectors: one float16 vector a passage, memory-mapped; all are read in blocks, or those near the query.

Vectors are made in parts, which Ray tasks may make side by side; parts that are there are not made again.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from steper_ray.config import ClustersConfig, EncoderConfig
from steper_ray.core.progress import Bar
from steper_ray.core.tasks import in_order
from steper_ray.retrieval import clusters, parts
from steper_ray.retrieval.clusters import Clusters
from steper_ray.retrieval.encoder import encoder
from steper_ray.retrieval.rank import Ranking
from steper_ray.retrieval.store import BATCH_ROWS, PassageStore

VECTORS = "vectors.npy"
_ROWS = BATCH_ROWS // 4  # passages of one part: a minute or two on a CPU
_BLOCK = 1 << 16  # vectors that are widened to float32 at a time


def build(
    passages: Path, aside: Path, folder: Path, config: EncoderConfig, clustered: ClustersConfig | None
) -> None:
    """Writes the vectors of the passages in an Arrow file into `folder`; `aside` keeps what can be used again.

    Raises ModelError and StorageError.
    """
    total = len(PassageStore(passages))
    bar = Bar("vectors", "passages", total)
    made = []
    for path in in_order(
        partial(_make_part, passages, aside, config), range(0, total, _ROWS), num_gpus=config.num_gpus
    ):
        made.append(path)
        bar.show(min(total, len(made) * _ROWS))
    bar.close()
    if clustered is not None:
        clusters.build(made, aside, folder, clustered, total)
        return
    vectors, done = None, 0
    for path in made:
        (part,) = parts.load(path)
        if vectors is None:
            vectors = open_memmap(folder / VECTORS, "w+", np.float16, (total, part.shape[1]))
        vectors[done : done + len(part)] = part
        done += len(part)
    assert vectors is not None  # an index has passages
    vectors.flush()


class DenseRanker:
    """Ranks by the inner product of vectors. Safe to call from several threads, which take turns."""

    together = 1 << 30  # all: each call reads every vector

    def __init__(
        self, folder: Path, passages: int, config: EncoderConfig, clustered: ClustersConfig | None
    ) -> None:
        """Raises OSError or ValueError for an index that is broken, and ModelError."""
        self._clusters = None if clustered is None else Clusters(folder, clustered.probes)
        self._vectors = (
            np.load(folder / VECTORS, mmap_mode="r") if self._clusters is None else self._clusters.vectors
        )
        if len(self._vectors) != passages:
            raise ValueError(f"{len(self._vectors)} vectors, {passages} passages")
        # On the CPU: the GPU of an actor that searches is its engine's.
        self._encoder, self._lock = encoder(config.model_copy(update={"num_gpus": 0.0})), threading.Lock()

    def rank(self, queries: Sequence[str], k: int) -> list[Ranking]:
        """See `Ranker.rank`. A query without a word finds nothing."""
        asked = [number for number, query in enumerate(queries) if query.strip()]
        found: list[Ranking] = [[] for _ in queries]
        if not asked:
            return found
        with self._lock:
            vectors = self._encoder.queries([queries[number] for number in asked])
            if self._clusters is not None:
                for number, vector in zip(asked, vectors, strict=True):
                    found[number] = _search(self._clusters, vector, k)
                return found
            for at in range(0, len(self._vectors), _BLOCK):
                block = self._vectors[at : at + _BLOCK].astype(np.float32)
                for number, vector in zip(asked, vectors, strict=True):
                    # Not one product for all: its last bits would depend on their number.
                    found[number] = _best([*found[number], *_top(block @ vector, at, k)], k)
        return found


def _search(clusters: Clusters, vector: NDArray[np.float32], k: int) -> Ranking:
    """The best of the clusters near a query's vector."""
    found: Ranking = []
    for first, end in clusters.near(vector):
        top = _top(clusters.vectors[first:end].astype(np.float32) @ vector, first, k)
        found = _best([*found, *((int(clusters.rows[place]), score) for place, score in top)], k)
    return found


def _top(scores: NDArray[np.float32], first: int, k: int) -> Ranking:
    """The best of a block that begins at a position, and all that tie with the last of them."""
    places = np.arange(len(scores))
    if len(scores) > k:
        places = np.flatnonzero(scores >= np.partition(scores, -k)[-k])
    return list(zip((first + places).tolist(), scores[places].tolist(), strict=True))


def _best(ranking: Ranking, k: int) -> Ranking:
    return sorted(ranking, key=lambda pair: (-pair[1], pair[0]))[:k]


def _make_part(passages: Path, aside: Path, config: EncoderConfig, first: int) -> Path:
    """The file of the vectors from a passage on, made if it is not there whole."""
    path = aside / f"vectors-{first:010d}.npz"
    if not parts.is_whole(path):
        texts = [" ".join(one) for one in PassageStore(passages).texts(first, first + _ROWS)]
        parts.save(path, encoder(config).passages(texts).astype(np.float16))
    return path
