"""Corpora: streams of questions and passages out of official files, plain files or the miniature world."""

from steper_ray.corpora.corpus import UNANSWERABLE, Corpus, open_corpus
from steper_ray.corpora.places import Skipped

__all__ = ["UNANSWERABLE", "Corpus", "Skipped", "open_corpus"]
