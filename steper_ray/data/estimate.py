"""What a build will cost, before it runs: generations, tokens read and written at each step, time of engines. Pure.

The arithmetic of tokens follows the prompt layout: step s reads the preamble, the passages of steps 1..s, the question
and the chain so far, and repeats the prompt of step s-1 up to its last passage, which the engine's prefix cache holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import accumulate

from steper_ray.core.errors import SteperError


@dataclass(frozen=True, slots=True)
class Lengths:
    """Mean tokens of the segments of a prompt; the preamble with the begin of sequence."""

    preamble: float
    passage: float
    question: float


@dataclass(frozen=True, slots=True)
class Course:
    """How trajectories go, step by step: the share of them that takes a step, the passages that are new at it, the
    tokens that it writes."""

    reach: tuple[float, ...]
    found: tuple[float, ...]
    written: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class StepTokens:
    """All generations at one step. `cached` of the `prompt` tokens are in the engine's prefix cache."""

    generations: float = 0.0
    prompt: float = 0.0
    cached: float = 0.0
    written: float = 0.0

    @property
    def fresh(self) -> float:
        return self.prompt - self.cached

    def __add__(self, other: StepTokens) -> StepTokens:
        return StepTokens(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(StepTokens)))


def even_course(steps: float, max_steps: int, found: float, written: float) -> Course:
    """Each trajectory takes `steps` steps; where that is no whole number, some take one more."""
    reach = tuple(min(1.0, max(0.0, steps - number)) for number in range(max_steps))
    return Course(reach, (found,) * max_steps, (written,) * max_steps)


@dataclass(frozen=True, slots=True)
class Checks:
    """Generations beside the steps: `drafts` of each step for the verifier `agreement`, and a judge that says one word
    on each step, whose own instruction has so many tokens."""

    drafts: int = 0
    judge: float | None = None


def step_tokens(
    trajectories: int, lengths: Lengths, course: Course, max_passages: int, checks: Checks = Checks()
) -> list[StepTokens]:
    """The tokens of each step, over all trajectories."""
    seen = [min(float(max_passages), passages) for passages in accumulate(course.found)]
    steps = []
    for number, (reach, written) in enumerate(zip(course.reach, course.written, strict=True)):
        n = trajectories * reach
        passages, before = (
            lengths.passage * seen[number],
            lengths.passage * seen[number - 1] if number else 0.0,
        )
        own = passages + lengths.question + sum(course.written[:number])
        # The instruction and demonstrations are in every prompt before, the passages in that of the step before.
        prompt, cached = lengths.preamble + own, lengths.preamble + before
        one = StepTokens(n, n * prompt, n * cached, n * written)
        step = one
        if checks.drafts:  # the first reads what the step read, those after it find all of that in the cache
            more = n * (checks.drafts - 1)
            step += one + StepTokens(more, more * prompt, more * prompt, more * written)
        if checks.judge is not None:
            step += StepTokens(n, n * (checks.judge + own), n * before, n)
        steps.append(step)
    return steps


def total(steps: Sequence[StepTokens]) -> StepTokens:
    return sum(steps, start=StepTokens())


@dataclass(frozen=True, slots=True)
class Gpu:
    """What the maker states: dense bfloat16 operations a second, bytes a second from memory, bytes of memory."""

    flops: float
    bandwidth: float
    memory: float


GPUS = {
    "A100": Gpu(312e12, 2.039e12, 80e9),  # SXM, 80 GB
    "H100": Gpu(989e12, 3.35e12, 80e9),  # SXM
    "H200": Gpu(989e12, 4.8e12, 141e9),  # SXM
}
#: Shares of those peaks that engines reach; figures of ours, in the middle of what is published for dense models.
COMPUTE_SHARE = 0.4
BANDWIDTH_SHARE = 0.6
_WEIGHT_BYTES = 2  # bfloat16


@dataclass(frozen=True, slots=True)
class Model:
    """A dense model: parameters, and bytes of keys and values that one token of context takes."""

    params: float
    kv_bytes: float


def typical_kv_bytes(params: float) -> float:
    """Keys and values of a token in a model with grouped queries whose config is not at hand.

    A power law through Llama 3: 131 kB at 8e9 parameters, 328 kB at 70e9.
    """
    return float(131_072 * (params / 8e9) ** 0.423)


@dataclass(frozen=True, slots=True)
class Speed:
    """Tokens a second of one engine: reading fresh prompts, and writing with `batch` generations side by side."""

    read: float
    write: float
    batch: int

    def seconds(self, tokens: StepTokens) -> float:
        """Of one engine; reading and writing share its time."""
        return tokens.fresh / self.read + tokens.written / self.write


@dataclass(frozen=True, slots=True)
class MeasuredSpeed:
    """Tokens that one engine writes in a second of all its time, reading included."""

    write: float

    def seconds(self, tokens: StepTokens) -> float:
        return tokens.written / self.write


def roofline(
    model: Model, gpu: Gpu, gpus: int, *, batch: int, context: float, memory_share: float = 0.9
) -> Speed:
    """The speed of one engine that spans `gpus` of this kind.

    Reading is bound by operations, 2 a parameter and token. A forward pass that writes one token in each of `batch`
    sequences reads all weights and the keys and values of `context` tokens of each, or is bound by operations too. The
    batch is as large as the memory left by the weights holds. Raises SteperError where they leave none for one.
    """
    weights, kept = model.params * _WEIGHT_BYTES, model.kv_bytes * context
    room = gpus * gpu.memory * memory_share - weights
    if room < kept:
        raise SteperError(
            f"{weights / 1e9:,.0f} GB of weights do not fit into {gpus} x {gpu.memory / 1e9:.0f} GB: set "
            "engine.tensor_parallel_size (and --gpus) higher, or name another --gpu"
        )
    fitting = max(1, min(batch, int(room / kept)))
    operations = gpus * gpu.flops * COMPUTE_SHARE / (2 * model.params)  # tokens a second
    moved = (weights + fitting * kept) / (gpus * gpu.bandwidth * BANDWIDTH_SHARE)  # seconds a pass
    return Speed(operations, fitting / max(moved, fitting / operations), fitting)


@dataclass(frozen=True, slots=True)
class Bill:
    """Time and price of `engines` engines with `gpus_each`, all of them busy to the end."""

    engine_hours: float
    engines: int
    gpus_each: int
    gpu_price: float | None = None

    @property
    def hours(self) -> float:
        return self.engine_hours / self.engines

    @property
    def gpu_hours(self) -> float:
        return self.engine_hours * self.gpus_each

    @property
    def price(self) -> float | None:
        return None if self.gpu_price is None else self.gpu_hours * self.gpu_price
