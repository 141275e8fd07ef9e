"""An LLM judge over finished evaluations: ratings of the three abilities, question by question.

- Each pair of chains is asked in both orders; a rating is the mean of both, and how often they agree is reported.
- Replies are kept in run_dir/eval/judged, one file a judge: a rerun asks what is missing, and pays for nothing twice.
- A call reads and writes about `evaluate.judge.max_tokens` tokens at most; what is left then is owed.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from steper_ray.config import Config, JudgeConfig, SamplingConfig
from steper_ray.core.chat import Conversation
from steper_ray.core.errors import DataError, EngineDeadError, GenerationError, OwedError, SteperError
from steper_ray.core.files import append_text, storing, write_text
from steper_ray.core.fingerprints import digest
from steper_ray.core.jsonl import read_lines
from steper_ray.core.locks import locked
from steper_ray.core.progress import Bar
from steper_ray.core.splits import draw
from steper_ray.evaluation.report import format_comparisons
from steper_ray.evaluation.rubric import ABILITIES, Pair, Reply, Verdict, parse, planted
from steper_ray.evaluation.scores import judge as score_of
from steper_ray.evaluation.side_by_side import shared_units
from steper_ray.evaluation.statistics import Comparison, Interval, clusters_of, compare, holm, interval
from steper_ray.evaluation.store import EvalJob, job_files, read_trajectories
from steper_ray.generation import open_generator
from steper_ray.generation.base import Generator, generate
from steper_ray.models import absolute_engine
from steper_ray.rollouts.spec import engine_identity
from steper_ray.schema import Trajectory

_MAX_REPLY = 128  # tokens: the JSON has about 60
_SHOWN = 3  # reasons that a message spells out


@dataclass(frozen=True, slots=True)
class Judged:
    """Two evaluations in one step unit: the mean rating of each ability from 0 to 1, and their differences."""

    unit: str
    ratings: Mapping[str, tuple[Interval, Interval]]
    comparisons: Sequence[Comparison]
    agreement: Mapping[str, float]
    """The share of questions in which both orders prefer the same chain, or neither, by ability."""
    unreadable: int
    """Questions of which a reply was not the JSON that was asked for; they are rated nowhere."""

    def summary(self, one: str, other: str) -> str:
        """For a person: ratings in points of 100."""
        lines = [f"{self.unit}: ratings from 0 to 100, [95 % interval]"]
        for ability, (ours, theirs) in self.ratings.items():
            lines.append(
                f"  {ability:15} {one} {_points(ours)}   {other} {_points(theirs)}   "
                f"both orders agree in {100 * self.agreement[ability]:.0f} %"
            )
        if self.unreadable:
            lines.append(f"  {self.unreadable} questions without a readable reply are left out")
        return "\n".join([*lines, format_comparisons(self.comparisons)])


@dataclass(frozen=True, slots=True)
class Found:
    """How well a judge sees planted faults: of right chains, each made wrong in one ability, the share it rated lower
    there than the right one; chance is a half, and an equal rating counts as one."""

    share: Mapping[str, Interval]
    unreadable: int

    def summary(self) -> str:
        """One line an ability."""
        lines = ["planted faults that the judge rates lower than the right chain, in % (chance: 50)"]
        lines += [
            f"  {ability:15} {_points(share)} of {share.n} chains" for ability, share in self.share.items()
        ]
        if self.unreadable:
            lines.append(f"  {self.unreadable} pairs without a readable reply are left out")
        return "\n".join(lines)


def judge_evaluations(config: Config, one: str, other: str) -> list[Judged]:
    """Has two evaluations judged in every step unit that both have; the names of seeds stand with commas between.

    Raises DataError where one is missing, has other seeds, or no judge is set; OwedError with what is owed.
    """
    ours, theirs = one.split(","), other.split(",")
    if len(ours) != len(theirs):
        raise DataError(f"{one} and {other}: name as many seeds of one as of the other")
    wanted = _judge_of(config)
    units = shared_units(config.run_dir, ours, theirs)
    pairs: dict[tuple[str, int], dict[str, Pair]] = {}
    for unit in units:
        for seed, (mine, yours) in enumerate(zip(ours, theirs, strict=True)):
            pairs[unit, seed] = _pairs(config.run_dir, (mine, yours), unit, wanted.questions)
    verdicts, owed = _ask(config, [pair for found in pairs.values() for pair in found.values()])
    if owed:
        raise _owed(owed)
    found = []
    for unit in units:
        seeds = [pairs[unit, seed] for seed in range(len(ours))]
        found.append(_judged(unit, one, other, seeds, verdicts))
    return found


def find_planted(config: Config, name: str) -> list[tuple[str, Found]]:
    """How well the judge sees faults that are planted in an evaluation's right chains, in each step unit.

    Raises DataError where there are none of three steps, or no judge is set; OwedError with what is owed.
    """
    wanted = _judge_of(config)
    found = []
    for unit in shared_units(config.run_dir, [name], [name]):
        right = [t for t in _chosen(config.run_dir, name, unit, None) if score_of(t).em and len(t.chain) > 2]
        right = right[: wanted.questions]
        if len(right) < 2:
            raise DataError(f"{name}, {unit}: fewer than two right chains of three steps to plant faults in")
        pairs = {
            (ability, trajectory.question.id): Pair(trajectory.question, trajectory.chain, wrong)
            for trajectory, donor in zip(right, [*right[1:], right[0]], strict=True)
            for ability, wrong in planted(trajectory.chain, donor.chain).items()
        }
        verdicts, owed = _ask(config, list(pairs.values()))
        if owed:
            raise _owed(owed)
        clusters = clusters_of({t.question.id: t.question.gold_ids for t in right})
        lower: dict[str, dict[str, float]] = {ability: {} for ability in ABILITIES}
        for (ability, id), pair in pairs.items():
            if (verdict := verdicts[pair.prompts()]) is not None:
                good, bad = verdict.of(ability)
                lower[ability][id] = 1.0 if bad < good else 0.5 if bad == good else 0.0
        shares = {ability: interval([rated], clusters) for ability, rated in lower.items() if rated}
        found.append((unit, Found(shares, len(pairs) - sum(map(len, lower.values())))))
    return found


def _points(found: Interval) -> str:
    return f"{100 * found.mean:5.1f} [{100 * found.low:.1f}, {100 * found.high:.1f}]"


def _judge_of(config: Config) -> JudgeConfig:
    if config.evaluate.judge is None:
        raise DataError("no judge: set evaluate.judge.engine to a model, such as one behind an endpoint")
    return config.evaluate.judge


def _chosen(run_dir: Path, name: str, unit: str, questions: int | None) -> list[Trajectory]:
    """The trajectories of an evaluation in the order of their questions' draws, so that more of them add to fewer."""
    found = list(read_trajectories(job_files(run_dir, EvalJob(name, "", unit))))
    return sorted(found, key=lambda trajectory: draw(trajectory.question.id))[:questions]


def _pairs(run_dir: Path, names: tuple[str, str], unit: str, questions: int) -> dict[str, Pair]:
    ours, theirs = ({t.question.id: t for t in _chosen(run_dir, name, unit, None)} for name in names)
    both = [id for id in ours if id in theirs][:questions]
    if not both:
        raise DataError(f"{names[0]} and {names[1]}: no question that both have answered in unit {unit}")
    return {id: Pair(ours[id].question, ours[id].chain, theirs[id].chain) for id in both}


def _judged(
    unit: str,
    one: str,
    other: str,
    seeds: Sequence[Mapping[str, Pair]],
    verdicts: Mapping[tuple[str, str], Verdict | None],
) -> Judged:
    rated = [{id: verdicts[pair.prompts()] for id, pair in pairs.items()} for pairs in seeds]
    # A question without a rating would count as rated 0 in its seed.
    ids = [id for id in rated[0] if all(said.get(id) is not None for said in rated)]
    readable = [{id: said[id] for id in ids} for said in rated]
    if not ids:
        raise DataError(
            f"{one} and {other}, {unit}: no reply of the judge was the JSON that it was asked for"
        )
    clusters = clusters_of({id: pair.question.gold_ids for pairs in seeds for id, pair in pairs.items()})
    ratings, comparisons, agreement = {}, [], {}
    for ability in ABILITIES:
        ours, theirs = (
            [{id: verdict.of(ability)[side] for id, verdict in said.items() if verdict} for said in readable]
            for side in (0, 1)
        )
        ratings[ability] = interval(ours, clusters), interval(theirs, clusters)
        comparisons.append(compare(one, other, unit, ability, ours, theirs, clusters))
        same = [verdict.agrees(ability) for said in readable for verdict in said.values() if verdict]
        agreement[ability] = sum(same) / len(same)
    return Judged(unit, ratings, holm(comparisons), agreement, len(rated[0]) - len(ids))


def _ask(config: Config, pairs: Iterable[Pair]) -> tuple[dict[tuple[str, str], Verdict | None], Counter[str]]:
    """The verdict of each pair by its prompts, None where a reply was unreadable; and why others are owed."""
    wanted = _judge_of(config)
    engine = absolute_engine(wanted.engine)
    kept = Replies(config.run_dir / "eval" / "judged" / f"{digest(engine_identity(engine))[:16]}.jsonl")
    prompts = list(dict.fromkeys(pair.prompts() for pair in pairs))
    with locked(kept.file.parent, "judge"):
        kept.open()
        missing = [prompt for both in prompts for prompt in both if prompt not in kept]
        why = Counter[str]()
        if missing:
            why = asyncio.run(_ask_all(open_generator(engine), wanted, missing, kept))
    verdicts: dict[tuple[str, str], Verdict | None] = {}
    for both in prompts:
        if all(prompt in kept for prompt in both):
            straight, swapped = (kept[prompt] for prompt in both)
            verdicts[both] = None if straight is None or swapped is None else Verdict(straight, swapped)
    return verdicts, why


class Replies:
    """A judge's replies by their prompts, on disk as they come; of a prompt its digest alone is kept."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._known: dict[str, Reply | None] = {}

    def open(self) -> None:
        """Reads what is there; a line that was cut off is dropped."""
        lines = []
        for line in read_lines(self.file):
            try:
                record = json.loads(line)
                reply = record["reply"]
                known = None if reply is None else Reply.model_validate_json(json.dumps(reply))
                self._known[record["prompt"]] = known
                lines.append(line)
            except (ValueError, KeyError, TypeError):
                continue
        with storing(self.file.parent):
            self.file.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.file, "".join(f"{line}\n" for line in lines))

    def __contains__(self, prompt: str) -> bool:
        return digest(prompt) in self._known

    def __getitem__(self, prompt: str) -> Reply | None:
        return self._known[digest(prompt)]

    def add(self, prompt: str, reply: Reply | None) -> None:
        """Raises StorageError."""
        said = None if reply is None else reply.model_dump()
        with storing(self.file.parent):
            append_text(self.file, json.dumps({"prompt": digest(prompt), "reply": said}) + "\n")
        self._known[digest(prompt)] = reply


async def _ask_all(
    generator: Generator, wanted: JudgeConfig, prompts: Sequence[str], kept: Replies
) -> Counter[str]:
    """Asks the prompts and keeps the replies; returns why others are owed. Raises EngineDeadError or StorageError."""
    slots, owed = asyncio.Semaphore(wanted.in_flight), Counter[str]()
    spent = done = 0
    bar = Bar("judge", "replies", len(prompts))
    sampling = SamplingConfig(max_tokens=_MAX_REPLY)

    async def ask(prompt: str) -> None:
        nonlocal spent, done
        async with slots:
            if spent >= wanted.max_tokens:
                owed[f"evaluate.judge.max_tokens ({wanted.max_tokens}) is spent: raise it"] += 1
                return
            asked = prompt if generator.tokenizer else Conversation("", prompt, "", prompt)
            try:
                said = await generate(generator, asked, sampling)
            except EngineDeadError:
                raise
            except GenerationError as error:
                owed[str(error)] += 1
                return
            spent += said.usage.prompt_tokens + said.usage.completion_tokens
            kept.add(prompt, parse(said.text))
            done += 1
            bar.show(done, f"{spent:,} tokens")

    try:
        await generator.check()
        async with asyncio.TaskGroup() as group:
            for prompt in prompts:
                group.create_task(ask(prompt))
    except* SteperError as errors:
        raise errors.exceptions[0] from None
    finally:
        bar.close()
        await generator.close()
    return owed


def _owed(why: Counter[str]) -> OwedError:
    reasons = "; ".join(f"{reason} ({count})" for reason, count in why.most_common(_SHOWN))
    return OwedError(
        f"judge: {sum(why.values())} replies are owed: {reasons}. The same command asks for them alone"
    )
