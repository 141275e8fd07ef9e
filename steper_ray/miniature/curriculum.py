"""The lessons of the miniature's base and teacher, as trees of token ids.

The base learns to READ: questions of one hop with the passage at hand, and lists of independent one-hop
questions, answered from the last to the first. No question in its training feeds one answer into another, so
it never sees the multi-step task. The teacher learns that task: gold chains over really retrieved passages.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from steper_ray.corpora.miniature import RELATIONS, World, ask, state
from steper_ray.prompts import PromptEncoder
from steper_ray.training.packing import Branch, Tree


def answer_sentence(answer: str) -> str:
    return f"So the answer is: {answer}."


def reading_tree(
    world: World, rng: Random, encoder: PromptEncoder, branches: int, passages: int, *, varied: bool
) -> Tree:
    """`passages` passages of one world in random order, and `branches` reading questions over them.

    With `varied` half of the lists ask for several facts of one entity, and every list ends in its answers: the base
    learns to keep count of a question's relations, and to see when none is left to state.
    """
    own = [p for p in world.passages if p.title in world.kinds]
    order = rng.sample(own, -(-passages // 2))
    order += rng.sample([p for p in world.passages if p not in order], passages // 2)
    rng.shuffle(order)
    shown = {p.id for p in order}
    readable = [fact for fact in world.facts if world.passage_id(fact[0]) in shown]
    trunk = encoder.trunk(order)
    items = []
    for _ in range(branches):
        size = 1 if rng.random() < 0.5 else rng.randint(2, 4)
        of_one = varied and size > 1 and rng.random() < 0.5
        pool = readable
        if of_one:
            subject = rng.choice(readable)[0]
            pool = [fact for fact in readable if fact[0] == subject]
        picked = rng.sample(pool, min(size, len(pool)))
        sentences = [
            state(relation, entity, world.facts[entity, relation]) for entity, relation in reversed(picked)
        ]
        if len(picked) == 1 or varied:
            sentences.append(answer_sentence(" and ".join(world.facts[fact] for fact in picked)))
        prompt = encoder.question(_question(picked, of_one=of_one))
        items.append(Branch(len(trunk), tuple(prompt), tuple(encoder.target(sentences)), 2))
    return Tree(tuple(trunk), tuple(items))


def _question(facts: Sequence[tuple[str, str]], *, of_one: bool) -> str:
    if len(facts) == 1:
        ((entity, relation),) = facts
        return ask([relation], entity)
    if of_one:
        return "What are " + " and ".join(f"the {relation}" for _, relation in facts) + f" of {facts[0][0]}?"
    return "What are " + " and ".join(f"the {relation} of {entity}" for entity, relation in facts) + "?"


def vocabulary_text(world: World, rng: Random) -> str:
    """Text of one world for the tokenizer: its passages and the forms of questions and chains."""
    lines = [f"Title: {p.title}\n{p.text}\n" for p in world.passages]
    for (entity, relation), value in world.facts.items():
        lines.append(f"Q: {ask([relation], entity)}\nA: {state(relation, entity, value)}")
        lines.append(answer_sentence(value))
    rng.shuffle(lines)
    return "\n".join(lines)


RELATION_NAMES = tuple(r.name for relations in RELATIONS.values() for r in relations)
