"""The annotation teacher: gold decompositions as chains, retrieved as the reasoner retrieves."""

import dataclasses
import random

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
from steper_ray.rollouts.rewriting import Rewriter
from steper_ray.rollouts.statements import fill_in, follow_up, recased, references, relations, state
from steper_ray.schema import Passage, Question, StopReason, SubQuestion

PASSAGES = [Passage("1", "Alba", "Of Bo."), Passage("2", "Bo", "Of Cy."), Passage("3", "Cy", "Of Cem.")]
OTHERS = [Passage(f"o{n}", "Alba", f"Other {n}.") for n in range(3)]


def teacher(config=None, missing="keep", passages=PASSAGES, corpus=(), rewriter=None):
    """`passages` are what can be found, `corpus` what can be put there."""
    find = {passage.id: passage for passage in (*passages, *corpus)}.get
    return AnnotationTeacher(KeywordRetriever(passages), config or ReasoningConfig(), find, missing, rewriter)


def comparison(*supports):
    """Two independent facts: which of Bo and Cy is older?"""
    subs = tuple(
        SubQuestion(f"{name} >> date of birth", year, support)
        for name, year, support in zip(("Bo", "Cy"), ("1900", "1950"), supports, strict=True)
    )
    return Question("q", "Is Alba's Cy older?", ("Bo",), tuple(filter(None, supports)), 2, subs)


@pytest.mark.parametrize(
    ("written", "answer", "statement"),
    [
        ("Who is the director of Alba?", "Bo", "The director of Alba is Bo."),
        ("Who was the first president of X ?", "G. Hall", "The first president of X was G. Hall."),
        ("Alba >> director", "Bo", "Alba was directed by Bo."),
        ("Alba (1941 film) >> director", "Bo", "Alba (1941 film) was directed by Bo."),
        ("Bo >> date of birth", "14 April 1578", "Bo was born on 14 April 1578."),
        ("Bo >> date of birth", "1578", "Bo was born in 1578."),
        ("Bo >> country of citizenship", "United States", "Bo was a citizen of the United States."),
        ("Bo >> country of citizenship", "American", "Bo was American."),
        ("Bo >> cause of death", "shot", "Bo was shot."),
        ("Bo >> tributary", "Cy", "The tributary of Bo is Cy."),
        ("Rio >> located in the state", "Ohio", "Rio is located in the state Ohio."),
        ("Peru >> shares border with", "Chile", "Peru shares a border with Chile."),
        ("Lima >> capital of", "Peru", "Lima is the capital of Peru."),
        ("who won the cup in 2006", "the Reds", "The Reds won the cup in 2006."),
        ("who was crowned king in 1216", "Al", "Al was crowned king in 1216."),
        ("Who is Bo 's mother?", "Cy", "Bo's mother is Cy."),
        ("What is a term for dusk?", "gloaming", "Gloaming is a term for dusk."),
        ("Who was Bo talking to?", "Cy", "Bo was talking to Cy."),
        ("Who was Bo seeing in May?", "Cy", "Bo was seeing Cy in May."),
        ("who did Bo marry", "Cy", "Bo married Cy."),
        ("Who did Bo marry after the war?", "Cy", "Bo married Cy after the war."),
        ("When did Bo become the capital of Cy?", "1839", "Bo became the capital of Cy in 1839."),
        ("When did Bo die?", "May 3, 1999", "Bo died on May 3, 1999."),
        ("when did Bo became a member of Cy", "1973", "Bo became a member of Cy in 1973."),
        ("who did Bo wrote the song Alba for", "Cy", "Bo wrote the song Alba for Cy."),
        ("Bo >> conflict", "the First World War", "Bo fought in the First World War."),
        ("Alba (German: Ba >> director", "Bo", "Alba was directed by Bo."),
        ("Alba (film) >> director", "Bo", "Alba (film) was directed by Bo."),
        ("Where did Bo live when he died?", "Rostov", "Bo lived in Rostov when he died."),
        ("Where is Bo located?", "in the north", "Bo is located in the north."),
        ("In what city did Bo die?", "Rostov", "Bo died in Rostov."),
        ("What city was Bo formed in?", "Rostov", "Bo was formed in Rostov."),
        ("What company published Bo?", "Cy", "Cy published Bo."),
        ("Which state borders Bo to the east?", "Ohio", "Ohio borders Bo to the east."),
        ("What league was Bo ?", "the Cup", "The league of Bo was the Cup."),
        ("What is Bo a tributary of?", "Cy", "Bo is a tributary of Cy."),
        ("How many campuses does Bo have?", "12", "Bo has 12 campuses."),
        ("How many miles of road are in Bo?", "140 mi", "140 mi are in Bo."),
        ("Besides Bo, what other state did Cy win?", "Ohio", "Besides Bo, Cy won Ohio."),
        ("Bo is the official sport of which state?", "Ohio", "Bo is the official sport of Ohio."),
        ("Who can declare war on Bo?", "Congress", "Congress can declare war on Bo."),
        ("Why did Bo leave?", "the war", "Bo left because of the war."),
        ("federal leader of X", "Al", "The federal leader of X is Al."),
        ("How was Bo built?", "fast", 'The answer to "How was Bo built" is fast.'),
    ],
)
def test_a_sub_question_and_its_answer_become_a_statement(written, answer, statement):
    assert state(fill_in(written, []), answer) == statement


@pytest.mark.parametrize(
    ("question", "answer", "statement"),
    [
        ("Bo >> residence", "Washington, D.C.", "Bo lived in Washington, DC."),
        ("Bo >> country", "U.S.", "The country of Bo is the US."),
        ("Bo >> child", "Sammy Davis Jr.", "Sammy Davis Jr. is a child of Bo."),
        ("Bo >> record label", "Warner Bros.", "The record label of Bo is Warner Bros., as stated."),
        ("Who broke the #1 ?", "Oriole Records.", "Oriole Records broke the USSR."),
    ],
)
def test_no_statement_has_two_stops_or_two_articles(question, answer, statement):
    assert state(fill_in(question, ["the USSR"]), answer) == statement


def test_each_relation_is_one_sentence_and_one_question():
    """2WikiMultiHopQA's, as far as its files show them, all have their own words."""
    wanted = """director|date of birth|country of citizenship|father|date of death|publication date|place of birth
    country of origin|place of death|mother|spouse|performer|composer|award received|cause of death|educated at|sibling
    employer|founded by|place of burial|publisher|inception|child|presenter|has part"""
    assert {name.strip() for line in wanted.split("\n") for name in line.split("|")} <= relations().keys()
    for relation in relations():
        statement, asked = state(f"Alba >> {relation}", "Bo"), follow_up(f"Alba >> {relation}")
        assert FRAMEWORKS["ircot"].cut(f"{statement} So the answer is: X.") == (statement, True)
        assert "Alba" in statement
        assert "Bo" in statement
        assert asked.endswith("?")
        assert "Alba" in asked


def test_no_words_in_any_order_break_the_rules():
    words = "who what how many when did does is was has can in of from the a year Bo born win #1 >> ? , U.S.".split()
    rng = random.Random(0)
    for _ in range(3000):
        question = " ".join(rng.choices(words, k=rng.randrange(9)))
        statement = state(
            question, rng.choice(["Cy", "", "...", "?", "U.S.", "on 3 May", "in 1900", "12 mi"])
        )
        assert FRAMEWORKS["ircot"].cut(f"{statement} Next") == (statement, True)
        assert "\n" not in follow_up(question)


def test_names_are_written_as_their_passage_writes_them():
    passage = Passage("1", "Alba", "The film Alba stars Bo Derek. Played by Cy, bo is walking.")
    assert (
        recased("Cy played derek in the film alba with bo.", passage)
        == "Cy played Derek in the film Alba with bo."
    )


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
    assert references("#1 and #2 of #3 in #9", 3) == {0, 1, 2}


@pytest.mark.parametrize(
    ("written", "asked"),
    [
        ("Alba >> director", "Who directed Alba?"),
        ("Rio >> located in the state", "What is Rio located in the state?"),
        ("Peru >> shares border with", "What does Peru share a border with?"),
        ("Lima >> capital of", "What is Lima the capital of?"),
        ("Alba >> tributary", "What is the tributary of Alba?"),
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


@pytest.mark.parametrize("framework", ["ircot", "self_ask", "react"])
async def test_a_gold_trajectory_is_what_the_reasoner_records_when_a_model_writes_the_same(framework):
    config, asked = ReasoningConfig(k=2, framework=framework), question(hops=3)
    gold = await teacher(config).run(asked)
    replies = [layouts()[framework].joiner.join(gold.chain[i:]) for i in range(4)]
    loop = Reasoner(KeywordRetriever(PASSAGES), ScriptedGenerator(replies), config, SamplingConfig())
    model = await loop.run(asked)
    assert model.chain == gold.chain
    assert [(s.query, s.hits) for s in gold.steps] == [(s.query, s.hits) for s in model.steps]
    assert (
        (gold.answer, gold.stop_reason) == (model.answer, model.stop_reason) == ("Cem", StopReason.ANSWERED)
    )


async def test_an_ircot_trajectory_states_a_fact_a_step():
    gold = await teacher().run(question(hops=3))
    assert gold.chain == (
        "Alba was directed by Bo.",
        "The mother of Bo is Cy.",
        "Cy was born in Cem.",
        "So the answer is: Cem.",
    )


async def test_a_react_trajectory_searches_with_its_sub_questions_and_thinks_what_they_found():
    config = ReasoningConfig(framework="react")
    gold = await teacher(config).run(question(answers=("Cy",)))
    assert gold.chain == (
        "Thought: I need to look up the first fact.\nAction: Search[Who directed Alba?]",
        "Thought: Alba was directed by Bo.\nAction: Search[Who is the mother of Bo?]",
        "Thought: The mother of Bo is Cy.\nAction: Finish[Cy]",
    )
    assert [s.query for s in gold.steps][1:] == ["Who directed Alba?", "Who is the mother of Bo?"]
    assert drop_reason(gold, "exact") is None


async def test_a_self_ask_trajectory_queries_with_its_follow_up_questions():
    config = ReasoningConfig(framework="self_ask")
    gold = await teacher(config).run(question(answers=("Cy",)))
    assert gold.chain == (
        "Follow up: Who directed Alba?",
        "Intermediate answer: Bo\nFollow up: Who is the mother of Bo?",
        "Intermediate answer: Cy\nSo the final answer is: Cy",
    )
    assert [s.query for s in gold.steps][1:] == ["Who directed Alba?", "Who is the mother of Bo?"]
    assert drop_reason(gold, "exact") is None


@pytest.mark.parametrize(("hops", "reason"), [(0, "no_decomposition"), (3, "too_many_hops"), (2, None)])
async def test_a_question_without_a_chain_that_fits_is_rejected_by_name(hops, reason):
    asked = dataclasses.replace(question(hops=hops), answers=("Cy",))
    assert drop_reason(await teacher(ReasoningConfig(max_steps=3)).run(asked), "exact") == reason


async def test_a_failing_retriever_is_data():
    retriever = KeywordRetriever([], RetrievalError("index gone"))
    gold = await AnnotationTeacher(retriever, ReasoningConfig(), {}.get).run(question())
    assert (gold.stop_reason, gold.error, gold.steps) == (StopReason.RETRIEVER_FAILED, "index gone", ())


async def test_of_independent_facts_the_one_whose_passage_is_there_comes_first():
    gold = await teacher().run(
        comparison("2", "3")
    )  # the question finds Alba and Cy, and 'Cy was born' finds no Bo
    assert gold.chain[:2] == ("Cy was born in 1950.", "Bo was born in 1900.")
    assert [step.supported for step in gold.steps] == [True, False, None]


async def test_a_missing_passage_is_put_among_the_hits_and_marked():
    config = ReasoningConfig(k=2)
    gold = await teacher(config, "inject", [*OTHERS, PASSAGES[2]], PASSAGES).run(comparison("2", "3"))
    assert [step.supported for step in gold.steps] == [True, True, None]
    assert [step.injected for step in gold.steps] == ["2", "3", None]
    for step in gold.steps[:2]:
        assert step.injected in [hit.passage.id for hit in step.hits]
        assert len(step.hits) <= config.k
    assert gold.stop_reason is StopReason.ANSWERED


async def test_the_place_of_a_passage_that_was_put_there_does_not_say_which_it_is():
    places = set()
    for number in range(20):
        asked = dataclasses.replace(comparison("2", "3"), id=f"q{number}")
        gold = await teacher(ReasoningConfig(k=3), "inject", OTHERS, PASSAGES).run(asked)
        places.add([hit.passage.id for hit in gold.steps[0].hits].index("2"))
    assert places == {0, 1, 2}


async def test_a_gold_passage_that_was_found_does_not_make_room():
    asked = dataclasses.replace(comparison("2", "3"), gold_ids=("2", "3", "o0"))
    gold = await teacher(ReasoningConfig(k=2), "inject", OTHERS[1::-1], PASSAGES).run(asked)
    assert {hit.passage.id for hit in gold.steps[0].hits} == {"2", "o0"}


@pytest.mark.parametrize(("missing", "supports"), [("drop", ("2", "3")), ("inject", ("none", "3"))])
async def test_a_fact_without_its_passage_costs_the_trajectory(missing, supports):
    gold = await teacher(missing=missing).run(comparison(*supports))
    assert drop_reason(gold, "exact") == "unsupported"
    assert gold.error == "unsupported: not in the prompt of step 2: Bo was born in 1900."
    assert gold.steps == ()


async def test_a_fact_whose_passage_is_not_named_is_looked_for_by_its_answer():
    passages = [Passage("1", "Alba", "Cy of 1950, Bo of 1900.")]
    gold = await teacher(missing="drop", passages=passages).run(comparison(None, None))
    assert [step.supported for step in gold.steps] == [True, True, None]


@pytest.mark.parametrize("framework", ["self_ask", "react"])
async def test_where_a_fact_is_asked_for_first_its_passage_counts_when_it_is_stated(framework):
    config = ReasoningConfig(framework=framework)
    gold = await teacher(config).run(comparison("2", "3"))  # the follow-up questions name Bo and Cy
    assert [step.supported for step in gold.steps] == [None, True, True]


@pytest.mark.parametrize(
    ("written", "taken"),
    [
        ("In 1900, Bo was born.", True),
        ("Bo was born in 1900. He lived.", False),
        ("He was born in 1900.", False),
        ("In 1900, bo was born.", False),
        ("Bo was born.", False),
        ("Bo was born in 1900 in Paris.", False),
        ("", False),
    ],
)
async def test_a_rewritten_fact_is_taken_if_nothing_is_lost_or_added(written, taken):
    generator = ScriptedGenerator([written, "Cy was born in 1950."])
    rewriter = Rewriter(generator)
    gold = await teacher(rewriter=rewriter).run(comparison(None, "3"))
    assert ("In 1900, Bo was born." if taken else "Bo was born in 1900.") in gold.chain
