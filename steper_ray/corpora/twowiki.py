"""2WikiMultiHopQA's official files, their hub copies and its aliases (Ho et al., 2020).

Evidences, triples of subject, relation and object, become the decomposition. Aliases come from
`id_aliases.json` (one JSON object a line, despite its name) beside the questions, by `answer_id`; as in the
official evaluation, a demonym counts as an alias.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from steper_ray.corpora import fields
from steper_ray.corpora.pooled import Entry, gold_by_title, sentence_contexts
from steper_ray.corpora.records import ErrorLog, Malformed, read_records
from steper_ray.schema import Passage, Question, SubQuestion

ALIAS_FILES = ("id_aliases.json", "id_aliases.jsonl", "id_aliases.json.gz", "id_aliases.jsonl.gz")
Aliases = Mapping[str, tuple[str, ...]]


def find_aliases(questions: Iterable[Path]) -> list[Path]:
    """The alias files beside the questions; none is fine."""
    folders = dict.fromkeys(path.parent for path in questions)
    return [folder / name for folder in folders for name in ALIAS_FILES if (folder / name).is_file()]


def read_aliases(files: list[Path], log: ErrorLog) -> Aliases:
    """Wikidata id -> aliases and demonyms. All of them are held in memory."""
    aliases: dict[str, tuple[str, ...]] = {}
    for place, record in read_records(files, log):
        try:
            names = fields.optional_items(record, "aliases") + fields.optional_items(record, "demonyms")
            aliases[fields.text(record, "Q_id")] = tuple(
                fields.as_text(name, "aliases", empty=True) for name in names
            )
        except Malformed as reason:
            log.malformed(place, str(reason))
    return aliases


def parse(record: fields.Record, aliases: Aliases) -> Entry:
    """One record. Raises Malformed."""
    context = sentence_contexts(fields.pairs(record, "context", "sentences", "content"))
    gold = gold_by_title(fields.pairs(record, "supporting_facts", "sent_id"), context)
    names = aliases.get(str(record.get("answer_id")), ())
    hops = decompose(fields.optional_items(record, "evidences"), context)
    supports = {hop.support_id for hop in hops}
    titles = {passage.id: passage.title for passage in context if passage.id in supports}
    question = Question(
        id=fields.identifier(record, fields.either(record, "_id", "id")),
        text=fields.text(record, "question").strip(),
        answers=fields.answers(fields.get(record, "answer"), list(names)),
        gold_ids=tuple(gold),
        hops=len(gold) or None,
        decomposition=hops,
        dataset="2wiki",
    )
    return Entry(question, context, {**titles, **gold})


def decompose(evidences: list[object], context: Iterable[Passage]) -> tuple[SubQuestion, ...]:
    """`subject >> relation` for each evidence; a subject that an earlier evidence found is written `#n`.

    The support is the passage whose title is the subject, where the context has one.
    """
    ids: dict[str, str] = {}
    for passage in context:
        ids.setdefault(passage.title, passage.id)
    hops: list[SubQuestion] = []
    for evidence in evidences:
        if isinstance(evidence, dict):
            evidence = [evidence.get(part) for part in ("fact", "relation", "entity")]
        parts = fields.as_list(evidence, "evidences", length=3)
        subject, relation, value = (fields.as_text(part, "evidences").strip() for part in parts)
        earlier = (number for number, hop in enumerate(hops, start=1) if hop.answer == subject)
        found = next(earlier, None)
        name = subject if found is None else f"#{found}"
        hops.append(SubQuestion(f"{name} >> {relation}", value, ids.get(subject)))
    return tuple(hops)
