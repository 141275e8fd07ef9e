"""Recognises the layout of a questions file by the fields of its first record."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from steper_ray.core.errors import DataError
from steper_ray.corpora.fields import Record
from steper_ray.corpora.files import DataFile
from steper_ray.corpora.places import ErrorLog
from steper_ray.corpora.records import read_records

Kind = Literal["hotpotqa", "2wiki", "musique", "plain"]

_ACCEPTED = (
    "accepted are HotpotQA (_id or id, question, answer, supporting_facts, context), 2WikiMultiHopQA (the same and "
    "evidences), MuSiQue (id, question, paragraphs, question_decomposition, answer) and plain questions (question, "
    "text or query; answers, answer or golden_answers; id, gold_ids, decomposition)"
)


def kind_of_record(record: Record) -> Kind | None:
    """None where the record is no question of a known layout."""
    if record.keys() & {"answers", "golden_answers", "gold_ids"}:
        return "plain"
    if "paragraphs" in record and "question" in record:
        return "musique"
    if "evidences" in record:
        return "2wiki"
    context = record.get("context")
    if "supporting_facts" in record or (
        context and not (isinstance(context, str) and context[:1] not in "[{")
    ):
        return "hotpotqa"
    return "plain" if record.keys() & {"question", "text", "query"} else None


def kind_of_files(files: Sequence[DataFile], wanted: Kind | Literal["auto"]) -> Kind:
    """The layout that is wanted, or with `auto` the one that is found.

    Raises DataError, with the record's fields, where the first record is of no layout or certainly of another one.
    """
    place, record = next(read_records(files, ErrorLog("skip")), (None, {}))
    found = kind_of_record(record)
    if place is None:
        return "plain" if wanted == "auto" else wanted
    where = f"{place.file}, {place.record}: the record has the fields {', '.join(list(record)[:20])}"
    if wanted == "auto":
        if found is None:
            raise DataError(f"{where}: {_ACCEPTED}")
        return found
    if found not in (None, wanted) and _differs(wanted, found, record):
        raise DataError(f"{where}: that is corpus.kind={found}, not {wanted}: set it, or corpus.kind=auto")
    return wanted


def _differs(wanted: Kind, found: Kind, record: Record) -> bool:
    """Test splits lack most fields: what is not there proves nothing, except that HotpotQA alone has levels."""
    if (wanted, found) == ("2wiki", "hotpotqa"):
        return "level" in record
    return found != "plain"
