"""The annotation teacher: gold decompositions as chains, retrieved as the reasoner retrieves."""

import dataclasses

import pytest
from distilled import question
from scripted import KeywordRetriever, ScriptedGenerator

from steper_ray.config import ReasoningConfig, SamplingConfig
from steper_ray.core.errors import RetrievalError
from steper_ray.corpora.miniature import make_corpus
from steper_ray.data.filtering import drop_reason
from steper_ray.frameworks import FRAMEWORKS, layouts
from steper_ray.reasoning import Reasoner
from steper_ray.rollouts.annotation import AnnotationTeacher, gold_facts
from steper_ray.rollouts.statements import fill_in, follow_up, state
from steper_ray.schema import Passage, StopReason, SubQuestion

PASSAGES = [Passage("1", "Alba", "Of Bo."), Passage("2", "Bo", "Of Cy."), Passage("3", "Cy", "Of Cem.")]


@pytest.mark.parametrize(
    ("written", "answer", "statement"),
    [
        ("Who is the director of Alba?", "Bo", "The director of Alba is Bo."),
        ("Who was the first president of X ?", "G. Hall", "The first president of X was G. Hall."),
        ("Alba >> director", "Bo", "The director of Alba is Bo."),
        ("Rio >> located in the state", "Ohio", "Rio is located in the state Ohio."),
        ("Peru >> shares border with", "Chile", "Peru shares border with Chile."),
        ("Lima >> capital of", "Peru", "Lima is capital of Peru."),
        ("Al >> member of sports team", "Reds", "Al is member of sports team Reds."),
        ("who won the cup in 2006", "the Reds", "The Reds won the cup in 2006."),
        ("who was crowned king in 1216", "Al", "Al was crowned king in 1216."),
        ("Who is Bo 's mother?", "Cy", "Bo's mother is Cy."),
        ("What is a term for dusk?", "gloaming", "Gloaming is a term for dusk."),
        ("Who was Bo talking to?", "Cy", 'The answer to "Who was Bo talking to" is Cy.'),
        ("Who was Bo seeing in May?", "Cy", 'The answer to "Who was Bo seeing in May" is Cy.'),
        ("who did Bo marry", "Cy", 'The answer to "who did Bo marry" is Cy.'),
        ('When was "Go" new?', "1900", "The answer to \"When was 'Go' new\" is 1900."),
        ("federal leader of X", "Al", 'The answer to "federal leader of X" is Al.'),
    ],
)
def test_a_sub_question_and_its_answer_become_a_statement(written, answer, statement):
    assert state(fill_in(written, []), answer) == statement


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Who's Afraid of Virginia Woolf? >> author", "Edward Albee"),
        ("Who is the rapper of X?", "Jay Z"),
        ("Where is the White House?", "Washington, D.C."),
        ("Mission. Impossible. Part 2 >> director", "John! Woo"),
        ("What is the label of X?", "Warner Bros. Records"),
        ("Who is the son of X?", "Sammy Davis Jr."),
        ("What is the year of X?", "line\nbreak"),
        ("Bo >> last words", 'Bo said "Go home." He (of Reno, Nev.) left'),
        ("Bo >> last words", "\u201cGo!\u201d Bo said"),
        ("\u535a >> \u7236\u4eb2", "\u4ed6\u662f\u738b\u3002\u5362\u662f\u5b50\u3002"),
    ],
)
def test_every_statement_is_one_sentence_by_the_rule_that_cuts_a_generation(question, answer):
    statement = state(question, answer)
    assert FRAMEWORKS["ircot"].cut(f"{statement} So the answer is: X.") == (statement, True)


def test_references_take_the_answers_of_earlier_hops_and_only_those():
    assert fill_in("Who is #1 's and #2 ?", ["Bo", "Cy"]) == "Who is Bo's and Cy?"
    assert fill_in("Who sang #1 Record?", []) == "Who sang #1 Record?"
    facts = gold_facts(
        (SubQuestion("A >> b", "Xa"), SubQuestion("#1 >> c", "Ya"), SubQuestion("#2 >> d", "Za"))
    )
    assert [f.statement for f in facts] == ["The b of A is Xa.", "The c of Xa is Ya.", "The d of Ya is Za."]


@pytest.mark.parametrize(
    ("written", "asked"),
    [
        ("Alba >> director", "What is the director of Alba?"),
        ("Rio >> located in the state", "What state is Rio located in?"),
        ("Peru >> shares border with", "What does Peru share border with?"),
        ("Lima >> capital of", "What is Lima capital of?"),
        ("where was Bo born", "Where was Bo born?"),
    ],
)
def test_a_sub_question_is_asked_on_one_line(written, asked):
    assert follow_up(written) == asked


def test_the_miniature_worlds_chains_are_the_worlds_own_statements():
    question = make_corpus(1, 1, 1, "train")[1][0]
    for fact, sub in zip(gold_facts(question.decomposition), question.decomposition, strict=True):
        assert fact.statement.startswith("The ")
        assert fact.statement.endswith(f" is {sub.answer}.")


@pytest.mark.parametrize("framework", FRAMEWORKS)
async def test_a_gold_trajectory_is_what_the_reasoner_records_when_a_model_writes_the_same(framework):
    config, asked = ReasoningConfig(k=2, framework=framework), question(hops=3)
    gold = await AnnotationTeacher(KeywordRetriever(PASSAGES), config).run(asked)
    replies = [layouts()[framework].joiner.join(gold.chain[i:]) for i in range(4)]
    loop = Reasoner(KeywordRetriever(PASSAGES), ScriptedGenerator(replies), config, SamplingConfig())
    model = await loop.run(asked)
    assert model.chain == gold.chain
    assert [(s.query, s.hits) for s in gold.steps] == [(s.query, s.hits) for s in model.steps]
    assert (
        (gold.answer, gold.stop_reason) == (model.answer, model.stop_reason) == ("Cem", StopReason.ANSWERED)
    )


async def test_an_ircot_trajectory_states_a_fact_a_step():
    gold = await AnnotationTeacher(KeywordRetriever(PASSAGES), ReasoningConfig()).run(question(hops=3))
    assert gold.chain == (
        "The director of Alba is Bo.",
        "The mother of Bo is Cy.",
        'The answer to "Where was Cy born" is Cem.',
        "So the answer is: Cem.",
    )


async def test_a_react_trajectory_searches_with_its_sub_questions_and_thinks_what_they_found():
    config = ReasoningConfig(framework="react")
    gold = await AnnotationTeacher(KeywordRetriever(PASSAGES), config).run(question(answers=("Cy",)))
    assert gold.chain == (
        "Thought: I need to look up the first fact.\nAction: Search[What is the director of Alba?]",
        "Thought: The director of Alba is Bo.\nAction: Search[Who is the mother of Bo?]",
        "Thought: The mother of Bo is Cy.\nAction: Finish[Cy]",
    )
    assert [s.query for s in gold.steps][1:] == ["What is the director of Alba?", "Who is the mother of Bo?"]
    assert drop_reason(gold, "exact") is None


async def test_a_self_ask_trajectory_queries_with_its_follow_up_questions():
    config = ReasoningConfig(framework="self_ask")
    gold = await AnnotationTeacher(KeywordRetriever(PASSAGES), config).run(question(answers=("Cy",)))
    assert gold.chain == (
        "Follow up: What is the director of Alba?",
        "Intermediate answer: Bo\nFollow up: Who is the mother of Bo?",
        "Intermediate answer: Cy\nSo the final answer is: Cy",
    )
    assert [s.query for s in gold.steps][1:] == ["What is the director of Alba?", "Who is the mother of Bo?"]
    assert drop_reason(gold, "exact") is None


@pytest.mark.parametrize(("hops", "reason"), [(0, "no_decomposition"), (3, "too_many_hops"), (2, None)])
async def test_a_question_without_a_chain_that_fits_is_rejected_by_name(hops, reason):
    asked = dataclasses.replace(question(hops=hops), answers=("Cy",))
    teacher = AnnotationTeacher(KeywordRetriever(PASSAGES), ReasoningConfig(max_steps=3))
    assert drop_reason(await teacher.run(asked), "exact") == reason


async def test_a_failing_retriever_is_data():
    teacher = AnnotationTeacher(KeywordRetriever([], RetrievalError("index gone")), ReasoningConfig())
    gold = await teacher.run(question())
    assert (gold.stop_reason, gold.error, gold.steps) == (StopReason.RETRIEVER_FAILED, "index gone", ())
