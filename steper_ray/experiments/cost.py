"""What experiments with the paper's models would take: GPU hours and disk, with what is assumed. Nothing is run.

- Rollouts and evaluations by the roofline of `steper estimate`; trainings by operations: 6 a parameter and token, with
  gradient checkpointing 8.
- Questions are counted where the files are here, else the official sets' sizes are taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from steper_ray.config import Config, CorpusConfig
from steper_ray.core.errors import DataError
from steper_ray.corpora import open_corpus
from steper_ray.data.estimate import (
    COMPUTE_SHARE,
    GPUS,
    SENTENCE_TOKENS,
    Lengths,
    Options,
    Profile,
    model_size,
    roofline,
    step_tokens,
    total,
)
from steper_ray.experiments.plan import Experiment
from steper_ray.experiments.run import Paper, Student

#: Training and development questions of the official sets.
OFFICIAL = {"2wiki": (167_454, 12_576), "hotpotqa": (90_447, 7_405), "musique": (19_938, 2_417)}
_GPU = "H100"
#: Mean tokens of demonstrations, passage and question: those of the three sets in the configs' layout.
_LENGTHS = Lengths(preamble=600, passage=150, question=25)


@dataclass(frozen=True, slots=True)
class Cost:
    """GPU hours, and bytes of the students that are kept."""

    teacher: float = 0.0
    training: float = 0.0
    evaluation: float = 0.0
    disk: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.teacher + other.teacher,
            self.training + other.training,
            self.evaluation + other.evaluation,
            self.disk + other.disk,
        )

    def __str__(self) -> str:
        whole = self.teacher + self.training + self.evaluation
        return (
            f"{whole:,.0f} GPU hours (teacher {self.teacher:,.0f}, trainings {self.training:,.0f}, evaluations "
            f"{self.evaluation:,.0f}), {self.disk / 1e9:,.0f} GB of students"
        )


def cost(paper: Paper, chosen: Sequence[tuple[Experiment, str]]) -> str:
    """A line a run, their sum, and what they assume. Raises ModelError for a model of unknown size."""
    students, jobs = paper.students(chosen), paper.jobs(chosen)
    models = {one.name: paper.training(one).config.student for one in students}
    lines, whole = list[str](), Cost()
    for setting in dict.fromkeys([*(one.setting for one in students), *jobs]):
        config = paper.config(setting)
        own = [student for student in students if student.setting == setting]
        found, learned = Cost(), _count(config.corpus, 0) if own else 0
        if own and config.build.teacher == "engine":
            found += Cost(teacher=_asking(config, config.engine.model, learned))
        for student in own:
            found += _training(paper, student, learned)
        asked = _count(config.evaluate.corpus or config.corpus, 1)
        for job in jobs.get(setting, ()):
            model = models.get(job.model.rpartition("/")[2], job.model)
            reasoning = config.reasoning.model_copy(update=dict(job.reasoning))
            found += Cost(
                evaluation=_asking(config.model_copy(update={"reasoning": reasoning}), model, asked)
            )
        lines.append(f"{setting.folder}: {found}")
        whole += found
    return "\n".join(
        [
            *lines,
            f"together: {whole}",
            f"assumed: {_GPU}s at {COMPUTE_SHARE:.0%} of their operations; every trajectory kept, with "
            f"{_LENGTHS.passage:.0f} tokens a passage and {SENTENCE_TOKENS} written a step, all steps taken; "
            "prefix cache; sizes of models by their names; on top two checkpoints of a running training (12 bytes a "
            "parameter)",
        ]
    )


def _count(corpus: CorpusConfig, part: int) -> int:
    """Questions of a corpus; `part` is 0 for training, 1 for test questions, where they are not here."""
    try:
        return sum(1 for _ in open_corpus(corpus).questions())
    except DataError:
        if corpus.kind not in OFFICIAL:
            raise
        return min(OFFICIAL[corpus.kind][part], corpus.limit or OFFICIAL[corpus.kind][part])


def _asking(config: Config, model: str, questions: int) -> float:
    """GPU hours of a model that answers questions."""
    reasoning = config.reasoning
    steps = reasoning.max_steps
    profile = Profile((1.0,) * steps, (reasoning.k,) * steps, (SENTENCE_TOKENS,) * steps)
    tokens = total(step_tokens(questions, _LENGTHS, profile, reasoning.max_passages))
    seconds = roofline(config, Options(_GPU, params=model_size(model)), tokens, questions, [])
    return seconds / 3600 * config.engine.tensor_parallel_size


def _training(paper: Paper, student: Student, trajectories: int) -> Cost:
    config, train = paper.config(student.setting), paper.training(student).config
    params, steps = model_size(train.student), config.reasoning.max_steps
    searches = steps if train.form == "chain" else 1
    passages = min(config.reasoning.k * searches, config.reasoning.max_passages)
    learned = [steps] if train.method == "vanilla_kd" else range(1, steps + 1)
    branches = sum(_LENGTHS.question + SENTENCE_TOKENS * step for step in learned)
    tokens = train.epochs * trajectories * (_LENGTHS.passage * passages + branches)
    operations = (8 if train.gradient_checkpointing else 6) * params * tokens
    seconds = operations / (GPUS[_GPU][0] * COMPUTE_SHARE)
    return Cost(training=seconds / 3600, disk=2 * params)
