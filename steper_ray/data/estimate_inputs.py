"""What an estimate stands on: lengths of the corpus' own texts, the model's size, and how an earlier run went.

Reads corpus, tokenizer and the headers of the weights from the disk; no engine, no network, no Ray.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any, TypeVar

from safetensors import safe_open

from steper_ray.config import Config, EngineConfig
from steper_ray.core.errors import DataError, ModelError
from steper_ray.corpora import open_corpus
from steper_ray.data.estimate import Course, Lengths, MeasuredSpeed, Model, typical_kv_bytes
from steper_ray.data.inspection import DataSet, Inspection
from steper_ray.frameworks import layout_for
from steper_ray.frameworks.layout import Layout
from steper_ray.models import resolve_model
from steper_ray.prompts import PromptEncoder
from steper_ray.reasoning.passages import within_limit
from steper_ray.rollouts.verifiers import JUDGE_PROMPT

SAMPLE = 1000  # texts of each kind that are tokenised
CHARS_A_TOKEN = 4  # without a tokenizer: about right for English
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class CorpusSize:
    """Questions, passages, the mean lengths of their segments, and how those were counted."""

    questions: int
    passages: int
    lengths: Lengths
    judge: float
    """Tokens of the judge's instruction."""
    how: str


def corpus_size(config: Config) -> CorpusSize:
    """Reads the corpus once; a sample of it is tokenised. Raises DataError."""
    corpus, layout = open_corpus(config.corpus), layout_for(config.reasoning)
    n_questions, questions = _sample(corpus.questions())
    n_passages, passages = _sample(corpus.passages())
    shown = [p for passage in passages if (p := within_limit(passage, config.reasoning)) is not None]
    encoder = _encoder(config.engine, layout)

    def size(text: str) -> float:
        return len(text) / CHARS_A_TOKEN if encoder is None else len(encoder.segment(text))

    lengths = Lengths(
        preamble=size(layout.preamble) if encoder is None else len(encoder.trunk(())),
        passage=fmean(size(layout.trunk_segments([passage])[-1]) for passage in shown or passages),
        question=fmean(size(layout.question_segment(question.text)) for question in questions),
    )
    how = (
        f"the tokenizer of {config.engine.tokenizer or config.engine.model} is not on this disk: "
        f"{CHARS_A_TOKEN} characters a token"
        if encoder is None
        else f"counted with the tokenizer of {config.engine.tokenizer or config.engine.model}"
    )
    return CorpusSize(n_questions, n_passages, lengths, size(JUDGE_PROMPT), how)


def model_size(engine: EngineConfig, params: float | None = None) -> Model:
    """From the model's folder, or for a model of `params` parameters. Raises ModelError where neither is known."""
    folder = None if engine.kind == "openai" else Path(resolve_model(engine.model))
    if folder is None or not folder.is_dir():
        if params is None:
            raise ModelError(
                f"model '{engine.model}' is not on this disk: give its size, such as --params 70e9, "
                "or its speed by --tokens-per-second or --from RUN_DIR"
            )
        return Model(params, typical_kv_bytes(params))
    counted = sum(_params(file) for file in sorted(folder.glob("*.safetensors")))
    params = params or counted
    if not params:
        raise ModelError(
            f"model '{engine.model}': {folder} has no *.safetensors: give its size, --params 70e9"
        )
    shape = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return Model(params, _kv_bytes(shape.get("text_config", shape)) or typical_kv_bytes(params))


def course_of_run(data: DataSet, found: Inspection, config: Config) -> Course:
    """How the trajectories of an earlier run went, for a config that may have another S and k.

    Raises DataError where the run tells no tokens: chains written from annotations have none.
    """
    if not found.cost.completion_tokens:
        raise DataError(f"{data.folder}: its trajectories tell no tokens: no model wrote them")
    costs = found.costs[: config.reasoning.max_steps]
    wider = config.reasoning.k / data.manifest["config"]["reasoning"]["k"]
    return Course(
        reach=tuple(cost.n / found.trajectories for cost in costs),
        found=tuple(wider * cost.passages / cost.n for cost in costs),
        written=tuple(cost.completion_tokens / cost.n for cost in costs),
    )


def speed_of_run(data: DataSet, found: Inspection) -> MeasuredSpeed:
    """Tokens written in a second of one engine, at most: the run tells waits, not the time on the clock."""
    seconds = found.cost.engine_seconds(data.in_flight)
    if not seconds or not found.cost.completion_tokens:
        raise DataError(f"{data.folder}: its trajectories tell no times or no tokens")
    return MeasuredSpeed(found.cost.completion_tokens / seconds)


def _sample(items: Iterable[T]) -> tuple[int, list[T]]:
    """How many there are, and an even sample of them, the same one every time (reservoir sampling)."""
    draw, kept, n = Random(0), list[T](), 0
    for n, item in enumerate(items, 1):
        if len(kept) < SAMPLE:
            kept.append(item)
        elif (place := draw.randrange(n)) < SAMPLE:
            kept[place] = item
    return n, kept


def _encoder(engine: EngineConfig, layout: Layout) -> PromptEncoder | None:
    from steper_ray.generation.tokens import load_tokenizer, tokenizer_name  # brings transformers

    try:
        return PromptEncoder(load_tokenizer(tokenizer_name(engine), local=True), layout)
    except ModelError:
        return None


def _params(file: Path) -> int:
    """Read from the file's header: weights of many GB are not opened."""
    with safe_open(file, framework="numpy") as weights:
        return sum(prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118


def _kv_bytes(shape: dict[str, Any]) -> float | None:
    """Two tensors a layer of `heads x size` in two bytes; None where the config names its parts otherwise."""
    heads = shape.get("num_attention_heads")
    layers, width = shape.get("num_hidden_layers"), shape.get("hidden_size")
    if not heads or not layers or not width:
        return None
    size = shape.get("head_dim") or width // heads
    return float(2 * layers * (shape.get("num_key_value_heads") or heads) * size * 2)
