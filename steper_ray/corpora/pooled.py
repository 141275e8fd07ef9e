"""Questions that bring their own passages, as the official files have them, and how they meet a corpus.

Pooled, the contexts of all questions are the corpus, and a passage's id is a hash of its title and text, so
that one paragraph in two questions is one passage. With a corpus from elsewhere, gold ids become the ids of
that corpus.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from steper_ray.corpora.fields import Record
from steper_ray.schema import Passage, Question

_ID_LENGTH = 16  # hex digits: 64 bits, no clash to be expected below billions of passages


@dataclass(frozen=True, slots=True)
class Entry:
    """A question, the passages it comes with, and the title of every passage its gold ids speak of.

    A gold passage that is not in the context (HotpotQA's fullwiki files) has the id of its title with no
    text: no pooled passage has that id, so it counts as not found.
    """

    question: Question
    context: tuple[Passage, ...]
    titles: Mapping[str, str]


Parser = Callable[[Record], Entry | None]
"""A record to an entry; None leaves the record out. Raises Malformed."""


def content_id(title: str, text: str) -> str:
    """The id of a pooled passage: the same for the same content."""
    digest = hashlib.sha256(f"{len(title)}:{title}{text}".encode())
    return digest.hexdigest()[:_ID_LENGTH]


def make_passage(title: str, text: str) -> Passage:
    return Passage(content_id(title, text), title, text)


def join_sentences(sentences: list[str]) -> str:
    """Sentences to a paragraph; HotpotQA's carry their blank in front, 2WikiMultiHopQA's do not."""
    return " ".join(sentence.strip() for sentence in sentences if sentence.strip())


def sentence_contexts(context: Iterable[tuple[str, list[str]]]) -> tuple[Passage, ...]:
    """Passages of `[(title, [sentence, ...]), ...]`; a paragraph without text is omitted."""
    passages = ((title.strip(), join_sentences(sentences)) for title, sentences in context)
    return tuple(make_passage(title, text) for title, text in passages if text)


def gold_by_title(facts: Iterable[tuple[str, int | None]], context: Iterable[Passage]) -> dict[str, str]:
    """Gold id -> title, in the order of `[(title, sentence), ...]`; see Entry for a title not in context."""
    ids: dict[str, str] = {}
    for passage in context:
        ids.setdefault(passage.title, passage.id)
    return {ids.get(title, content_id(title, "")): title for title, _ in facts}


def pool(entries: Iterable[Entry]) -> Iterator[Passage]:
    """The contexts of all entries, each passage once, in the order they come. Memory holds the ids."""
    seen: set[str] = set()
    for entry in entries:
        for passage in entry.context:
            if passage.id not in seen:
                seen.add(passage.id)
                yield passage


def link(entries: Iterable[Entry], passages: Iterable[Passage]) -> dict[str, str]:
    """Gold ids of the entries -> ids of a corpus from elsewhere: by title and text, else by a title that is
    unique.

    A gold id whose passage the corpus does not have is not in the map. Memory holds the gold passages'
    titles.
    """
    wanted: dict[str, set[str]] = {}
    for entry in entries:
        for gold_id, title in entry.titles.items():
            wanted.setdefault(title, set()).add(gold_id)
    exact: dict[str, str] = {}
    named: dict[str, list[str]] = {}
    for passage in passages:
        title = passage.title.strip()
        if title in wanted:
            exact.setdefault(content_id(title, passage.text.strip()), passage.id)
            named.setdefault(title, []).append(passage.id)
    found = {}
    for title, gold_ids in wanted.items():
        unique = named[title][0] if len(named.get(title, ())) == 1 else None
        for gold_id in gold_ids:
            target = exact.get(gold_id, unique)
            if target is not None:
                found[gold_id] = target
    return found


def relink(question: Question, ids: Mapping[str, str]) -> Question:
    """The question with the gold ids of another corpus; one not in it stays, and counts as not found."""
    hops = (replace(sub, support_id=_moved(sub.support_id, ids)) for sub in question.decomposition)
    gold = dict.fromkeys(ids.get(gold_id, gold_id) for gold_id in question.gold_ids)
    return replace(question, gold_ids=tuple(gold), decomposition=tuple(hops))


def _moved(support_id: str | None, ids: Mapping[str, str]) -> str | None:
    return None if support_id is None else ids.get(support_id, support_id)
