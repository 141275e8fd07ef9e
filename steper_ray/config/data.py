"""Settings of corpora and of retrieval."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from steper_ray.config.base import Positive, Section


class MiniatureConfig(Section):
    """The embedded made-up worlds."""

    seed: int = 1
    """Seed of the worlds, their names and questions."""
    worlds: Positive = 60
    """Number of worlds, about 47 passages each."""
    questions_per_world: Positive = 8
    split: Literal["train", "test"] = "train"
    """Names of one split never occur in the other."""


class CorpusConfig(Section):
    """Where questions and passages come from."""

    kind: Literal["miniature", "hotpotqa", "2wiki", "musique", "plain"] = "miniature"
    """A data set's own layout, `plain` (files of passages and questions), or the made-up worlds."""
    questions: Path | None = None
    """Questions file (all kinds but `miniature`)."""
    passages: Path | None = None
    """Passages file; with an official format it may be omitted: the questions' own contexts are pooled."""
    on_error: Literal["stop", "skip"] = "stop"
    """What a malformed line does: stop with its file and line, or be counted, named and skipped."""
    limit: Positive | None = None
    """Take only this many questions, from the first on."""
    miniature: MiniatureConfig = MiniatureConfig()

    @model_validator(mode="after")
    def _files(self) -> CorpusConfig:
        if self.kind != "miniature" and self.questions is None:
            raise ValueError(f"kind '{self.kind}' needs `questions`: the path of a questions file")
        if self.kind == "plain" and self.passages is None:
            raise ValueError("kind 'plain' needs `passages`: the path of a passages file")
        return self


class RetrievalConfig(Section):
    """BM25 retrieval (the paper: BM25, top 4 a step)."""

    kind: Literal["bm25s", "lucene"] = "bm25s"
    """bm25s runs everywhere; lucene is Pyserini and needs a Java 21+ with jdk.incubator.vector."""
    index_dir: Path | None = None
    """Where the index lies or is built; by default below `<run_dir>/index`, one folder a corpus and setting."""
    k1: float = Field(1.2, ge=0)
    b: float = Field(0.75, ge=0, le=1)
