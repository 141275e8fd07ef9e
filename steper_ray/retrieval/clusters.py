"""Vectors in clusters, an inverted file (Jegou et al., 2011): only the clusters nearest to a query are read.

- Centroids come from FAISS's spherical k-means over a sample; every vector joins the one of largest inner product.
- `centroids.npy`: float32 [clusters, width]. `clustered.npy`: float16 [passages, width], cluster by cluster, within one
  in the order of the corpus. `rows.npy`: the position in the corpus of each. `starts.npy`: where each cluster begins,
  and the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from steper_ray.config import ClustersConfig
from steper_ray.core.progress import Bar
from steper_ray.core.tasks import in_order
from steper_ray.retrieval import parts

VECTORS, _CENTROIDS, _ROWS, _STARTS = "clustered.npy", "centroids.npy", "rows.npy", "starts.npy"
_SAMPLE = 64  # vectors of each cluster that k-means sees
_ROUNDS = 10

Span = tuple[int, int]


def build(made: Sequence[Path], aside: Path, folder: Path, config: ClustersConfig, total: int) -> None:
    """Writes the vectors of the files `made`, each float16 [passages, width], into `folder`. Raises StorageError."""
    number = min(total, config.number or max(1, round(4 * total**0.5)))
    centroids = _centroids(made, number, total)
    shared = aside / "centroids.npz"
    parts.save(shared, centroids)
    bar = Bar("clusters", "passages", total)
    labels = np.empty(total, np.int32)
    done = 0
    for found in in_order(partial(_nearest, shared), made):
        labels[done : done + len(found)] = found
        done += len(found)
        bar.show(done)
    bar.close()
    rows = np.argsort(labels, kind="stable")
    places = np.empty(total, np.int64)
    places[rows] = np.arange(total)
    vectors = open_memmap(folder / VECTORS, "w+", np.float16, (total, centroids.shape[1]))
    done = 0
    for path in made:
        (part,) = parts.load(path)
        vectors[places[done : done + len(part)]] = part
        done += len(part)
    vectors.flush()
    np.save(folder / _CENTROIDS, centroids)
    np.save(folder / _ROWS, rows)
    np.save(folder / _STARTS, np.concatenate([[0], np.cumsum(np.bincount(labels, minlength=number))]))


class Clusters:
    """The clusters of a folder, mapped into memory."""

    def __init__(self, folder: Path, probes: int) -> None:
        """Raises OSError or ValueError for files that are broken."""
        self.vectors: NDArray[np.float16] = np.load(folder / VECTORS, mmap_mode="r")
        self.rows: NDArray[np.int64] = np.load(folder / _ROWS, mmap_mode="r")
        self._centroids: NDArray[np.float32] = np.load(folder / _CENTROIDS)
        self._starts: NDArray[np.int64] = np.load(folder / _STARTS)
        self._probes = min(probes, len(self._centroids))
        if not len(self.vectors) == len(self.rows) == self._starts[-1]:
            raise ValueError(
                f"{len(self.vectors)} vectors, {len(self.rows)} rows, {self._starts[-1]} in clusters"
            )

    def near(self, vector: NDArray[np.float32]) -> list[Span]:
        """First and last place of each cluster to read for a query's vector."""
        scores = self._centroids @ vector
        nearest = np.argsort(-scores, kind="stable")[: self._probes]
        return [(int(self._starts[n]), int(self._starts[n + 1])) for n in nearest]


def _centroids(made: Sequence[Path], number: int, total: int) -> NDArray[np.float32]:
    """Shape [number, width], float32, of length one."""
    import faiss  # which an index without clusters does not need

    every = max(1, total // (_SAMPLE * number))
    sample = np.concatenate([_load(path)[::every] for path in made])
    kmeans = faiss.Kmeans(
        sample.shape[1], number, niter=_ROUNDS, spherical=True, seed=1, min_points_per_centroid=1
    )
    kmeans.train(sample)
    return np.asarray(kmeans.centroids, np.float32)


def _nearest(centroids: Path, part: Path) -> NDArray[np.int32]:
    """The cluster of each vector of a part, int32."""
    nearest: NDArray[np.int64] = np.argmax(_load(part) @ _load(centroids).T, axis=1)
    return nearest.astype(np.int32)


def _load(path: Path) -> NDArray[np.float32]:
    return parts.load(path)[0].astype(np.float32)
