"""Chains from annotations: how many facts have their passage in the prompt when stated, and which sentences are faulty.

Official files of MuSiQue or 2WikiMultiHopQA are pooled into one corpus each. The share is measured on the trajectories,
by the annotated passage's id, and not taken from the teacher's own marks. A fault is what one of FAULTS finds.

    python benchmarks/annotations.py 2wiki=train.json musique=train.jsonl --show 50 --json PATH
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from steper_ray.config import CorpusConfig, ReasoningConfig, RetrievalConfig
from steper_ray.corpora import open_corpus
from steper_ray.retrieval.index import ensure_index
from steper_ray.retrieval.store import PASSAGES, PassageStore
from steper_ray.rollouts.annotation import AnnotationTeacher, gold_facts
from steper_ray.schema import Question, StopReason, Trajectory

WAYS = ("keep", "drop", "inject")
FAULTS = {
    "quotes its question": r'^The answer to "',
    "two stops, commas or articles": r"\.\.|,\.|\b(?:the the|a a|an an)\b|``|''",
    "a mark of the data": r"#\d|>>",
    "a question": r"^(?:When|Where|What|Which|How|Why|Who) (?:is|are|was|were|do|does|did)\b",
    "an auxiliary of a question": r"\bdid (?!not\b)",
    "an adjective for a country": r"(?:country|citizen)\b.* (?:American|British|French|German|Indian|Italian)\.$",
    "a small letter first": r"^[a-z]",
    "two prepositions": r" (in|on|at|of|from) \1 ",
}


def measure(trajectories: Sequence[Trajectory], questions: Sequence[Question]) -> dict[str, Any]:
    """Of chains with an answer; a fact without an annotated passage counts as unsupported."""
    facts = supported = whole = 0
    for trajectory, question in zip(trajectories, questions, strict=True):
        if trajectory.stop_reason is not StopReason.ANSWERED:
            continue
        passages = [
            [hit.passage.id for step in trajectory.steps[: number + 1] for hit in step.hits]
            for number in range(len(trajectory.steps))
        ]
        stated = [
            any(trajectory.steps[number].reasoning == fact.statement and sub.support_id in passages[number]
                for number in range(len(trajectory.steps)))
            for sub, fact in zip(question.decomposition, _facts(trajectory), strict=True)
        ]  # fmt: skip
        facts += len(stated)
        supported += sum(stated)
        whole += all(stated)
    chains = sum(one.stop_reason is StopReason.ANSWERED for one in trajectories)
    return {
        "chains": chains,
        "chains_ahead_of_evidence": chains - whole,
        "facts": facts,
        "supported": supported / facts if facts else None,
        "injected": sum(step.injected is not None for one in trajectories for step in one.steps),
    }


def _facts(trajectory: Trajectory) -> Sequence[Any]:
    passages = {hit.passage.id: hit.passage for step in trajectory.steps for hit in step.hits}
    subs = trajectory.question.decomposition
    return gold_facts(subs, [passages.get(str(sub.support_id)) for sub in subs])


def faults_of(statements: Sequence[str]) -> dict[str, Any]:
    found = Counter(name for one in statements for name, pattern in FAULTS.items() if re.search(pattern, one))
    faulty = sum(any(re.search(pattern, one) for pattern in FAULTS.values()) for one in statements)
    return {
        "sentences": len(statements),
        "free_of_faults": 1 - faulty / len(statements),
        "faults": dict(found),
    }


async def annotate(kind: str, path: Path, k: int, folder: Path) -> tuple[dict[str, Any], list[str]]:
    corpus = open_corpus(CorpusConfig.model_validate({"kind": kind, "questions": path}))
    index = folder / path.name
    retriever = ensure_index(corpus.passages(), RetrievalConfig(), index, corpus.fingerprint())
    find, config = PassageStore(index / PASSAGES).by_id, ReasoningConfig(k=k)
    questions, result, statements = list(corpus.questions()), dict[str, Any](), list[str]()
    for way in WAYS:
        teacher = AnnotationTeacher(retriever, config, find, way)  # type: ignore[arg-type]
        trajectories = [await teacher.run(question) for question in questions]
        result[way] = measure(trajectories, questions)
        if way == "keep":
            statements = [piece for one in trajectories for piece in one.chain[:-1]]
    return {"questions": len(questions), "k": k, **result, **faults_of(statements)}, statements


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="+", metavar="KIND=FILE")
    parser.add_argument("--k", type=int, default=4)
    parser.add_argument(
        "--show", type=int, default=0, help="print this many sentences of each file, drawn at random"
    )
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for named in arguments.files:
            kind, _, path = named.partition("=")
            result, statements = asyncio.run(annotate(kind, Path(path), arguments.k, Path(folder)))
            results[Path(path).name] = result
            print(named, json.dumps(result, indent=1))
            for statement in random.Random(0).sample(statements, min(arguments.show, len(statements))):
                print(" ", statement)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
