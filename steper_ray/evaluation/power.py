"""What a test set can show: its questions, its independent clusters, and the differences that it finds."""

from __future__ import annotations

from itertools import islice

from steper_ray.config import Config
from steper_ray.core.errors import DataError
from steper_ray.corpora import open_corpus
from steper_ray.evaluation.statistics import clusters_of, detectable

_COUNTED = 20_000  # questions that are read, at most


def power(config: Config) -> str:
    """A line on the test set of a run: how many questions and clusters, and which difference it finds."""
    try:
        questions = islice(open_corpus(config.evaluate.corpus or config.corpus).questions(), _COUNTED)
        clusters = clusters_of({question.id: question.gold_ids for question in questions})
    except DataError as error:
        return f"a test set that is not here ({error})"
    count = len(set(clusters.values()))
    if not count:
        return "a test set without questions"
    found = 100 * detectable(count)
    return (
        f"{len(clusters):,} questions in {count:,} clusters: of two models a difference of {found:.1f} points is found "
        "four times of five, where one alone is right in a quarter of them"
    )
