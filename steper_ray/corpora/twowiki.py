"""2WikiMultiHopQA's official files, their hub copies and its aliases (Ho et al., 2020).

Evidences, triples of subject, relation and object, become the decomposition. Aliases come from
`id_aliases.json` (one JSON object a line, despite its name) beside the questions, by `answer_id`; as in the
official evaluation, a demonym counts as an alias.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import AliasChoices, BeforeValidator, Field

from steper_ray.core.answers import comparable
from steper_ray.corpora import fields
from steper_ray.corpora.files import DataFile
from steper_ray.corpora.hotpotqa import HotpotRecord
from steper_ray.corpora.places import ErrorLog, Malformed
from steper_ray.corpora.pooled import Entry, gold_by_title, sentence_contexts
from steper_ray.corpora.records import read_records
from steper_ray.schema import Passage, Question, SubQuestion

ALIAS_FILES = ("id_aliases.json", "id_aliases.jsonl", "id_aliases.json.gz", "id_aliases.jsonl.gz")
_BRACKETS = re.compile(r"\s*\([^()]*\)$")
Aliases = Mapping[str, tuple[str, ...]]


def _triple(value: Any) -> Any:
    """A hub copy names the parts of a triple."""
    return [value.get(part) for part in ("fact", "relation", "entity")] if isinstance(value, dict) else value


Triple = Annotated[tuple[fields.Stripped, fields.Stripped, fields.Stripped], BeforeValidator(_triple)]


class TwoWikiRecord(HotpotRecord):
    """HotpotQA's record, with evidences and the Wikidata id of the answer."""

    evidences: fields.Items[Triple] = ()
    answer_id: str | None = None


class AliasRecord(fields.Layout):
    """The other names of a Wikidata entity."""

    id: fields.Text = Field(validation_alias=AliasChoices("Q_id"))
    aliases: fields.Items[fields.MaybeEmpty] = ()
    demonyms: fields.Items[fields.MaybeEmpty] = ()


def find_aliases(questions: Iterable[DataFile]) -> list[DataFile]:
    """The alias files beside the questions; none is fine."""
    found = (file.beside(name) for file in questions for name in ALIAS_FILES)
    return list(dict.fromkeys(file for file in found if file is not None))


def read_aliases(files: list[DataFile], log: ErrorLog) -> Aliases:
    """Wikidata id -> aliases and demonyms. All of them are held in memory."""
    aliases: dict[str, tuple[str, ...]] = {}
    for place, record in read_records(files, log):
        try:
            found = fields.validated(AliasRecord, record)
        except Malformed as reason:
            log.malformed(place, str(reason))
        else:
            aliases[found.id] = (*found.aliases, *found.demonyms)
    return aliases


def parse(record: fields.Record, aliases: Aliases) -> Entry:
    """One record. Raises Malformed."""
    found = fields.validated(TwoWikiRecord, record)
    context = sentence_contexts(found.context or [])
    gold = gold_by_title(found.supporting_facts, context)
    names = aliases.get(str(found.answer_id), ()) if found.answer else ()
    hops = decompose(found.evidences, context, gold)
    supports = {hop.support_id for hop in hops}
    titles = {passage.id: passage.title for passage in context if passage.id in supports}
    question = Question(
        id=found.id,
        text=found.question,
        answers=fields.answers(found.answer, *names),
        gold_ids=tuple(gold),
        hops=len(gold) or None,
        decomposition=hops,
        dataset="2wiki",
    )
    return Entry(question, context, {**titles, **gold})


def decompose(
    evidences: Iterable[tuple[str, str, str]],
    context: Iterable[Passage],
    gold: Mapping[str, str] | None = None,
) -> tuple[SubQuestion, ...]:
    """`subject >> relation` for each evidence; a subject that an earlier evidence found is written `#n`.

    The support is the passage whose title is the subject, whatever the case, the signs and the brackets behind one of
    them ('The Black Cat', 'The Black Cat (1941 film)'); else the passage of `gold` (id -> title) that no other hop
    names and whose title shares most words with the subject.
    """
    triples, gold = list(evidences), gold or {}
    titles = [(title, id) for id, title in gold.items()] + [(one.title, one.id) for one in context]
    supports = [_titled(subject, titles) for subject, _, _ in triples]
    left = [id for id in gold if id not in supports]
    pairs = [(number, id) for number, support in enumerate(supports) if support is None for id in left]
    for number, id in sorted(pairs, key=lambda pair: -_shared_words(triples[pair[0]][0], gold[pair[1]])):
        if supports[number] is None and id in left:
            supports[number] = id
            left.remove(id)
    hops: list[SubQuestion] = []
    for (subject, relation, value), support in zip(triples, supports, strict=True):
        earlier = (n for n, hop in enumerate(hops, start=1) if _bare(hop.answer) == _bare(subject))
        found = next(earlier, None)
        name = subject if found is None else f"#{found}"
        hops.append(SubQuestion(f"{name} >> {relation}", value, support))
    return tuple(hops)


def _titled(subject: str, titles: Iterable[tuple[str, str]]) -> str | None:
    """The id of the first title that is the subject as written, else in normal form, else without brackets."""
    for form in (str, comparable, _bare):
        named = form(subject)
        found = next((id for title, id in titles if form(title) == named), None)
        if found is not None:
            return found
    return None


def _shared_words(left: str, right: str) -> int:
    return len({*comparable(left).split()} & {*comparable(right).split()})


def _bare(name: str) -> str:
    """A name in normal form, without what stands in brackets behind it."""
    return comparable(_BRACKETS.sub("", name)) or comparable(name)
