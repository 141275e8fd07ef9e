"""Which trajectories are kept, and the step-wise examples they give."""

import dataclasses

import pytest
from distilled import trajectory

from steper_ray.data.examples import make_examples
from steper_ray.data.filtering import choose, drop_reason
from steper_ray.schema import StopReason


@pytest.mark.parametrize(
    ("answer", "match", "reason"),
    [
        ("the Cem!", "exact", None),
        ("old Cem", "exact", "wrong_answer"),
        ("old Cem", "contains", None),
        ("Cemetery", "contains", "wrong_answer"),
        ("", "contains", "wrong_answer"),
    ],
)
def test_an_answer_is_judged_by_the_match_setting(answer, match, reason):
    assert drop_reason(trajectory(answer=answer), match) == reason


def test_an_alias_is_a_right_answer():
    assert drop_reason(trajectory(answer="Djem", answers=("Cem", "Djem")), "exact") is None


@pytest.mark.parametrize("reason", [r for r in StopReason if r is not StopReason.ANSWERED])
def test_what_states_no_answer_is_dropped_under_its_stop_reason_even_if_it_names_it(reason):
    assert drop_reason(trajectory(answer="Cem", reason=reason), "contains") == reason.value


@pytest.mark.parametrize("code", ["no_decomposition", "too_many_hops"])
def test_the_annotation_teachers_reasons_are_told_apart(code):
    rejected = dataclasses.replace(trajectory(reason="rejected"), error=f"{code}: because")
    assert drop_reason(rejected, "exact") == code


@pytest.mark.parametrize(
    ("n_steps", "abilities"),
    [
        (1, ["aggregation"]),
        (2, ["initialization", "aggregation"]),
        (4, ["initialization", "expansion", "expansion", "aggregation"]),
    ],
)
def test_each_step_teaches_one_ability(n_steps, abilities):
    pieces = [f"Piece {n}." for n in range(n_steps)]
    examples = make_examples(trajectory(pieces=pieces, found=[(n,) for n in range(n_steps)]))
    assert [e.ability.value for e in examples] == abilities
    assert [e.id for e in examples] == [f"q1#{s}" for s in range(1, n_steps + 1)]
    assert all(e.n_steps == n_steps for e in examples)


def test_passages_and_chain_are_those_of_all_steps_up_to_the_examples():
    examples = make_examples(
        trajectory(pieces=["A.", "B.", "So the answer is: Cem."], found=[(0, 1), (), (3,)])
    )
    assert [[[p.id for p in step] for step in e.passages] for e in examples] == [
        [["p0", "p1"]],
        [["p0", "p1"], []],
        [["p0", "p1"], [], ["p3"]],
    ]
    assert [e.chain for e in examples] == [("A.",), ("A.", "B."), ("A.", "B.", "So the answer is: Cem.")]


def sampled(*answers, chains=()):
    """One trajectory a given answer, of one question whose right answer is Cem; None states no answer."""
    made = []
    for number, answer in enumerate(answers):
        t = trajectory(answer=answer or "", reason="answered" if answer else "step_limit")
        if chains:
            t = dataclasses.replace(
                t, steps=(dataclasses.replace(t.steps[0], reasoning=chains[number]), t.steps[1])
            )
        made.append(dataclasses.replace(t, sample=number))
    return made


@pytest.mark.parametrize(
    ("answers", "keep", "expected"),
    [
        (["Bo", "Cem", "Cem"], "first", ["wrong_answer", None, "spare"]),
        (["Bo", "Cem", "Cem"], "majority", ["wrong_answer", None, "spare"]),
        (["Bo", "Bo", "Cem"], "majority", ["wrong_answer", "wrong_answer", "minority"]),
        (["Bo", "Bo", "Cem"], "first", ["wrong_answer", "wrong_answer", None]),
        (["the cem", "Bo"], "majority", [None, "wrong_answer"]),  # as often: the earlier one
        (["Bo", "Cem"], "majority", ["wrong_answer", "minority"]),
        ([None, None, "Cem"], "majority", ["step_limit", "step_limit", None]),  # only stated answers vote
        (["Bo", None], "majority", ["wrong_answer", "step_limit"]),
        (["A", "++", "Cem", "Cem"], "majority", ["wrong_answer", "wrong_answer", None, "spare"]),
        (["A", "A", "Cem"], "majority", ["wrong_answer", "wrong_answer", "minority"]),
        (["++", "::::", "Cem"], "majority", ["wrong_answer", "wrong_answer", "minority"]),  # the earliest
    ],
)
def test_which_of_a_questions_samples_are_kept(answers, keep, expected):
    samples = sampled(*answers)
    assert choose(samples, [drop_reason(t, "exact") for t in samples], keep, "exact") == expected


def test_all_right_samples_are_kept_once_each():
    samples = sampled("Cem", "Cem", "Bo", "Cem", chains=["A.", "A.", "B.", "C."])
    reasons = [drop_reason(t, "exact") for t in samples]
    assert choose(samples, reasons, "all", "exact") == [None, "spare", "wrong_answer", None]


def test_a_sample_that_a_verifier_refused_is_not_chosen():
    assert choose(sampled("Cem", "Cem"), ["unverified_support", None], "first", "exact") == [
        "unverified_support",
        None,
    ]


def test_examples_of_further_samples_have_ids_of_their_own():
    second = dataclasses.replace(trajectory(), sample=1)
    assert [(e.id, e.question_id) for e in make_examples(second)] == [("q1~1#1", "q1~1"), ("q1~1#2", "q1~1")]
