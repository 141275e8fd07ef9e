"""Whether our BM25 finds what Lucene's does, to the tie, when both see the same words.

    python benchmarks/lucene_agreement.py --data FOLDER [--passages N] [--queries 200] [--k 10] [--json PATH]

Each word that our analyser leaves is given to Lucene as a number, so that its own analyser changes nothing. What then
differs is the length of a passage: Lucene keeps it in one byte, exact up to 40 words. Every query whose ranking differs
is ranked a third time, here, with lengths as Lucene rounds them: `explained` counts those that then agree.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

from steper_ray.config import CorpusConfig, RetrievalConfig
from steper_ray.corpora import open_corpus
from steper_ray.retrieval import build_index, open_index
from steper_ray.retrieval.analysis import Analyzer
from steper_ray.schema import Hit, Passage

CLOSE = 1e-4  # Pyserini rounds scores to four digits

Ranking = list[tuple[str, float]]


def lucene_length(length: int) -> int:
    """A length after Lucene's SmallFloat.intToByte4 and back."""
    if length < 24:
        return length
    rest = length - 24
    shift = max(0, rest.bit_length() - 4)
    return 24 + (rest >> shift << shift)


class Rounded:
    """BM25 (Lucene's form) over passages whose lengths are rounded as Lucene rounds them."""

    def __init__(self, documents: dict[str, list[str]], config: RetrievalConfig) -> None:
        self._postings: dict[str, dict[str, int]] = defaultdict(dict)
        for key, words in documents.items():
            for word, count in Counter(words).items():
                self._postings[word][key] = count
        mean = sum(map(len, documents.values())) / len(documents)
        self._norms = {
            key: config.k1 * (1 - config.b + config.b * lucene_length(len(words)) / mean)
            for key, words in documents.items()
        }

    def search(self, words: Iterable[str]) -> dict[str, float]:
        """The score of each passage that has one of the words."""
        scores: dict[str, float] = defaultdict(float)
        for word, times in Counter(words).items():
            found = self._postings.get(word, {})
            idf = math.log(1 + (len(self._norms) - len(found) + 0.5) / (len(found) + 0.5))
            for key, count in found.items():
                scores[key] += times * idf * count / (count + self._norms[key])
        return scores


def ranking(hits: Sequence[Hit]) -> Ranking:
    return [(hit.passage.id, hit.score) for hit in hits]


def agree(ours: Ranking, theirs: Ranking) -> bool:
    """Whether two rankings have the same scores place by place, and the same passages except for ties at the end."""
    if len(ours) != len(theirs):
        return False
    if any(abs(a - b) > CLOSE for (_, a), (_, b) in zip(ours, theirs, strict=True)):
        return False
    last = theirs[-1][1] + CLOSE if theirs else 0.0
    return {key for key, score in ours if score > last} == {key for key, score in theirs if score > last}


def explained(scores: dict[str, float], theirs: Ranking) -> bool:
    """Whether a ranking is one of the best by these scores."""
    best = sorted(scores.values(), reverse=True)[: len(theirs)]
    return all(
        math.isclose(score, want, abs_tol=CLOSE) and math.isclose(scores[key], score, abs_tol=CLOSE)
        for (key, score), want in zip(theirs, best, strict=True)
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, required=True, help="a set: corpus.jsonl[.gz] and questions.jsonl"
    )
    parser.add_argument("--passages", type=int, help="use only the first N of it")
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    (texts,) = args.data.glob("corpus.jsonl*")
    corpus = open_corpus(CorpusConfig(kind="plain", passages=texts, questions=args.data / "questions.jsonl"))
    passages = list(islice(corpus.passages(), args.passages))
    queries = [question.text for question in islice(corpus.questions(answered=False), args.queries)]
    config = RetrievalConfig()
    analyze = Analyzer(config.language, config.stop_words)
    codes: dict[str, str] = {}

    def coded(words: Iterable[str]) -> list[str]:
        return [codes.setdefault(word, f"q{len(codes)}q") for word in words]

    documents = {one.id: coded([*analyze(one.title), *analyze(one.text)]) for one in passages}
    asked = [coded(analyze(query)) for query in queries]
    with tempfile.TemporaryDirectory() as folder:
        build_index(passages, config, Path(folder) / "ours")
        ours = open_index(Path(folder) / "ours", config).search(queries, args.k)
        lucene = RetrievalConfig(kind="lucene", k1=config.k1, b=config.b)
        same = [Passage(key, "", " ".join(words)) for key, words in documents.items()]
        build_index(same, lucene, Path(folder) / "lucene")
        theirs = open_index(Path(folder) / "lucene", lucene).search(
            [" ".join(words) for words in asked], args.k
        )
    rounded = Rounded(documents, config)
    pairs = [(ranking(a), ranking(b), words) for a, b, words in zip(ours, theirs, asked, strict=True)]
    differ = [(b, words) for a, b, words in pairs if not agree(a, b)]
    found = {
        "passages": len(passages),
        "queries": len(queries),
        "k": args.k,
        "longer than 40 words": sum(len(words) > 40 for words in documents.values()) / len(documents),
        "agree": len(pairs) - len(differ),
        "same passages": sum({key for key, _ in a} == {key for key, _ in b} for a, b, _ in pairs),
        "explained": sum(explained(rounded.search(words), b) for b, words in differ),
    }
    print(json.dumps(found, indent=1))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
