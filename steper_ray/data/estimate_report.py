"""`steper estimate`: an estimate of a config's build for a person, every assumption beside its figure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Group, RenderableType
from rich.text import Text

from steper_ray.config import Config
from steper_ray.core.errors import DataError
from steper_ray.data import estimate as room
from steper_ray.data.estimate import Bill, Checks, Course, MeasuredSpeed, Speed, StepTokens
from steper_ray.data.estimate_inputs import (
    CorpusSize,
    corpus_size,
    course_of_run,
    model_size,
    speed_of_run,
)
from steper_ray.data.inspection import DataSet, inspect
from steper_ray.data.inspection_text import duration, figures_table

SENTENCE_TOKENS = 32  # written in a step that is cut as soon as it is complete; a figure of ours


@dataclass(frozen=True, slots=True)
class Options:
    """What the config does not say. `steps` and `written` are means of a trajectory and of a step."""

    gpu: str = "H100"
    gpus: int | None = None
    gpu_price: float | None = None
    params: float | None = None
    tokens_per_second: float | None = None
    from_run: Path | None = None
    steps: float | None = None
    written: float | None = None


@dataclass(frozen=True, slots=True)
class Estimate:
    """`steps` hold the tokens of each step over all trajectories; `most` and `most_bill` are what they cannot exceed:
    S steps that all write `sampling.max_tokens`."""

    corpus: CorpusSize
    trajectories: int
    steps: tuple[StepTokens, ...]
    most: StepTokens
    bill: Bill
    most_bill: Bill
    assumptions: tuple[str, ...]

    @property
    def total(self) -> StepTokens:
        return room.total(self.steps)


def make_estimate(config: Config, options: Options) -> Estimate:
    """Reads the corpus, and the run that it is to go by. Raises DataError and ModelError, naming the fix."""
    if config.build.teacher != "engine":
        raise DataError(
            f"build.teacher is '{config.build.teacher}': no model is asked, so there is no engine to pay"
        )
    if options.gpu not in room.GPUS:
        raise DataError(f"--gpu {options.gpu}: known are {', '.join(room.GPUS)}; or give --tokens-per-second")
    corpus, reasoning, sampling = corpus_size(config), config.reasoning, config.sampling
    trajectories = corpus.questions * config.build.samples
    said = [corpus.how, "passages that are found are as long as the corpus' mean"]
    course, known = _course(config, options, said)
    verify = config.build.verify
    checks = Checks(
        drafts=verify.agreement_drafts if verify.agreement is not None else 0,
        judge=corpus.judge if verify.judge is not None and verify.judge_engine is None else None,
    )
    bound = room.even_course(reasoning.max_steps, reasoning.max_steps, reasoning.k, sampling.max_tokens)
    steps, most = (
        room.step_tokens(trajectories, corpus.lengths, way, reasoning.max_passages, checks)
        for way in (course, bound)
    )
    if checks != Checks():
        said.append("the generations of the verifiers agreement and judge are among those of their step")
    last = most[-1].prompt / most[-1].generations + sampling.max_tokens
    if last > config.engine.max_model_len:
        said.append(
            f"the prompt of step {reasoning.max_steps} and what it writes may come to {last:,.0f} tokens: "
            f"engine.max_model_len is {config.engine.max_model_len:,}"
        )
    total = room.total(steps)
    speed = known or _roofline(config, options, total, trajectories, said)
    each = config.engine.tensor_parallel_size
    engines = config.build.engines if options.gpus is None else options.gpus // each
    if not engines:
        raise DataError(f"--gpus {options.gpus}: one engine takes {each} (engine.tensor_parallel_size)")
    return Estimate(
        corpus,
        trajectories,
        tuple(steps),
        room.total(most),
        Bill(speed.seconds(total) / 3600, engines, each, options.gpu_price),
        Bill(speed.seconds(room.total(most)) / 3600, engines, each, options.gpu_price),
        tuple(said),
    )


def _course(config: Config, options: Options, said: list[str]) -> tuple[Course, MeasuredSpeed | None]:
    """How trajectories will go, and the speed where it is known without a model of the GPU."""
    reasoning, sampling = config.reasoning, config.sampling
    given = options.tokens_per_second
    speed = None if given is None else MeasuredSpeed(given)
    if speed is not None:
        said.append(f"one engine writes {given:,.0f} tokens a second, reading included (--tokens-per-second)")
    if options.from_run is not None:
        data = DataSet(options.from_run)
        found = inspect(data)
        if speed is None:
            speed = speed_of_run(data, found)
            said.append(
                f"one engine writes {speed.write:,.0f} tokens a second, reading included, as in {options.from_run} "
                f"if always {data.in_flight} trajectories were in flight there (at most)"
            )
        said.append(
            f"steps a trajectory, new passages and tokens a step as in {options.from_run}: "
            f"{found.trajectories:,} trajectories of {found.cost.n / found.trajectories:.2f} steps"
        )
        return course_of_run(data, found, config), speed
    steps = options.steps or reasoning.max_steps
    if steps > reasoning.max_steps:
        raise DataError(
            f"--steps {steps:g}: a trajectory has {reasoning.max_steps} at most (reasoning.max_steps)"
        )
    said.append(
        f"{steps:g} steps a trajectory ({'--steps' if options.steps else 'S: none ends before'}), "
        f"{reasoning.k} passages new at each of them (often fewer: one that was found before is not repeated)"
    )
    if options.written is not None:
        written, why = options.written, "--written"
    elif reasoning.unit == "sentence":
        written, why = min(SENTENCE_TOKENS, sampling.max_tokens), "a short step; --written to change it"
    else:
        written, why = sampling.max_tokens, "sampling.max_tokens; --written to change it"
    said.append(f"{written:g} tokens written a step ({why})")
    return room.even_course(steps, reasoning.max_steps, reasoning.k, written), speed


def _roofline(
    config: Config, options: Options, total: StepTokens, trajectories: int, said: list[str]
) -> Speed:
    model = model_size(config.engine, options.params)
    each = config.engine.tensor_parallel_size
    speed = room.roofline(
        model,
        room.GPUS[options.gpu],
        each,
        batch=min(config.build.in_flight, config.engine.max_batch, trajectories),
        context=(total.prompt + total.written) / total.generations,
        memory_share=config.engine.gpu_memory_utilization,
    )
    said.append(
        f"a dense model of {model.params / 1e9:,.3g}e9 parameters in bfloat16, {model.kv_bytes / 1e3:,.0f} kB of keys "
        f"and values a token of context, on {each} x {options.gpu} an engine"
    )
    said.append(
        f"{room.COMPUTE_SHARE:.0%} of the GPUs' operations while reading and {room.BANDWIDTH_SHARE:.0%} of their "
        f"memory's bandwidth while writing: {speed.read:,.0f} fresh tokens a second read, {speed.write:,.0f} written "
        f"with {speed.batch} generations side by side; retrieval is hidden behind them"
    )
    said.append("the prefix cache holds the prompt of the step before; else cached tokens are fresh ones")
    return speed


def text(made: Estimate) -> RenderableType:
    """Tokens by step, hours, price, and what all of it assumes."""
    tokens = figures_table("step", "generations", "tokens read", "fresh", "cached", "written")
    for name, step in [*((str(n), s) for n, s in enumerate(made.steps, 1)), ("all", made.total)]:
        share = step.cached / step.prompt if step.prompt else 0.0
        tokens.add_row(
            name,
            f"{step.generations:,.0f}",
            f"{step.prompt:,.0f}",
            f"{step.fresh:,.0f}",
            f"{share:.1%}",
            f"{step.written:,.0f}",
        )
    lengths, bill = made.corpus.lengths, made.bill
    lines = [
        f"{made.corpus.questions:,} questions, {made.trajectories:,} trajectories; {made.corpus.passages:,} passages",
        f"tokens: passage {lengths.passage:,.1f}, question {lengths.question:,.1f}, instruction and demonstrations "
        f"{lengths.preamble:,.1f}",
    ]
    found = [
        f"time: {_cost(bill)}",
        f"at most: {made.most.written:,.0f} tokens written, {_cost(made.most_bill)}",
    ]
    return Group(
        *map(Text, lines),
        tokens,
        *map(Text, found),
        Text("\nassumed:"),
        *(Text(f"- {line}") for line in made.assumptions),
    )


def _cost(bill: Bill) -> str:
    price = "" if bill.price is None else f", price {bill.price:,.2f}"
    engines = f"{bill.engines} engine{'s' if bill.engines > 1 else ''} of {bill.gpus_each} GPU"
    return f"{duration(bill.hours * 3600)} with {engines}, {bill.gpu_hours:,.3g} GPU hours{price}"
