"""Where a sentence ends, in every script: the step that IRCoT cuts a generation into."""

# ruff: noqa: RUF001 (letters of other scripts are meant)
from random import Random

import pytest
from scripted import KeywordRetriever, ScriptedGenerator

from steper_ray.config import ReasoningConfig, SamplingConfig
from steper_ray.core.sentences import first_sentence, split_sentences
from steper_ray.reasoning import Reasoner
from steper_ray.schema import Passage, Question


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Bo made it. The end", ("Bo made it.", True)),
        ("Bo made it.", ("Bo made it.", False)),
        ("Dr. J. Smith made it. Then", ("Dr. J. Smith made it.", True)),
        ("It cost 3.5 million. She", ("It cost 3.5 million.", True)),
        ('"Is it?" He asked', ('"Is it?"', True)),
        ("no stop at all\nnext", ("no stop at all", True)),
        ("  led by blanks. Yes", ("led by blanks.", True)),
        ("", ("", False)),
    ],
)
def test_first_sentence_ends_at_a_real_boundary(text, expected):
    assert first_sentence(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "Mr. A left.| B stayed!| C?",
        'He wrote "Mr. Bo" (No. 3).| J.-P. Al (a.k.a. Cy) read it.',
        "Bo was born in Poland.| Łódź is a city.| Élite is a game.| ʻAlī left.| ¿Quién?| «Oui.»| Non.",
        "« Oui. »| Non !| Er sagte „Ja.“| Sie ging.",
        "А. С. Пушкин родился в Москве.| Он был поэтом.| В 1837 г. он умер в г. Петербурге.",
        "Он родился в 1799 г.| Его отец, проф. Иван Б. Петров, жил на ул. Ленина.",
        "Ο Γ. Σεφέρης γεννήθηκε στη Σμύρνη.| Πού είναι;",  # this mark looks like a semicolon, and is one here
        "Πού είναι\u037e| Εδώ.",
        "鲁迅是作家。|他出生于绍兴！|真的吗？|是的。",
        "他说：“我走了。”|她哭了。| iPhone是手机。|2020年。",
        "《你是谁？》是一部电影。|「はい。」と答えた。|東京．|大阪は３．５倍。|Ｊ．スミス。",
        "他是王.| 李.| 京都在日本.",
        "세종은 왕이다.| 그는 한글을 만들었다!| 네.| 맞다.",
        "وُلد أ. د. أحمد في القاهرة.| هل هو شاعر؟| نعم.| ٣ كتب.",
        "وہ لاہور میں ہے۔| وہ شاعر تھا۔|",
        "वह डॉ. राम है।| वह दिल्ली में रहता है।|कब से?| ३ साल।",
        "സി. വി. രാമൻ ജനിച്ചു.| അദ്ദേഹം എഴുതി.",
        "דוד נולד בעיר.| הוא מלך.| א. ב. יהושע כתב.",
        "เขาเกิดเมื่อ พ.ศ. ๒๔๐๐.| ๓ คน.| ดร. สมชาย.",
        "Նա ծնվել է։| Նա գրող էր։",
        "ის დაიბადა.| ის მეფე იყო.| ი. ჭავჭავაძე წერდა.",
    ],
)
def test_sentences_end_in_every_script_and_lose_nothing(text):
    wanted = [part.strip() for part in text.split("|") if part.strip()]
    plain = text.replace("|", "")
    assert split_sentences(plain) == wanted
    for end in range(len(plain)):  # as a stream grows, what was complete stays as it was
        head, complete = first_sentence(plain[:end])
        assert not complete or head == wanted[0]


@pytest.mark.parametrize(
    "text",
    [
        "Bo left. then came back",
        "Hi-sCoool! (セハガール)",
        "该值为３．５",
        "ｗｗｗ．ｂｏ．ｊｐ",
        "अध्याय ॥१॥",
        "他说：“是。”",
        "是。 」",
        "Yes? élan",
    ],
)
def test_what_cannot_open_a_sentence_ends_none(text):
    assert first_sentence(text) == (text, False)


def test_a_sentence_that_was_complete_stays_as_it_was_whatever_follows():
    rng = Random(0)
    for _ in range(5000):
        text = "".join(rng.choice("AbZ3é你のअ가ב.!?。！．؟।\"'”“»« \n()[-") for _ in range(12))
        found = (first_sentence(text[:end]) for end in range(len(text)))
        first = next((head for head, complete in found if complete), None)
        assert first is None or first_sentence(text) == (first, True)
        assert "".join("".join(split_sentences(text)).split()) == "".join(text.split())


async def test_ircot_reasons_sentence_by_sentence_in_chinese():
    retriever = KeywordRetriever([Passage("1", "阿尔巴", "……"), Passage("2", "博", "……")])
    chain = ("《阿尔巴》的导演是博。", "博出生于塞姆。", "So the answer is: 塞姆.")
    generator = ScriptedGenerator([f"{chain[0]}{chain[1]}", f"{chain[1]}所以", chain[2]])
    reasoner = Reasoner(retriever, generator, ReasoningConfig(stop="fixed"), SamplingConfig())
    trajectory = await reasoner.run(Question("q", "《阿尔巴》的导演在哪里出生？", ("塞姆",)))
    assert (trajectory.chain, trajectory.answer) == (chain, "塞姆")
    assert [step.query for step in trajectory.steps] == ["《阿尔巴》的导演在哪里出生？", *chain[:2]]
