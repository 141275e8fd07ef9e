"""Checks a config before hours are spent on it: files, index, disk, Java, GPUs, and one real question to its model.

- Nothing is built: without an index the question is shown the first passages of the corpus.
- A check that fails says what to change, and the checks that do not need it go on.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from steper_ray.config import BUILD, Config, SamplingConfig
from steper_ray.core.answers import extract_answer
from steper_ray.core.chat import Conversation
from steper_ray.core.errors import SteperError, StorageError
from steper_ray.core.files import storing, write_text
from steper_ray.core.storage import is_remote
from steper_ray.core.tokenizers import vocabulary_fingerprint
from steper_ray.corpora import open_corpus
from steper_ray.corpora.corpus import Corpus
from steper_ray.generation.base import Chunk, Generator, Prompt
from steper_ray.reasoning import Reasoner
from steper_ray.retrieval import Retriever, index_folder, open_index
from steper_ray.retrieval.index import is_there
from steper_ray.schema import Hit, Passage, Question, StopReason, Trajectory

LEAST_FREE = 2**30  # bytes: less is soon full
LONGEST_ANSWER = 20  # words: the data sets' answers are names, dates, numbers, yes and no

Say = Callable[[str], None]


def examine(config: Config, say: Say) -> int:
    """Runs all checks, says each result as soon as it is known, and returns the number of those that failed."""
    faults = 0

    def check(name: str, look: Callable[[], str]) -> None:
        nonlocal faults
        try:
            say(f"{'ok':6} {name:10} {look()}")
        except SteperError as error:
            faults += 1
            say(f"{'FAULT':6} {name:10} {error}")

    found = _Found()
    check("disk", lambda: _disk(config.run_dir))
    check("corpus", lambda: _corpus(config, found))
    if config.retrieval.kind == "lucene":
        check("java", _java)
    if found.corpus is not None:
        check("index", lambda: _index(config, found))
    if config.engine.kind == "vllm" or config.build.num_gpus or config.train.use_gpu:
        check("GPUs", _gpus)
    if config.train.soft_targets is not None and config.train.soft_targets.teacher == BUILD:
        check("student", lambda: _student(config))
    if found.question is not None:
        check("model", lambda: asyncio.run(_ask(config, found, say)))
    return faults


@dataclass(slots=True)
class _Found:
    """Results of earlier checks for later ones."""

    corpus: Corpus | None = None
    question: Question | None = None
    passages: list[Passage] = field(default_factory=list)
    retriever: Retriever | None = None


@dataclass(frozen=True, slots=True)
class _FirstPassages:
    """A stand-in for an index: the same passages for every query."""

    passages: Sequence[Passage]

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        return [[Hit(passage, 0.0) for passage in self.passages[:k]] for _ in queries]


def _disk(run_dir: Path) -> str:
    mark = run_dir / ".doctor"
    with storing(run_dir):
        run_dir.mkdir(parents=True, exist_ok=True)
    write_text(mark, "x" * 4096)
    mark.unlink()
    if is_remote(run_dir):
        return f"{run_dir}: can be written"
    free = shutil.disk_usage(run_dir).free
    if free < LEAST_FREE:
        raise StorageError(
            f"{run_dir}: only {free / 1e9:.2f} GB free: make room, or set run_dir to another disk"
        )
    return f"{run_dir}: can be written, {free / 1e9:.0f} GB free"


def _corpus(config: Config, found: _Found) -> str:
    corpus = open_corpus(config.corpus)
    found.question = next(corpus.questions(answered=False))
    found.passages = list(islice(corpus.passages(), config.reasoning.k))
    found.corpus = corpus
    answered = "with answers" if found.question.answers else "without answers: they can be asked, not scored"
    return f"{corpus.kind}: questions ({answered}) and passages are read"


def _index(config: Config, found: _Found) -> str:
    assert found.corpus is not None
    fingerprint = found.corpus.fingerprint()
    folder = index_folder(config.retrieval, config.run_dir, fingerprint)
    if not is_there(folder, config.retrieval):
        return f"{folder}: none yet; the first command builds it"
    found.retriever = open_index(folder, config.retrieval, fingerprint)
    return f"{folder}: opens, of this corpus"


def _java() -> str:
    from steper_ray.retrieval.java import find_java

    return str(find_java().home)


def _gpus() -> str:
    import torch

    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return ", ".join(names) or "none on this machine; the nodes of a cluster may have some"


def _student(config: Config) -> str:
    """Whether it can learn from the log-probabilities of the build."""
    from steper_ray.models import resolve_model
    from steper_ray.pretrained import load_tokenizer

    if not config.build.logits:
        raise SteperError(
            "train.soft_targets.teacher=build, and the build keeps nothing for it: set build.logits, such as 8"
        )
    student, trusted = config.train.student, config.train.trust_remote_code or config.engine.trust_remote_code
    for engine in [teacher.engine for teacher in config.build.teachers] or [config.engine]:
        names = student, engine.tokenizer or engine.model
        ours, theirs = (
            vocabulary_fingerprint(load_tokenizer(resolve_model(name), trusted)) for name in names
        )
        if ours != theirs:
            raise SteperError(
                f"{student} has another tokenizer than the teacher {engine.model}, whose log-probabilities it would "
                "learn from: take a student of the teacher's family, or leave train.soft_targets out"
            )
    return f"{student}: has the teacher's tokenizer"


class _Watched:
    """A generator that keeps its first prompt, and how fast and in what its replies came."""

    def __init__(self, generator: Generator) -> None:
        self.tokenizer = generator.tokenizer
        self.prompt: Prompt = ""
        self.seconds = 0.0
        self.ids = self.logprobs = self.top = self.ignores_stop = False
        self._generator = generator

    async def stream(
        self, prompt: Prompt, sampling: SamplingConfig, stop: Sequence[str] = ()
    ) -> AsyncGenerator[Chunk, None]:
        self.prompt = self.prompt or prompt
        started = time.monotonic()
        try:
            async with aclosing(self._generator.stream(prompt, sampling, stop)) as chunks:
                text = ""
                async for chunk in chunks:
                    text += chunk.text
                    self.ignores_stop |= any(word in text for word in stop)
                    self.ids |= bool(chunk.token_ids)
                    self.logprobs |= bool(chunk.logprobs)
                    self.top |= bool(chunk.top)
                    yield chunk
        finally:
            self.seconds += time.monotonic() - started

    async def check(self) -> None:
        await self._generator.check()

    async def close(self) -> None:
        await self._generator.close()


async def _ask(config: Config, found: _Found, say: Say) -> str:
    """Asks the config's model one question; what is shown of it is indented below the checks."""
    from steper_ray.generation import open_generator

    assert found.question is not None
    generator = open_generator(config.engine, config.build.logits)
    try:
        await generator.check()
        watched = _Watched(generator)
        retriever = found.retriever or _FirstPassages(found.passages)
        reasoner = Reasoner(retriever, watched, config.reasoning, config.sampling, config.engine.model)
        trajectory = await reasoner.run(found.question)
    finally:
        await generator.close()
    for line in _shown(watched, trajectory):
        say(line)
    if trajectory.error is not None:
        raise SteperError(f"{config.engine.model}: {trajectory.error}")
    wrote, steps = sum(step.usage.completion_tokens for step in trajectory.steps), len(trajectory.steps)
    if (fault := _misstated(trajectory)) is not None:
        raise SteperError(
            f"{config.engine.model} {fault} in {steps} steps ({trajectory.stop_reason.value}): read its chain "
            "above; show it the form (reasoning.few_shot=true, reasoning.instruction), or give it more "
            "(reasoning.max_steps, sampling.max_tokens)"
        )
    way = getattr(generator, "way", "") or "token ids, in this process"
    gives = {
        "token ids": watched.ids,
        "log-probabilities": watched.logprobs,
        f"those of the {config.build.logits} likeliest tokens": watched.top,
    }
    given = ", ".join(name for name, is_given in gives.items() if is_given) or "text alone"
    speed = wrote / max(watched.seconds, 1e-9)
    return (
        f"{config.engine.model}: answers '{trajectory.answer}' after {steps} steps, {speed:.1f} tokens/s alone; "
        f"asked by {way}; gives {given}{'; ignores stop strings' if watched.ignores_stop else ''}"
    )


def _misstated(trajectory: Trajectory) -> str | None:
    """The fault in how the answer is stated, if there is one."""
    if trajectory.stop_reason not in (StopReason.ANSWERED, StopReason.UNSURE):
        return "states no answer"
    if extract_answer(trajectory.answer) is not None or len(trajectory.answer.split()) > LONGEST_ANSWER:
        return f"states an answer that is none, '{trajectory.answer[:80]}',"
    return None


def _shown(watched: _Watched, trajectory: Trajectory) -> Iterator[str]:
    """The first prompt and the chain, as text."""
    prompt = watched.prompt
    if isinstance(prompt, Conversation):
        turns = ("system", prompt.instruction), ("user", prompt.user), ("assistant", prompt.reply)
        text = "\n".join(f"[{role}] {said}" for role, said in turns if said)
    elif isinstance(prompt, str):
        text = prompt
    else:
        assert watched.tokenizer is not None
        text = watched.tokenizer.decode(list(prompt), skip_special_tokens=False)
    yield "       first prompt:"
    yield from (f"       | {line}" for line in text.split("\n"))
    yield "       chain:"
    for step in trajectory.steps:
        thought = (
            f" (after {step.usage.thinking_tokens} tokens of thinking)" if step.usage.thinking_tokens else ""
        )
        yield f"       {step.index}. {step.reasoning or step.taken_back or '(nothing)'}{thought}"
