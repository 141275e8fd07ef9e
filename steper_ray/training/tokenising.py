"""Token files of a run's data, made once by Ray tasks before any worker starts, and found by every later one.

They lie in run_dir/training/tokens/<key>/, named by the content of the file they are made from: other data, another
tokenizer or another layout make others. The folder may be deleted at any time between trainings.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

from steper_ray.config import BUILD, PromptConfig
from steper_ray.core.errors import TrainingError
from steper_ray.core.files import remove_unfinished, storing
from steper_ray.core.locks import locked
from steper_ray.core.progress import Bar
from steper_ray.core.tasks import in_order
from steper_ray.frameworks import Layout, layouts
from steper_ray.pretrained import load_tokenizer
from steper_ray.training.job import Task
from steper_ray.training.sources import Source, sources_of
from steper_ray.training.token_writer import tokens_key, write_tokens
from steper_ray.training.tokens import Tokens, is_whole, note_of

logger = logging.getLogger(__name__)

_FEW = 0.9  # of the tokens with soft targets: fewer are worth a warning


def with_tokens(tasks: Sequence[Task], run_dir: Path, progress: bool = True) -> list[Task]:
    """The tasks with the token files of their data, made where they are missing. Raises TrainingError or ModelError."""

    @cache
    def made(path: Path, model: str, job: int) -> Tokens:
        own = tasks[job].job
        return tokenise(path, model, run_dir, progress, own.prompt, trusted=own.config.trust_remote_code)

    found, prompts = [], [task.job.prompt for task in tasks]
    for task in tasks:
        other, same = task.job.config.validation.trajectories, prompts.index(task.job.prompt)
        held_out = None if other is None else made(other, task.model, same)
        tokens = made(task.job.trajectories, task.model, same)
        if task.job.config.soft_targets is not None and task.job.config.soft_targets.teacher == BUILD:
            check_soft(tokens, task.model)
        found.append(replace(task, tokens=tokens, held_out=held_out))
    return found


def check_soft(tokens: Tokens, model: str) -> None:
    """Raises TrainingError where the build's teacher said nothing of this student's tokens; warns of few."""
    notes = [note for file in tokens.files if (note := note_of(file)) is not None]
    soft, words = sum(note.soft for note in notes), sum(note.words for note in notes)
    if not soft:
        raise TrainingError(
            f"{tokens.source}: train.soft_targets.teacher=build, and no trajectory has log-probabilities in the tokens "
            f"of {model}: build with build.logits=8 and a teacher that has the student's tokenizer, or name a model as "
            "the teacher"
        )
    level = logging.WARNING if soft < _FEW * words else logging.INFO
    logger.log(level, "%s: %d of %d tokens of the chains have soft targets of the build's teacher", tokens.source, soft,
               words)  # fmt: skip


def tokenise(
    path: Path,
    model: str,
    run_dir: Path,
    progress: bool = True,
    prompt: PromptConfig | None = None,
    *,
    trusted: bool = False,
) -> Tokens:
    """The token files of a Parquet file or folder of trajectories; those that are not there, or not whole, are made.

    With `progress` a bar on stderr shows the files made. Raises TrainingError or ModelError.
    """
    tokenizer = load_tokenizer(model, trusted)
    if tokenizer.eos_token_id is None:
        raise TrainingError(
            f"the tokenizer of {model} has no end-of-sequence token, so its student could never learn where a step "
            "ends: name one as `eos_token` in its tokenizer_config.json"
        )
    prompt = prompt or PromptConfig()
    key = tokens_key(tokenizer, prompt)[:16]
    folder = run_dir.resolve() / "training" / "tokens" / key
    files = {folder / f"{source.sha256}.arrow": source for source in sources_of(path)}
    if not all(map(is_whole, files)):
        with storing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        with locked(folder, "tokenising", wait=True):  # another training of this run makes the same ones
            remove_unfinished(folder)
            missing = {file: source for file, source in files.items() if not is_whole(file)}
            _make(missing, partial(_tokenizer, model, trusted, key), prompt, progress)
    return Tokens(path, tuple(files))


def _make(files: dict[Path, Source], load: Callable[[], Any], prompt: PromptConfig, progress: bool) -> None:
    for file in files:
        if note_of(file) is not None:
            logger.warning("%s: damaged (its SHA-256 is not the one noted): it is made again", file)
    bar = Bar("tokens", "files", len(files), shown=progress)
    write = partial(_write, load, layouts(), prompt)
    for done, _ in enumerate(in_order(write, files.items()), 1):
        bar.show(done)
    bar.close()


def _write(
    load: Callable[[], Any], known: dict[str, Layout], prompt: PromptConfig, made: tuple[Path, Source]
) -> None:
    """Makes one token file."""
    file, source = made
    write_tokens(source, file, load(), known, prompt)


@lru_cache(maxsize=2)
def _tokenizer(model: str, trusted: bool, key: str) -> Any:
    """Loaded once a process; `key` makes a changed one another."""
    return load_tokenizer(model, trusted)
