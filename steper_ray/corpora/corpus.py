"""A corpus: repeatable streams of passages and questions, and the records they skip.

Opening checks that the files are there; reading checks every record. Memory holds the ids (and short hashes
of passages), never the texts. Knows the formats' readers, and nothing of retrieval.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import astuple, dataclass
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from steper_ray.config import CorpusConfig
from steper_ray.core import fingerprints
from steper_ray.core.errors import DataError
from steper_ray.core.files import file_sha256
from steper_ray.core.fingerprints import digest, passages_fingerprint, remembered
from steper_ray.corpora import hotpotqa, musique, plain, twowiki
from steper_ray.corpora.fields import Record
from steper_ray.corpora.miniature import make_corpus
from steper_ray.corpora.pooled import Entry, Parser, content_id, link, pool, relink
from steper_ray.corpora.records import ErrorLog, Malformed, Place, Skipped, find_files, read_records
from steper_ray.schema import Passage, Question

T = TypeVar("T")
UNANSWERABLE = "unanswerable question"


@dataclass(frozen=True, slots=True)
class Corpus:
    """Passages and questions. Each call of `passages` and `questions` reads from the start."""

    _passages: Callable[[], Iterator[Passage]]
    _questions: Callable[[], Iterator[Question]]
    _log: ErrorLog
    _config: CorpusConfig
    _files: tuple[Path, ...] = ()
    """What the passages are read from."""

    def passages(self) -> Iterator[Passage]:
        """All passages, each id once, whatever the limit. Raises DataError: malformed record, no passage."""
        return self._passages()

    def questions(self) -> Iterator[Question]:
        """The first `limit` questions, each id once. Raises DataError: malformed record, no question."""
        return islice(self._questions(), self._config.limit)

    @property
    def skipped(self) -> list[Skipped]:
        """What reading has omitted so far, each record once: malformed ones, and unanswerable questions."""
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
            self._log.leave_out(Place(Path(file), record), reason)
        return str(found)

    def source(self) -> str:
        """A digest of all that the questions are read from: the same one means the same questions."""
        config = self._config
        paths = [] if config.questions is None else find_files(config.questions, "corpus.questions")
        files = sorted({*paths, *self._files})
        settings = config.model_dump(mode="json", exclude={"questions", "passages"})
        try:
            contents = [[file.name, fingerprints.file_fingerprint(file)] for file in files]
        except OSError as error:
            raise DataError(f"{error.filename}: cannot be read: {error.strerror}") from error
        return digest([settings, config.passages is None, contents, _code()])

    def _key(self) -> list[Any]:
        """With the files, all that decides the passages and what reading them leaves out."""
        config = self._config
        if config.kind == "miniature":
            return ["miniature", config.miniature.model_dump(), _code()]
        kind, path = ("plain", config.passages) if config.passages else (config.kind, config.questions)
        return [kind, str(path), config.on_error, _code()]


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
    """The corpus a config describes. Raises DataError for a file that is not there."""
    log = ErrorLog(config.on_error)
    if config.kind == "miniature":
        small = config.miniature
        passages, questions = make_corpus(small.seed, small.worlds, small.questions_per_world, small.split)
        return Corpus(partial(iter, passages), partial(iter, questions), log, config)
    if config.questions is None:
        raise DataError(f"corpus.questions: kind '{config.kind}' needs a questions file")
    found = find_files(config.questions, "corpus.questions")
    files = [file for file in found if file.name not in twowiki.ALIAS_FILES]
    read_passages: Callable[[], Iterator[Passage]] | None = None
    if config.passages is None:
        read_from = [*files, *(twowiki.find_aliases(files) if config.kind == "2wiki" else ())]
    else:
        read_from = find_files(config.passages, "corpus.passages")
        read_passages = partial(_read_passages, read_from, log)
    if config.kind == "plain":
        read_questions = partial(_plain_questions, files, log)
    else:
        read_entries = partial(_entries, files, log, _parser(config.kind, files, log))
        read_questions = partial(_official_questions, read_entries)
        if read_passages is None:
            read_passages = partial(_pooled, read_entries)
        else:
            ids = cache(partial(_link, read_entries, read_passages))
            read_questions = partial(_linked_questions, read_entries, ids)
    if read_passages is None:
        raise DataError("corpus.passages: kind 'plain' needs a passages file")
    no_passage = f"{config.passages or config.questions}: no passage in it: the corpus is empty"
    no_question = f"{config.questions}: no question in it: correct corpus.questions"
    return Corpus(
        partial(_some, read_passages, no_passage, log),
        partial(_some, read_questions, no_question, log),
        log,
        config,
        tuple(read_from),
    )


def _some(read: Callable[[], Iterator[T]], message: str, log: ErrorLog) -> Iterator[T]:
    """The stream as it is, but an empty one is a DataError."""
    empty = True
    for value in read():
        empty = False
        yield value
    if empty:
        notes = log.skipped
        more = f" ({len(notes)} records left out, the first: {notes[0].reason})" if notes else ""
        raise DataError(message + more)


def _parsed(
    files: list[Path], log: ErrorLog, parse: Callable[[Record], T | None]
) -> Iterator[tuple[Place, T]]:
    for place, record in read_records(files, log):
        try:
            value = parse(record)
        except Malformed as reason:
            log.malformed(place, str(reason))
            continue
        if value is None:
            log.leave_out(place, UNANSWERABLE)
        else:
            yield place, value


def _unique(stream: Iterable[tuple[Place, T]], log: ErrorLog, id_of: Callable[[T], str]) -> Iterator[T]:
    seen: set[str] = set()
    for place, value in stream:
        name = id_of(value)
        if name in seen:
            log.malformed(place, f"question id '{name}' came before: ids name questions, make them unique")
        else:
            seen.add(name)
            yield value


def _read_passages(files: list[Path], log: ErrorLog) -> Iterator[Passage]:
    """Passages of a plain file; one that comes again with the same content is dropped."""
    seen: dict[str, str] = {}
    for place, passage in _parsed(files, log, plain.parse_passage):
        content = content_id(passage.title, passage.text)
        before = seen.get(passage.id)
        if before is None:
            seen[passage.id] = content
            yield passage
        elif before != content:
            log.malformed(
                place, f"passage id '{passage.id}' came before with another text: make the ids unique"
            )


def _plain_questions(files: list[Path], log: ErrorLog) -> Iterator[Question]:
    return _unique(_parsed(files, log, plain.parse_question), log, lambda question: question.id)


def _parser(kind: str, files: list[Path], log: ErrorLog) -> Parser:
    if kind == "hotpotqa":
        return hotpotqa.parse
    if kind == "musique":
        return musique.parse
    aliases = cache(partial(twowiki.read_aliases, twowiki.find_aliases(files), log))
    return lambda record: twowiki.parse(record, aliases())


def _entries(files: list[Path], log: ErrorLog, parse: Parser) -> Iterator[Entry]:
    return _unique(_parsed(files, log, parse), log, lambda entry: entry.question.id)


def _official_questions(read_entries: Callable[[], Iterator[Entry]]) -> Iterator[Question]:
    return (entry.question for entry in read_entries())


def _pooled(read_entries: Callable[[], Iterator[Entry]]) -> Iterator[Passage]:
    return pool(read_entries())


def _link(
    read_entries: Callable[[], Iterator[Entry]], read: Callable[[], Iterator[Passage]]
) -> dict[str, str]:
    return link(read_entries(), read())


def _linked_questions(
    read_entries: Callable[[], Iterator[Entry]], ids: Callable[[], dict[str, str]]
) -> Iterator[Question]:
    links = ids()
    return (relink(entry.question, links) for entry in read_entries())
