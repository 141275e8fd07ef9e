"""The miniature world: small made-up worlds and multi-hop questions over them, from a seed.

A world has people, films, books, cities, companies and regions, one passage an entity, and short notes
that speak of an entity without saying anything about it, so that BM25 sometimes misses. Every name is
fresh in its world and no name of the `test` split can occur in the `train` split, so nothing can be
memorised: only retrieval and reasoning answer. This module knows only `schema`.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from random import Random
from typing import Literal

from steper_ray.schema import Passage, Question, SubQuestion

Split = Literal["train", "test"]
Half = Literal["all", "first", "second"]

TEST_SHARE = 8  # one name word in this many belongs to the test split alone
_ONSETS = "b d f g h j k l m n p r s t v z br dr gr kl pl st tr".split()
_RIMES = "a e i o u an el in or us".split()
_SYLLABLES = tuple(onset + rime for onset in _ONSETS for rime in _RIMES)
_NOT_NAMES = frozenset("Some Same Done Gone Bran Plan Plans Stop".split())  # words of English


@dataclass(frozen=True, slots=True)
class Relation:
    """A functional relation: `name` as the question says it, `phrasings` as passages state it."""

    name: str
    target: str
    phrasings: tuple[str, ...]


RELATIONS: dict[str, tuple[Relation, ...]] = {
    "film": (
        Relation("director", "person", ("{x} was directed by {y}.", "{x} was shot by {y}.")),
        Relation("star", "person", ("The star of {x} is {y}.", "The lead in {x} was played by {y}.")),
        Relation("studio", "company", ("The studio of {x} is {y}.", "{x} was made at {y}.")),
    ),
    "book": (
        Relation("author", "person", ("The author of {x} is {y}.", "{x} was written by {y}.")),
        Relation("publisher", "company", ("The publisher of {x} is {y}.", "{x} came out at {y}.")),
    ),
    "person": (
        Relation("birthplace", "city", ("The birthplace of {x} is {y}.", "{x} was born in {y}.")),
        Relation("mother", "person", ("The mother of {x} is {y}.", "{x} is a child of {y}.")),
        Relation("spouse", "person", ("The spouse of {x} is {y}.", "{x} is married to {y}.")),
        Relation("employer", "company", ("The employer of {x} is {y}.", "{x} works for {y}.")),
    ),
    "company": (
        Relation("founder", "person", ("The founder of {x} is {y}.", "{x} was set up by {y}.")),
        Relation("seat", "city", ("The seat of {x} is {y}.", "{x} has its offices in {y}.")),
    ),
    "city": (
        Relation("mayor", "person", ("The mayor of {x} is {y}.", "{x} is governed by {y}.")),
        Relation("region", "region", ("The region of {x} is {y}.", "{x} lies in {y}.")),
    ),
    "region": (Relation("capital", "city", ("The capital of {x} is {y}.", "{x} is ruled from {y}.")),),
}
#: Relations of the first half, which is worded by their first phrasing; the others are the second half's.
_FIRST = frozenset(("director", "star", "author", "birthplace", "mother", "founder", "mayor", "capital"))
_COUNTS = {"person": 14, "film": 5, "book": 5, "company": 5, "city": 6, "region": 3}
_NOTES = ("A letter on {x} tells of {x} and {z}.", "Talk of {x} was heard in {z}, and of {x} again.")
_HOP_WEIGHTS = {2: 45, 3: 35, 4: 20}


def _half(half: Half) -> dict[str, tuple[Relation, ...]]:
    """The relations of a half of the world by kind, each with the phrasings it is stated in."""
    if half == "all":
        return RELATIONS
    wording = 0 if half == "first" else 1
    return {
        kind: tuple(
            replace(relation, phrasings=relation.phrasings[wording : wording + 1])
            for relation in relations
            if relation.name == "capital" or (relation.name in _FIRST) == (half == "first")
        )
        for kind, relations in RELATIONS.items()
    }


class Names:
    """Draws words that were never drawn before, from the words of one split."""

    def __init__(self, rng: Random, split: Split) -> None:
        self._rng, self._split, self._used = rng, split, set[str]()

    def word(self) -> str:
        """A capitalised word of two or three syllables, fresh for this instance."""
        while True:
            size = 2 if self._rng.random() < 0.7 else 3
            word = "".join(self._rng.choices(_SYLLABLES, k=size)).capitalize()
            in_test = zlib.crc32(word.encode()) % TEST_SHARE == 0
            if in_test == (self._split == "test") and word not in self._used | _NOT_NAMES:
                self._used.add(word)
                return word


@dataclass(frozen=True, slots=True)
class World:
    """Entities by kind and by id, the facts between them, and the passages that state the facts."""

    id: str
    kinds: dict[str, str]
    facts: dict[tuple[str, str], str]
    passages: tuple[Passage, ...]
    relations: dict[str, tuple[Relation, ...]]
    """The relations of an entity, by its kind."""

    def passage_id(self, entity: str) -> str:
        return f"{self.id}/{entity}"


def make_world(world_id: str, rng: Random, names: Names, half: Half = "all") -> World:
    """One world; the same id, generator state and names give the same world."""
    known = _half(half)
    by_kind: dict[str, list[str]] = {}
    for kind, count in _COUNTS.items():
        by_kind[kind] = [names.word() for _ in range(count)]
    kinds = {entity: kind for kind, entities in by_kind.items() for entity in entities}
    facts: dict[tuple[str, str], str] = {}
    passages: list[Passage] = []
    for entity, kind in kinds.items():
        sentences = []
        for relation in known[kind]:
            target = rng.choice([e for e in by_kind[relation.target] if e != entity])
            facts[entity, relation.name] = target
            sentences.append(rng.choice(relation.phrasings).format(x=entity, y=target))
        rng.shuffle(sentences)
        passages.append(Passage(f"{world_id}/{entity}", entity, " ".join(sentences)))
        for number in range(_note_count(rng)):
            other = rng.choice([e for e in kinds if e != entity])
            text = rng.choice(_NOTES).format(x=entity, z=other)
            passages.append(Passage(f"{world_id}/{entity}/note{number}", f"Note on {entity}", text))
    rng.shuffle(passages)
    return World(world_id, kinds, facts, tuple(passages), known)


def _note_count(rng: Random) -> int:
    """Mostly none; one entity in 100 has enough of them to crowd its own passage out of the top four."""
    draw = rng.random()
    return 0 if draw < 0.75 else 1 if draw < 0.95 else 2 if draw < 0.99 else 5


def ask(relations: list[str], entity: str) -> str:
    """The question for a path, the last relation outermost: 'Who is the b of the a of X?'."""
    inner = entity
    for name in relations:
        inner = f"the {name} of {inner}"
    return f"{'Who' if _target(relations[-1]) == 'person' else 'What'} is {inner}?"


def _target(name: str) -> str:
    return next(r.target for kind in RELATIONS.values() for r in kind if r.name == name)


def state(relation: str, subject: str, value: str) -> str:
    """A fact as a reasoning sentence."""
    return f"The {relation} of {subject} is {value}."


def make_question(world: World, rng: Random, number: int, hops: int | None = None) -> Question:
    """A question of 2 to 4 hops along a path without a repeated entity, with its gold decomposition."""
    size = hops or rng.choices(list(_HOP_WEIGHTS), weights=list(_HOP_WEIGHTS.values()))[0]
    while True:
        entity = start = rng.choice(list(world.kinds))
        seen, relations, gold = {entity}, list[str](), list[str]()
        subs: list[SubQuestion] = []
        for _ in range(size):
            relation = rng.choice(world.relations[world.kinds[entity]])
            value = world.facts[entity, relation.name]
            subject = entity if not subs else f"#{len(subs)}"
            subs.append(SubQuestion(ask([relation.name], subject), value, world.passage_id(entity)))
            relations.append(relation.name)
            gold.append(world.passage_id(entity))
            entity = value
            seen.add(entity)
        if len(seen) == size + 1:
            break
    return Question(
        id=f"{world.id}-q{number}",
        text=ask(relations, start),
        answers=(entity,),
        gold_ids=tuple(gold),
        hops=size,
        decomposition=tuple(subs),
        dataset="miniature",
    )


def make_worlds(seed: int, count: int, split: Split, half: Half = "all") -> Iterator[tuple[World, Random]]:
    """`count` worlds of a split and half, each with the generator that continues to draw its questions."""
    names = Names(Random(f"names-{seed}-{split}"), split)
    for number in range(count):
        rng = Random(f"world-{seed}-{split}-{number}")
        yield make_world(f"{split}{seed}w{number}", rng, names, half), rng


def make_corpus(
    seed: int, worlds: int, questions_per_world: int, split: Split, half: Half = "all"
) -> tuple[list[Passage], list[Question]]:
    """The passages of all worlds as one corpus, and the questions over them."""
    passages: list[Passage] = []
    questions: list[Question] = []
    for world, rng in make_worlds(seed, worlds, split, half):
        passages.extend(world.passages)
        questions.extend(make_question(world, rng, number) for number in range(questions_per_world))
    return passages, questions
