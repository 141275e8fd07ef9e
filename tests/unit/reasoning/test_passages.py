"""The passages of a prompt: in their order, each once, none longer than a setting allows."""

import pytest
from scripted import CharTokenizer, KeywordRetriever, ScriptedGenerator

from steper_ray.config import ReasoningConfig, SamplingConfig
from steper_ray.generation.tokens import fit_tokens
from steper_ray.reasoning import Reasoner
from steper_ray.reasoning.passages import PassagePool, cut
from steper_ray.rollouts.annotation import AnnotationTeacher
from steper_ray.schema import Hit, Passage, Question, StopReason, SubQuestion

LONG = Passage("2", "Bo", "Bo was born in Cem. " * 2635)  # 52,700 characters
ALBA = Passage("1", "Alba", "Alba was shot by Bo.")
QUESTION = Question(
    "q", "Where was Bo, who shot Alba, born?", ("Cem",), decomposition=(SubQuestion("Bo >> city", "Cem"),)
)
CONTEXT = 2048


def hit(number: int, title: str, text: str) -> Hit:
    return Hit(Passage(str(number), title, text), 1.0)


def test_passages_keep_their_order_lose_near_duplicates_and_are_capped():
    pool = PassagePool(ReasoningConfig(max_passages=2))
    assert [h.passage.id for h in pool.add([hit(1, "A", "x"), hit(2, "a", "The x!")])] == ["1"]
    assert [h.passage.id for h in pool.add([hit(3, "B", "x"), hit(4, "C", "x")])] == ["3"]
    assert [p.id for p in pool.passages] == ["1", "3"]
    signs = [hit(n, title, text) for n, (title, text) in enumerate([("A", "x"), ("The", "x"), ("A", "?")])]
    assert PassagePool(ReasoningConfig()).add(signs) == tuple(
        signs
    )  # normalisation leaves nothing of their titles


@pytest.mark.parametrize(
    ("text", "limit", "kept"),
    [
        ("Al left. Bo came. Cy saw.", 25, "Al left. Bo came. Cy saw."),
        ("Al left. Bo came. Cy saw.", 24, "Al left. Bo came."),
        ("Al left. Bo came. Cy saw.", 17, "Al left. Bo came."),
        ("Al. Bo came to the city of Cem", 20, "Al. Bo came to the"),  # one short sentence is too little
        ("one two three", 8, "one two"),
        ("one two three", 7, "one two"),
        ("阿尔巴是电影。博是导演", 9, "阿尔巴是电影。"),
        ("阿尔巴是博的一部电影", 6, "阿尔巴是博的"),
        ("xxxxe\u0301\u0323e", 6, "xxxx"),
        ("कककककि", 5, "कककक"),
        ("ab\U0001f468\u200d\U0001f469\u200d\U0001f467", 5, "ab"),
        ("ab\U0001f44d\U0001f3fd", 3, "ab"),
        ("\u1112\u1161\u11ab\u1100\u1173\u11af", 5, "\u1112\u1161\u11ab"),
        ("\u0301" * 9, 4, "\u0301" * 4),
        ("word", 0, ""),
    ],
)
def test_a_text_is_cut_behind_a_sentence_a_word_or_a_whole_character(text, limit, kept):
    assert cut(text, limit) == kept


def test_title_and_text_together_keep_to_the_limit_and_short_passages_are_left_as_they_are():
    config = ReasoningConfig(max_passage_chars=20)
    short = hit(1, "Alba", "x" * 16)
    assert PassagePool(config).add([short])[0] is short
    pool = PassagePool(config)
    found = pool.add([Hit(Passage("2", "Bo", "Bo came. Then he left us."), 7.5), hit(3, "t" * 30, "text")])
    assert found == (Hit(Passage("2", "Bo", "Bo came. Then he"), 7.5), hit(3, "t" * 20, ""))
    assert pool.passages == tuple(h.passage for h in found)
    strict = PassagePool(config.model_copy(update={"long_passages": "leave_out"}))
    assert strict.add([short, *found, hit(4, "t", "x" * 20)]) == (short, *found)


class Limited(ScriptedGenerator):
    """An engine with a context of so many tokens."""

    async def stream(self, prompt, sampling, stop=()):
        fit_tokens(len(prompt), sampling.max_tokens, CONTEXT)
        async for chunk in super().stream(prompt, sampling, stop):
            yield chunk


@pytest.mark.parametrize(
    ("settings", "shown"),
    [
        ({"max_passage_chars": 1000}, [20, 979]),
        ({"max_passage_chars": 1000, "long_passages": "leave_out"}, [20]),
    ],
)
async def test_a_long_passage_is_the_same_in_the_loop_and_in_annotations_and_kills_no_question(
    settings, shown
):
    config = ReasoningConfig(unit="chain", **settings)
    retriever = KeywordRetriever([ALBA, LONG])
    generator = Limited(["So the answer is: Cem."], CharTokenizer())
    trajectory = await Reasoner(retriever, generator, config, SamplingConfig()).run(QUESTION)
    assert (trajectory.answer, trajectory.stop_reason) == ("Cem", StopReason.ANSWERED)
    assert [len(h.passage.text) for h in trajectory.steps[0].hits] == shown
    assert trajectory.steps[0].duplicates == 2 - len(shown)
    assert generator.prompts[0].count("Title: ") == len(shown)
    written = await AnnotationTeacher(retriever, config, {}.get, "keep").run(QUESTION)
    assert written.steps[0].hits == trajectory.steps[0].hits


async def test_a_prompt_that_is_still_too_long_is_rejected_by_the_names_of_the_settings():
    loop = Reasoner(
        KeywordRetriever([ALBA, LONG]), Limited([], CharTokenizer()), ReasoningConfig(), SamplingConfig()
    )
    trajectory = await loop.run(QUESTION)
    assert trajectory.stop_reason is StopReason.REJECTED
    for name in ("reasoning.max_passage_chars", "reasoning.max_passages", "engine.max_model_len"):
        assert name in trajectory.error
