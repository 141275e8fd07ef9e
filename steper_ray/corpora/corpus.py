"""A corpus: repeatable streams of passages and questions, and the records they skip.

Opening checks that the files are there; reading checks every record. Memory holds the ids (and short hashes
of passages), never the texts. Knows the formats' readers, and nothing of retrieval.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import astuple, dataclass, replace
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeVar

from steper_ray.config import CorpusConfig
from steper_ray.core import fingerprints
from steper_ray.core.errors import DataError
from steper_ray.core.files import file_sha256
from steper_ray.core.fingerprints import digest, passages_fingerprint, remembered
from steper_ray.corpora import hotpotqa, musique, plain, twowiki
from steper_ray.corpora.fields import Record
from steper_ray.corpora.files import DataFile, find_files
from steper_ray.corpora.layouts import Kind, kind_of_files
from steper_ray.corpora.miniature import make_corpus
from steper_ray.corpora.places import ErrorLog, Malformed, Place, Skipped
from steper_ray.corpora.pooled import Entry, Parser, content_id, link, pool, relink
from steper_ray.corpora.records import read_records
from steper_ray.schema import Passage, Question

T = TypeVar("T")
Placed = Iterator[tuple[Place, T]]
UNANSWERABLE = "unanswerable question"
_NO_ANSWER = (
    "the question has no answer: `steper predict` answers such questions; to learn and to score needs answers"
)
_NO_CONTEXT = "the question brings no passages (field 'context'): name a corpus of passages, corpus.passages"


@dataclass(frozen=True, slots=True)
class Corpus:
    """Passages and questions. Each call of `passages` and `questions` reads from the start."""

    kind: Kind | Literal["miniature"]
    """The layout of the questions."""
    _passages: Callable[[], Iterator[Passage]]
    _questions: Callable[[], Placed[Question]]
    _log: ErrorLog
    _config: CorpusConfig
    _files: tuple[Path, ...] = ()
    """The files of the passages."""
    _question_files: tuple[DataFile, ...] = ()
    """The files of the questions, without the passages' files."""

    def passages(self) -> Iterator[Passage]:
        """All passages, each id once, whatever the limit. Raises DataError: malformed record, no passage."""
        config = self._config
        message = f"{config.passages or config.questions}: no passage in it: the corpus is empty"
        return _some(self._passages(), message, self._log)

    def questions(self, *, answered: bool = True) -> Iterator[Question]:
        """The first `limit` questions, each id once. Raises DataError: malformed record, no question.

        One without an answer is malformed where they are to be `answered`.
        """
        read = self._answered() if answered else (question for _, question in self._questions())
        message = f"{self._config.questions}: no question in it: correct corpus.questions"
        return islice(_some(read, message, self._log), self._config.limit)

    def _answered(self) -> Iterator[Question]:
        for place, question in self._questions():
            if question.answers:
                yield question
            else:
                self._log.malformed(place, _NO_ANSWER)

    @property
    def skipped(self) -> list[Skipped]:
        """Records omitted so far, each once: malformed ones, and unanswerable questions."""
        return self._log.skipped

    def fingerprint(self) -> str:
        """SHA-256 over id, title and text of all passages in their order: what an index of them is tied to.

        Reads all passages, but not again while the files and the code stay the same: then it is looked up, together
        with what the reading omitted. Raises DataError as `passages`.
        """
        try:
            known = remembered(self._key(), partial(_read_fingerprint, self._config), self._files)
        except OSError as error:
            raise DataError(f"{error.filename}: cannot be read: {error.strerror}") from error
        found, left_out = json.loads(known)
        for file, record, reason in left_out:
            self._log.leave_out(Place(file, record), reason)
        return str(found)

    def source(self, *, answered: bool = True) -> str:
        """A digest of all that the questions are read from: the same one means the same questions."""
        config = self._config
        files = sorted({*self._question_files, *map(DataFile, self._files)})
        settings = config.model_dump(mode="json", exclude={"passages", "questions", "qrels"})
        try:
            contents = [[file.name, file.member, fingerprints.file_fingerprint(file.path)] for file in files]
        except OSError as error:
            raise DataError(f"{error.filename}: cannot be read: {error.strerror}") from error
        return digest([settings, config.passages is None, config.qrels is None, answered, contents, _code()])

    def _key(self) -> list[Any]:
        """With the files, all that decides the passages and what reading them leaves out."""
        config = self._config
        if config.kind == "miniature" or config.questions is None:
            return ["miniature", config.miniature.model_dump(), _code()]
        kind, path = ("plain", config.passages) if config.passages else (self.kind, config.questions)
        return [kind, str(path), config.on_error, config.passage_characters, _code()]


def _read_fingerprint(config: CorpusConfig) -> str:
    """The fingerprint and what was omitted, as JSON; read apart, since a corpus notes each record only once."""
    corpus = open_corpus(config)
    found = passages_fingerprint(corpus.passages())
    return json.dumps([found, [astuple(skipped) for skipped in corpus.skipped]])


@cache
def _code() -> str:
    """Changes with the source that reads corpora and makes fingerprints."""
    files = [*sorted(Path(__file__).parent.glob("*.py")), Path(fingerprints.__file__)]
    return digest([file_sha256(file) for file in files])


def open_corpus(config: CorpusConfig) -> Corpus:
    """The corpus a config describes. Raises DataError for a file that is not there or has another layout."""
    log = ErrorLog(config.on_error)
    if config.kind == "miniature" or config.questions is None:
        small = config.miniature
        passages, questions = make_corpus(
            small.seed, small.worlds, small.questions_per_world, small.split, small.relations
        )
        made = [(Place("the miniature", question.id), question) for question in questions]
        return Corpus("miniature", partial(iter, passages), partial(iter, made), log, config)
    files = find_files(config.questions, "corpus.questions", ignore=twowiki.ALIAS_FILES)
    kind = kind_of_files(files, config.kind)
    read_passages: Callable[[], Iterator[Passage]] | None = None
    passage_files = [*files, *(twowiki.find_aliases(files) if kind == "2wiki" else ())]
    if config.passages is not None:
        passage_files = find_files(config.passages, "corpus.passages", documents=True)
        read_passages = partial(_read_passages, passage_files, config.passage_characters, log)
    qrels = find_files(config.qrels, "corpus.qrels") if config.qrels else []
    if kind == "plain":
        if read_passages is None:
            raise DataError(f"{config.questions}: these questions bring no passages: set corpus.passages")
        read_questions = partial(_plain_questions, files, qrels, log)
    else:
        parse = _parser(kind, files, log, pooled=read_passages is None)
        read_entries = partial(_entries, files, log, parse)
        ids: Callable[[], Mapping[str, str]] = dict
        if read_passages is None:
            read_passages = partial(_pooled, read_entries)
        else:
            ids = cache(partial(_link, read_entries, read_passages))
        read_questions = partial(_official_questions, read_entries, ids)
    return Corpus(
        kind,
        read_passages,
        read_questions,
        log,
        config,
        tuple(dict.fromkeys(file.path for file in passage_files)),
        (*files, *qrels),
    )


def _some(stream: Iterator[T], message: str, log: ErrorLog) -> Iterator[T]:
    """The stream as it is, but an empty one is a DataError."""
    empty = True
    for value in stream:
        empty = False
        yield value
    if empty:
        notes = log.skipped
        more = f" ({len(notes)} records left out, the first: {notes[0].reason})" if notes else ""
        raise DataError(message + more)


def _parsed(
    records: Iterable[tuple[Place, Record]], log: ErrorLog, parse: Callable[[Record], T | None]
) -> Placed[T]:
    for place, record in records:
        try:
            value = parse(record)
        except Malformed as reason:
            log.malformed(place, str(reason))
            continue
        if value is None:
            log.leave_out(place, UNANSWERABLE)
        else:
            yield place, value


def _unique(stream: Placed[T], log: ErrorLog, id_of: Callable[[T], str]) -> Placed[T]:
    seen: set[str] = set()
    for place, value in stream:
        name = id_of(value)
        if name in seen:
            log.malformed(place, f"question id '{name}' came before: ids name questions, make them unique")
        else:
            seen.add(name)
            yield place, value


def _read_passages(files: list[DataFile], characters: int, log: ErrorLog) -> Iterator[Passage]:
    """Passages of plain files or documents; one that comes again with the same content is dropped."""
    seen: dict[str, str] = {}
    for place, passage in _parsed(read_records(files, log, characters), log, plain.parse_passage):
        content = content_id(passage.title, passage.text)
        before = seen.get(passage.id)
        if before is None:
            seen[passage.id] = content
            yield passage
        elif before != content:
            log.malformed(
                place, f"passage id '{passage.id}' came before with another text: make the ids unique"
            )


def _plain_questions(files: list[DataFile], qrels: list[DataFile], log: ErrorLog) -> Placed[Question]:
    """Without qrels all questions; with them those that they name."""
    judged = plain.read_qrels(_parsed(read_records(qrels, log), log, plain.parse_qrel))
    records = _parsed(read_records(files, log), log, plain.parse_question)
    for place, question in _unique(records, log, lambda question: question.id):
        if not qrels:
            yield place, question
        elif gold := judged.get(question.id):
            yield place, replace(question, gold_ids=tuple(gold))


def _parser(kind: str, files: list[DataFile], log: ErrorLog, *, pooled: bool) -> Parser:
    aliases = cache(partial(twowiki.read_aliases, twowiki.find_aliases(files), log))
    parsers: dict[str, Parser] = {
        "hotpotqa": hotpotqa.parse,
        "musique": musique.parse,
        "2wiki": lambda record: twowiki.parse(record, aliases()),
    }

    def parse(record: Record) -> Entry | None:
        entry = parsers[kind](record)
        if pooled and entry is not None and not entry.context:
            raise Malformed(_NO_CONTEXT)
        return entry

    return parse


def _entries(files: list[DataFile], log: ErrorLog, parse: Parser) -> Placed[Entry]:
    return _unique(_parsed(read_records(files, log), log, parse), log, lambda entry: entry.question.id)


def _pooled(read_entries: Callable[[], Placed[Entry]]) -> Iterator[Passage]:
    return pool(entry for _, entry in read_entries())


def _link(read_entries: Callable[[], Placed[Entry]], read: Callable[[], Iterator[Passage]]) -> dict[str, str]:
    return link((entry for _, entry in read_entries()), read())


def _official_questions(
    read_entries: Callable[[], Placed[Entry]], ids: Callable[[], Mapping[str, str]]
) -> Placed[Question]:
    links = ids()
    return ((place, relink(entry.question, links)) for place, entry in read_entries())
