"""What an answer is: values worked by hand from the official evaluation rules."""

import re
import string

import pytest

from steper_ray.core.answers import (
    accuracy,
    comparable,
    contains,
    exact_match,
    extract_answer,
    f1,
    in_brackets,
    is_right,
    normalize,
    score,
)


@pytest.mark.parametrize(
    ("chain", "answer"),
    [
        ("So the answer is: Cem.", "Cem"),
        ("Bo was born in Cem. So the answer is: Cem.", "Cem"),
        ("so the answer is Cem", "Cem"),
        ("Intermediate answer: Cem\nSo the final answer is: Cem", "Cem"),
        ("So the answer is: St. Louis.", "St. Louis"),
        ("So the answer is: Cem.\nQuestion: and then?", "Cem"),
        ("So the answer is: yes.", "yes"),
        ("So the answer is: 3.5.", "3.5"),
        ("Thought: Bo was born in Cem.\nAction: Finish[Cem]", "Cem"),
        ("Action: Finish[Cem]", "Cem"),
        ("thought 1: Bo.\naction 1: finish [Cem]. Done", "Cem"),
        ("Thought: So the answer is: Bo.\nAction: Finish[Cem]", "Cem"),  # ReAct answers by its action alone
        ("Thought: It is a song.\nAction: Finish[Cem [song] (live)]", "Cem [song] (live)"),
        ("Thought: Bo was born in Cem.\nAction: Finish[Cem", "Cem"),
        ("Action: Search[Cem]\nThought: Yes.\nAction: Finish[yes]", "yes"),
    ],
)
def test_the_answer_is_what_stands_after_the_marker_on_its_line(chain, answer):
    assert extract_answer(chain) == answer


@pytest.mark.parametrize(
    "chain",
    [
        "",
        "Bo was born in Cem.",
        "So the answer is:",
        "So the answer is: .",
        "Also the answer is: x",
        "Action: Search[Cem]",
        "Action: Finish[]",
        "Action: Finish the search for Cem",
        "Thought: So the answer is: Cem.",
        "Thought: So the answer is: Cem.\nAction: Search[Cem]",
        "Thought: I could write Action: Finish[Cem] now.",
        "Bo was born in Cem. Action: Finish[Cem]",
        "Follow up: Where is Finish[Cem]?",
    ],
)
def test_a_chain_without_a_stated_answer_has_none(chain):
    assert extract_answer(chain) is None


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("[a] b]", ("a", True)),
        ("[ a [b] [c [d]] ] e", ("a [b] [c [d]]", True)),
        ("[]", ("", True)),
        ("[a [b]", ("a [b]", False)),
        ("[", ("", False)),
    ],
)
def test_a_bracket_is_read_to_the_one_that_closes_it(text, read):
    assert in_brackets(text) == read


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The Cat, a dog & an owl!", "cat dog owl"),
        ("U.S.A.", "usa"),
        ("  two\t blanks ", "two blanks"),
        ("Theatre", "theatre"),
        ("well-known", "wellknown"),
        ("the", ""),
        ("Émile Zola", "émile zola"),
    ],
)
def test_normalisation_follows_squad(text, normal):
    assert normalize(text) == normal


@pytest.mark.parametrize(
    "text",
    [
        *(
            "the",
            "The the a an",
            "a-the",
            "a - the",
            "x  -  y",
            "an.a",
            "theatre",
            "then a",
            "  A\t the\nend ",
            "",
            " ",
            "\x7f",
            "!",
        ),
        *(
            "x\x00the\x01y",
            "\x1cthe\x1fend",
            "the\xa0a\u2003b",
            "\u201cthe\u201d x",
            "the\u2014a",
            "caf\u00e9 the a",
        ),
        *("a\u0301 the", "the\u4e2d", "\u0130 the", "\ud83d.\ude00 the a", "\U0001f600the"),
    ],
)
def test_the_normal_form_is_that_of_the_official_script_for_any_text(text):
    # normalize_answer of SQuAD v1.1, in its order
    marked = "".join(c for c in text.lower() if c not in set(string.punctuation))
    assert normalize(text) == " ".join(re.sub(r"\b(a|an|the)\b", " ", marked).split())


def test_exact_match_ignores_case_punctuation_and_articles_only():
    assert exact_match("The Beatles.", "beatles") == 1
    assert exact_match("Beatles band", "Beatles") == 0


def test_f1_counts_common_words_once_for_each_time_both_have_them():
    # prediction: barack hussein obama (3 words), gold: barack obama (2); 2 in common: P = 2/3, R = 1
    assert f1("Barack Hussein Obama", "Barack Obama") == pytest.approx(2 * (2 / 3) * 1 / (2 / 3 + 1))
    # prediction: new york new (3), gold: new york (2); 2 in common
    assert f1("new york new", "New York") == pytest.approx(0.8)
    assert f1("Paris", "London") == 0


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        ("A", "a", True),
        ("A", "A.", True),
        ("A", '("A")', True),
        ("A", "the", False),
        ("A", "::::", False),
        ("A", "A+", False),
        ("A", "", False),
        ("A+", "A-", False),
        ("A", "B", False),
        ("The The", "the  the", True),
        ("The The", "The", False),
        ("++", "++", True),
        ("++", "::::", False),
        ("++", "", False),
        ("...", "?", False),
        ("...", "...", True),
        ("C++", "c", True),  # SQuAD leaves a word
        ("the C", "c", True),
        ("東京", "東京", True),
        ("東京", "京都", False),
        ("कि", "की", False),
    ],
)
def test_texts_that_normalisation_leaves_nothing_of_are_equal_only_as_they_are_written(left, right, same):
    assert (comparable(left) == comparable(right)) is same
    for measure in (exact_match, f1, contains):
        assert measure(left, right) == measure(right, left) == same
    assert is_right(left, (right,), "exact") is is_right(left, (right,), "contains") is same
    assert score(left, ("Zog", right), "2wiki") == score(left, ("Zog", right), "musique")
    assert score(left, ("Zog", right), "musique").em == same


@pytest.mark.parametrize("text", ["Ángel", "東京", "Łódź", "Пушкин", "القاهرة", "कि", "서울", "กรุงเทพ", "אל"])
def test_letters_of_any_script_survive_normalisation(text):
    assert normalize(text) == text.lower()


def test_f1_of_texts_without_words():
    # MuSiQue's compute_f1: 0 where one side alone has no tokens
    assert f1("", "Paris") == 0
    assert f1("Paris", "the") == 0
    assert f1("", "") == 1


@pytest.mark.parametrize(
    ("prediction", "gold", "plain", "with_rule"),
    [
        ("yes it is", "yes", 0.5, 0.0),  # gold is closed and they differ
        ("no", "no way", 2 / 3, 0.0),  # prediction is closed and they differ
        ("noanswer", "noanswer here", 2 / 3, 0.0),
        ("Yes.", "yes", 1.0, 1.0),  # equal after normalisation
        ("yes it is", "yes it was", 2 / 3, 2 / 3),  # neither side is closed
    ],
)
def test_hotpotqas_yes_no_rule_zeroes_f1_where_a_closed_answer_differs(prediction, gold, plain, with_rule):
    assert f1(prediction, gold) == pytest.approx(plain)
    assert f1(prediction, gold, yes_no_rule=True) == pytest.approx(with_rule)


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [("hotpotqa", 0.0), ("2wiki", 0.0), ("musique", 0.5), ("miniature", 0.5), ("", 0.5)],
)
def test_only_hotpotqa_and_2wiki_have_the_yes_no_rule(dataset, expected):
    assert score("yes it is", ("yes",), dataset).f1 == pytest.approx(expected)


def test_containment_is_on_whole_words():
    assert contains("It was Bo who won.", "Bo") == 1
    assert contains("Bob won", "Bo") == 0
    assert contains("The New York Times", "New York") == 1
    assert contains("York New", "New York") == 0
    assert contains("the U.S. army", "US") == 1
    assert contains("it is a letter", "A") == 0  # that word stands in almost any sentence


def test_the_literatures_accuracy_is_containment_within_words_too():
    assert accuracy("Bob won", "Bo") == 1
    assert accuracy("The New York Times", "York the Time") == 1  # an article is no part of either
    assert accuracy("Bo", "Bob") == 0
    assert accuracy("it is a letter", "A") == 0
    scores = score("Bob won", ("Bo",))
    assert (scores.acc, scores.acc_words) == (1, 0)


def test_each_score_is_the_best_over_the_aliases():
    scores = score("John F Kennedy", ("JFK", "Kennedy", "John Fitzgerald Kennedy"), "musique")
    assert scores.em == 0
    assert scores.f1 == pytest.approx(2 / 3)  # against the third: 2 of 3 and 3 words
    assert scores.acc == 1  # against the second
    assert score("jfk", ("John Kennedy", "JFK"), "2wiki").em == 1


def test_the_filter_takes_exact_matches_or_contained_answers_of_any_alias():
    assert is_right("the cem", ("Dor", "Cem"), "exact")
    assert not is_right("in Cem", ("Dor", "Cem"), "exact")
    assert is_right("in Cem", ("Dor", "Cem"), "contains")
