"""Types survive the trip through Arrow."""

import pyarrow as pa
import pytest

from steper_ray import schema
from steper_ray.schema import (
    Ability,
    Hit,
    Passage,
    Question,
    Step,
    StepExample,
    StopReason,
    SubQuestion,
    TopLogprobs,
    Trajectory,
    Usage,
)

PASSAGE = Passage("p1", "Alba", "Alba was shot by Bo.")
QUESTION = Question("q1", "Who?", ("Bo", "B."), ("p1",), 2, (SubQuestion("Who?", "Bo", None),), "miniature")
TOP = TopLogprobs("v", (7, 8), (7, 3, 9, 8), (-0.5, -1.25, -0.75, -1.0))
STEP = Step(1, "Who?", (Hit(PASSAGE, 2.5),), "It is Bo.", -0.25, Usage(10, 4, 2), 0.1, 0.2, top_logprobs=TOP)
TRAJECTORY = Trajectory(QUESTION, "ircot", (STEP,), "Bo", StopReason.ANSWERED, None, "teacher")
EXAMPLE = StepExample("q1#1", "q1", 1, 3, Ability.EXPANSION, "Who?", ((PASSAGE,), ()), ("a.", "b."))


@pytest.mark.parametrize(
    ("value", "arrow", "read"),
    [
        (PASSAGE, schema.PASSAGE_SCHEMA, schema.passage_from_row),
        (QUESTION, schema.QUESTION_SCHEMA, schema.question_from_row),
        (TRAJECTORY, schema.TRAJECTORY_SCHEMA, schema.trajectory_from_row),
        (EXAMPLE, schema.EXAMPLE_SCHEMA, schema.example_from_row),
    ],
)
def test_every_type_is_read_back_equal_from_its_arrow_table(value, arrow, read):
    table = pa.Table.from_pylist([schema.to_row(value)], schema=arrow)
    assert read(table.to_pylist()[0]) == value


def test_arrow_schemas_carry_their_version():
    assert schema.EXAMPLE_SCHEMA.metadata == {b"steper_schema_version": b"5"}


def test_a_trajectory_lists_its_passages_and_chain_in_prompt_order():
    other = Step(2, "x", (Hit(Passage("p2", "Bo", "."), 1.0),), "So.")
    trajectory = Trajectory(QUESTION, "ircot", (STEP, other), "Bo", StopReason.ANSWERED)
    assert [p.id for p in trajectory.passages] == ["p1", "p2"]
    assert trajectory.chain == ("It is Bo.", "So.")


def test_a_row_from_before_there_were_log_probabilities_is_read():
    row = schema.to_row(TRAJECTORY)
    del row["steps"][0]["top_logprobs"]
    assert schema.trajectory_from_row(row).steps[0].top_logprobs is None
