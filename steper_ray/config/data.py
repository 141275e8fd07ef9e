"""Settings of corpora and of retrieval."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from steper_ray.config.base import FilePath, FolderOrName, Positive, Section
from steper_ray.core.storage import has_scheme


class MiniatureConfig(Section):
    """The embedded made-up worlds."""

    seed: int = 1
    """Seed of the worlds, their names and questions."""
    worlds: Positive = 60
    """Number of worlds, about 47 passages each."""
    questions_per_world: Positive = 8
    split: Literal["train", "test"] = "train"
    """Names of one split never occur in the other."""
    relations: Literal["all", "first", "second"] = "all"
    """`first` and `second`: half of the relations each, in one of two wordings, to test students out of their domain
    (both know the capital of a region)."""


class CorpusConfig(Section):
    """The sources of questions and passages.

    Each path is a file, a folder, a glob, a .zip (or `x.zip/member`), or `hub:OWNER/NAME[/CONFIG]/SPLIT`.
    """

    kind: Literal["auto", "miniature", "hotpotqa", "2wiki", "musique", "plain"] = "auto"
    """The layout of the questions; `auto` sees it by their fields. Without `questions` it is the made-up worlds."""
    questions: FilePath | None = None
    """Questions (all kinds but `miniature`)."""
    passages: FilePath | None = None
    """Passages, or a folder of documents (.txt, .md, .html); official data sets may do without: then the passages that
    the questions bring along are pooled."""
    qrels: FilePath | None = None
    """BEIR's judgements (query-id, corpus-id, score): they give plain questions their gold passages, and questions
    without one are left out."""
    passage_characters: Positive = 1000
    """Longest passage that a document is split into."""
    on_error: Literal["stop", "skip"] = "stop"
    """On a malformed record: `stop` with its file and line, or count, name and `skip` it."""
    limit: Positive | None = None
    """Take only this many questions, from the first on."""
    miniature: MiniatureConfig = MiniatureConfig()

    @model_validator(mode="after")
    def _files(self) -> CorpusConfig:
        if self.kind not in ("miniature", "auto") and self.questions is None:
            raise ValueError(f"kind '{self.kind}' needs `questions`: the path of a questions file")
        if self.questions is None and self.passages is not None:
            raise ValueError("`passages` without `questions`: name the questions too")
        if self.kind == "miniature" and self.questions is not None:
            raise ValueError("kind 'miniature' reads no `questions`: leave them out, or set kind 'auto'")
        if self.kind == "plain" and self.passages is None:
            raise ValueError("kind 'plain' needs `passages`: the path of a passages file")
        return self


#: Snowball's stemmers.
Language = Literal[
    "none", "arabic", "armenian", "basque", "catalan", "czech", "danish", "dutch", "english", "esperanto", "estonian",
    "finnish", "french", "german", "greek", "hindi", "hungarian", "indonesian", "irish", "italian", "lithuanian",
    "nepali", "norwegian", "persian", "polish", "portuguese", "romanian", "russian", "serbian", "spanish", "swedish",
    "tamil", "turkish", "yiddish",
]  # fmt: skip


def _whole(name: str) -> str:
    """A process in another folder opens it too."""
    return str(Path(name).resolve()) if not has_scheme(name) and Path(name).is_dir() else name


LocalOrName = Annotated[FolderOrName, AfterValidator(_whole)]


class EncoderConfig(Section):
    """A text encoder in the form of sentence-transformers, for dense and hybrid retrieval."""

    model: LocalOrName = "sentence-transformers/all-MiniLM-L6-v2"
    """Its folder or hub name."""
    pooling: Literal["auto", "mean", "cls", "last"] = "auto"
    """Of the tokens' states; auto: as the model's files say, else mean."""
    similarity: Literal["auto", "cosine", "dot"] = "auto"
    """Of two vectors; auto: as the model's files say, else cosine."""
    query_prefix: str | None = None
    """Stands before a query, such as "query: " for E5; by default the model's own prompt."""
    passage_prefix: str | None = None
    """Stands before a passage's title and text, such as "passage: " for E5; by default the model's own prompt."""
    max_tokens: Positive = 256
    """Longer texts are cut; the model's own limit holds too."""
    batch_size: Positive = 32
    """Passages that are encoded together."""
    num_gpus: float = Field(0.0, ge=0)
    """GPUs of each task that encodes passages; with 0 it runs on a CPU, as queries do."""
    trust_remote_code: bool = False
    """Runs Python code that the model brings along."""


class ClustersConfig(Section):
    """Vectors in clusters (an inverted file): a query is compared with those near it, and finds most of the best."""

    number: Positive | None = None
    """Of clusters; by default four times the square root of the number of passages."""
    probes: Positive = 32
    """Clusters that a query is compared with."""


class RerankerConfig(Section):
    """A cross-encoder that ranks the best passages again."""

    model: LocalOrName | None = None
    """Its folder or hub name; without one nothing is ranked again."""
    depth: Positive = 20
    """Passages that are ranked again."""
    max_tokens: Positive = 256
    """Of query and passage together; what is longer is cut."""
    trust_remote_code: bool = False
    """Runs Python code that the model brings along."""


class FusionConfig(Section):
    """How hybrid retrieval joins BM25 and vectors."""

    method: Literal["minmax", "rrf"] = "minmax"
    """minmax: scores of each one's best, stretched to 0 to 1; rrf: reciprocal ranks."""
    dense: float = Field(0.5, ge=0, le=1)
    """Weight of the vectors; BM25 has the rest."""
    depth: Positive = 100
    """Passages of each that are joined."""


class LinksConfig(Section):
    """Links from passages to those whose titles they mention: the second hop is found by the first one's passage."""

    weight: float = Field(0.0, ge=0, le=1)
    """Share of a passage's score that goes to what it links to; 0 makes and follows no links. 0.5 is a good value."""
    title: float = Field(0.5, ge=0, le=1)
    """Bonus of a passage whose title the query mentions; the best of a search has a score of 1."""
    seeds: Positive = 20
    """Best passages whose links are followed."""
    depth: Positive = 100
    """Passages of the search that are ranked again."""


class RetrievalConfig(Section):
    """Retrieval (the paper: BM25, top 4 a step)."""

    kind: Literal["bm25", "lucene", "dense", "hybrid"] = "bm25"
    """bm25 runs everywhere; lucene is Pyserini's BM25 and needs a Java 21+ with jdk.incubator.vector; dense searches by
    `encoder`'s vectors; hybrid joins bm25 and dense."""
    index_dir: FilePath | None = None
    """Folder of the index; by default below `<run_dir>/index`, one folder per corpus and setting."""
    k1: float = Field(1.2, ge=0)
    b: float = Field(0.75, ge=0, le=1)
    title_weight: int = Field(1, ge=1, le=100)
    """How often a passage's title counts, its text once."""
    language: Language = "english"
    """Whose stemmer and stop words passages and queries get; `none` leaves words as they are. Scripts without spaces
    (Chinese, Japanese, Korean, Thai, ...) are searched by pairs of characters whatever the language."""
    stop_words: tuple[str, ...] | None = None
    """Words that are not searched for, instead of the language's (known for English alone)."""
    encoder: EncoderConfig = EncoderConfig()
    clusters: ClustersConfig | None = None
    """For dense and hybrid retrieval over millions of passages; without it every vector is compared."""
    fusion: FusionConfig = FusionConfig()
    links: LinksConfig = LinksConfig()
    reranker: RerankerConfig = RerankerConfig()
    cache_queries: int = Field(10_000, ge=0)
    """The latest queries whose passages each process keeps in memory (about 1 KB a passage); 0: none."""

    @model_validator(mode="after")
    def _fitting(self) -> RetrievalConfig:
        if self.clusters is not None and self.kind not in ("dense", "hybrid"):
            raise ValueError(
                "retrieval.clusters are of vectors: set retrieval.kind=dense or hybrid, or leave them out"
            )
        if self.kind == "lucene" and self.links.weight:
            raise ValueError("retrieval.links: an index of Lucene has none: set retrieval.kind=bm25")
        if self.kind == "lucene" and (self.language != "english" or self.stop_words is not None):
            raise ValueError(
                "retrieval.kind=lucene has the English analyser alone: leave out language and stop_words, or set "
                "retrieval.kind=bm25"
            )
        return self
