"""A cross-encoder reads the query with each of the best passages and ranks them again."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from steper_ray.config import RerankerConfig
from steper_ray.core.errors import ModelError
from steper_ray.models import resolve_model
from steper_ray.pretrained import load_classifier, load_tokenizer
from steper_ray.retrieval.base import Retriever
from steper_ray.retrieval.encoder import as_utf8, readable
from steper_ray.schema import Hit, Passage


class Reranked:
    """A retriever over another one. Safe to call from several threads, which take turns with the model."""

    def __init__(self, base: Retriever, config: RerankerConfig) -> None:
        """Raises ModelError."""
        import torch

        assert config.model is not None
        model, trusted = resolve_model(config.model), config.trust_remote_code
        self._base, self._config, self._lock = base, config, threading.Lock()
        self._tokenizer = load_tokenizer(model, trusted)
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = load_classifier(model, trusted, dtype=torch.float32).to(self._device).eval()
        self._length = readable(self._model.config, self._tokenizer, config.max_tokens)
        if self._model.config.num_labels != 1:
            raise ModelError(
                f"model '{config.model}': a reranker has one output, this one has {self._model.config.num_labels}: "
                "name a cross-encoder in retrieval.reranker.model"
            )

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """See `Retriever.search`; scores are the model's. Passages below its `depth` keep their order, and no place."""
        found = self._base.search(queries, max(k, self._config.depth) if k else 0)
        return [self._rank(query, hits)[:k] for query, hits in zip(queries, found, strict=True)]

    def _rank(self, query: str, hits: list[Hit]) -> list[Hit]:
        """One pair at a time: beside others a pair's score would differ in its last bits."""
        with self._lock:
            scored = [Hit(hit.passage, self._score(query, hit.passage)) for hit in hits]
        return sorted(scored, key=lambda hit: -hit.score)

    def _score(self, query: str, passage: Passage) -> float:
        import torch

        read = self._tokenizer(
            as_utf8(query), f"{passage.title} {passage.text}",
            truncation="only_second" if len(query) < 1000 else True,
            max_length=self._length, return_tensors="pt",
        ).to(self._device)  # fmt: skip
        with torch.inference_mode():
            return float(self._model(**read).logits[0, 0])
