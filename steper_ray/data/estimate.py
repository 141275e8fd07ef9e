"""`steper estimate`: what a build will take before it runs, with every assumption beside its figure.

- Tokens follow the prompt layout: step s reads instruction, passages of steps 1 to s, question and chain, and finds the
  prompt of step s-1 up to its last passage in the engine's prefix cache.
- Time follows an earlier run, a given speed, or a roofline of the GPU's stated figures.
- Corpus, tokenizer and the headers of weights are read from the disk. No engine, no network, no Ray.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from itertools import accumulate, islice
from pathlib import Path
from statistics import fmean

from steper_ray.config import Config, EngineConfig
from steper_ray.core.errors import DataError, ModelError
from steper_ray.corpora import open_corpus
from steper_ray.data.inspection import DataSet, inspect
from steper_ray.frameworks import layout_for
from steper_ray.models import resolve_model
from steper_ray.prompts import encoder_for
from steper_ray.reasoning.passages import within_limit

SAMPLE = 1000  # first texts of each kind, which are tokenised
CHARS_A_TOKEN = 4  # without a tokenizer: about right for English
SENTENCE_TOKENS = 32  # written in a step that is cut after its first sentence
#: Vendors' data sheets: dense bfloat16 FLOP/s, bytes a second from memory, bytes of memory.
GPUS = {
    "A100": (312e12, 2.039e12, 80e9),  # SXM
    "H100": (989e12, 3.35e12, 80e9),  # SXM
    "H200": (989e12, 4.8e12, 141e9),  # SXM
}
#: Shares of those peaks that engines reach: in the middle of what is published for dense models.
COMPUTE_SHARE, BANDWIDTH_SHARE = 0.4, 0.6
_BILLIONS = re.compile(r"(\d+(?:\.\d+)?)B\b", re.IGNORECASE)
_WIDTHS = (14, 16, 16, 14)  # of the table's columns


@dataclass(frozen=True, slots=True)
class Options:
    """Assumptions about what the config does not say."""

    gpu: str = "H100"
    gpus: int | None = None
    params: float | None = None
    tokens_per_second: float | None = None
    from_run: Path | None = None


@dataclass(frozen=True, slots=True)
class Lengths:
    """Mean tokens of a prompt's segments; the preamble with the begin of sequence."""

    preamble: float
    passage: float
    question: float


@dataclass(frozen=True, slots=True)
class Profile:
    """Of each step: the share of trajectories that take it, its new passages, and the tokens it writes."""

    share: tuple[float, ...]
    found: tuple[float, ...]
    written: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class StepTokens:
    """All generations of one step. `cached` of the `prompt` tokens are in the prefix cache."""

    generations: float
    prompt: float
    cached: float
    written: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """`hours` with all of `engines` busy to the end; each spans `gpus_each` GPUs."""

    questions: int
    passages: int
    trajectories: int
    lengths: Lengths
    steps: tuple[StepTokens, ...]
    hours: float
    engines: int
    gpus_each: int
    assumptions: tuple[str, ...]


def make_estimate(config: Config, options: Options) -> Estimate:
    """Raises DataError and ModelError, naming the fix."""
    each, assumed = config.engine.tensor_parallel_size, ["passages found are as long as the corpus' mean"]
    engines = config.build.engines if options.gpus is None else options.gpus // each
    if config.build.teacher != "engine":
        raise DataError(f"build.teacher is '{config.build.teacher}': no model is asked")
    if options.gpu not in GPUS:
        raise DataError(f"--gpu {options.gpu}: known are {', '.join(GPUS)}; or give --tokens-per-second")
    if not engines:
        raise DataError(f"--gpus {options.gpus}: one engine takes {each} (engine.tensor_parallel_size)")
    questions, passages, lengths = _corpus(config, assumed)
    profile, write = _profile(config, options, assumed)
    n = questions * config.build.samples
    steps = step_tokens(n, lengths, profile, config.reasoning.max_passages)
    if config.build.verify.agreement is not None or config.build.verify.judge is not None:
        assumed.append("the generations of the verifiers agreement and judge come on top")
    whole = total(steps)
    seconds = whole.written / write if write else roofline(config, options, whole, n, assumed)
    hours = seconds / 3600 / engines
    return Estimate(questions, passages, n, lengths, steps, hours, engines, each, tuple(assumed))


def step_tokens(n: int, lengths: Lengths, profile: Profile, max_passages: int) -> tuple[StepTokens, ...]:
    """The tokens of each step, over `n` trajectories."""
    seen = [min(float(max_passages), passages) for passages in accumulate(profile.found)]
    steps = []
    for number, (share, written) in enumerate(zip(profile.share, profile.written, strict=True)):
        count = n * share
        chain = sum(profile.written[:number])
        before = lengths.preamble + (lengths.passage * seen[number - 1] if number else 0.0)
        prompt = lengths.preamble + lengths.passage * seen[number] + lengths.question + chain
        steps.append(StepTokens(count, count * prompt, count * before, count * written))
    return tuple(steps)


def total(steps: Iterable[StepTokens]) -> StepTokens:
    return StepTokens(*map(sum, zip(*map(astuple, steps), strict=True)))


def _corpus(config: Config, assumed: list[str]) -> tuple[int, int, Lengths]:
    """Questions, passages and mean lengths. Raises DataError."""
    from steper_ray.generation.tokens import engine_tokenizer  # brings transformers

    corpus, layout = open_corpus(config.corpus), layout_for(config.reasoning)
    questions = list(islice(corpus.questions(), SAMPLE))
    passages = list(islice(corpus.passages(), SAMPLE))
    shown = [p for passage in passages if (p := within_limit(passage, config.reasoning)) is not None]
    name = config.engine.tokenizer or config.engine.model
    try:
        tokenizer = engine_tokenizer(config.engine, local=True)
        encoder = encoder_for(tokenizer, layout, config.reasoning)
        assumed.append(f"counted with the tokenizer of {name}")
    except ModelError:
        encoder = None
        assumed.append(f"the tokenizer of {name} is not on this disk: {CHARS_A_TOKEN} characters a token")

    def size(text: str) -> float:
        return len(text) / CHARS_A_TOKEN if encoder is None else len(encoder.segment(text))

    lengths = Lengths(
        preamble=size(layout.preamble) if encoder is None else len(encoder.trunk(())),
        passage=fmean(size(layout.trunk_segments([passage])[-1]) for passage in shown or passages),
        question=fmean(
            len(encoder.question(question.text)) if encoder else size(layout.question_segment(question.text))
            for question in questions
        ),
    )
    return sum(1 for _ in corpus.questions()), sum(1 for _ in corpus.passages()), lengths


def _profile(config: Config, options: Options, assumed: list[str]) -> tuple[Profile, float | None]:
    """How trajectories go, and the tokens one engine writes a second where a run or an option says so."""
    write, reasoning = options.tokens_per_second, config.reasoning
    if options.from_run is not None:
        data = DataSet(options.from_run)
        found = inspect(data)
        seconds = found.cost.engine_seconds(data.in_flight)
        if not seconds or not found.cost.completion_tokens:
            raise DataError(f"{data.folder}: trajectories without times or tokens: no model wrote them")
        write = write or found.cost.completion_tokens / seconds
        assumed.append(f"as in the {found.trajectories:,} trajectories of {options.from_run}")
        assumed.append(f"one engine writes {write:,.0f} tokens a second, reading included")
        wider = reasoning.k / data.manifest["config"]["reasoning"]["k"]
        costs = found.costs[: reasoning.max_steps]
        return Profile(
            tuple(cost.n / found.trajectories for cost in costs),
            tuple(wider * cost.passages / cost.n for cost in costs),
            tuple(cost.completion_tokens / cost.n for cost in costs),
        ), write
    steps, most = reasoning.max_steps, config.sampling.max_tokens
    written = min(SENTENCE_TOKENS, most) if reasoning.unit == "sentence" else most
    assumed.append(f"{steps} steps a trajectory, {reasoning.k} new passages a step (often fewer)")
    assumed.append(f"{written} tokens written a step")
    if write is not None:
        assumed.append(f"one engine writes {write:,.0f} tokens a second, reading included")
    return Profile((1.0,) * steps, (reasoning.k,) * steps, (written,) * steps), write


def roofline(
    config: Config, options: Options, tokens: StepTokens, trajectories: int, assumed: list[str]
) -> float:
    """Seconds of one engine: reading is bound by operations, writing by memory traffic or operations."""
    params, each = parameters(config.engine, options.params), config.engine.tensor_parallel_size
    flops, bandwidth, memory = GPUS[options.gpu]
    weights = 2 * params  # bytes in bfloat16
    # Keys and values of a token: a power law through Llama 3, 131 kB at 8e9 parameters and 328 kB at 70e9.
    kept: float = 131_072 * (params / 8e9) ** 0.423 * (tokens.prompt + tokens.written) / tokens.generations
    room = each * memory * config.engine.gpu_memory_utilization - weights
    if room < kept:
        raise ModelError(
            f"{weights / 1e9:,.0f} GB of weights do not fit into {each} x {memory / 1e9:.0f} GB: raise "
            "engine.tensor_parallel_size (and --gpus), or name another --gpu"
        )
    batch = max(1, min(config.build.in_flight, config.engine.max_batch, trajectories, int(room / kept)))
    read = each * flops * COMPUTE_SHARE / (2 * params)  # tokens a second
    moved = (weights + batch * kept) / (each * bandwidth * BANDWIDTH_SHARE)  # seconds a pass
    write = batch / max(moved, batch / read)
    assumed.append(
        f"a dense model of {params / 1e9:,.3g}e9 parameters in bfloat16 on {each} x {options.gpu} an engine, at "
        f"{COMPUTE_SHARE:.0%} of its operations and {BANDWIDTH_SHARE:.0%} of its bandwidth: {read:,.0f} fresh tokens "
        f"a second read, {write:,.0f} written with {batch} generations side by side"
    )
    assumed.append("the prefix cache holds the prompt of the step before; retrieval hides behind the engine")
    return (tokens.prompt - tokens.cached) / read + tokens.written / write


def parameters(engine: EngineConfig, params: float | None = None) -> float:
    """As given, or by the size of a local folder's weights. Raises ModelError where neither is known."""
    folder = None if engine.kind == "openai" else Path(resolve_model(engine.model))
    if params is None and folder is not None and folder.is_dir():
        shape = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        width = 4 if (shape.get("dtype") or shape.get("torch_dtype")) == "float32" else 2  # bytes
        params = sum(file.stat().st_size for file in folder.glob("*.safetensors")) / width
    if not params:
        raise ModelError(
            f"model '{engine.model}' is not on this disk: give its size, such as --params 70e9, "
            "or its speed by --tokens-per-second or --from RUN_DIR"
        )
    return params


def model_size(model: str) -> float:
    """Parameters by a model's name, or its files. Raises ModelError."""
    if match := _BILLIONS.search(model):
        return float(match[1]) * 1e9
    return parameters(EngineConfig(model=model))


def text(made: Estimate) -> str:
    """Tokens by step, hours, and what they assume."""
    lengths = made.lengths
    lines = [
        f"{made.questions:,} questions, {made.trajectories:,} trajectories; {made.passages:,} passages",
        f"tokens: passage {lengths.passage:,.1f}, question {lengths.question:,.1f}, preamble {lengths.preamble:,.1f}",
        f"{'step':>5}{'generations':>14}{'tokens read':>16}{'cached':>16}{'written':>14}",
    ]
    for name, step in [*enumerate(made.steps, 1), ("all", total(made.steps))]:
        lines.append(
            f"{name:>5}" + "".join(f"{v:>{w},.0f}" for v, w in zip(astuple(step), _WIDTHS, strict=True))
        )
    on, spent = f"{made.engines} x {made.gpus_each} GPU", made.hours * made.engines * made.gpus_each
    lines.append(f"time: {made.hours:,.3g} h on {on}, {spent:,.3g} GPU hours")
    return "\n".join([*lines, "assumed:", *(f"- {line}" for line in made.assumptions)])
