"""Answers: extraction from a chain, normalisation, exact match, F1 and containment.

The filter and the scores share these rules. Sources: SQuAD v1.1 evaluation (normalisation, F1), the HotpotQA and
2WikiMultiHopQA evaluations (the yes/no rule), the MuSiQue evaluation (best over aliases). Knows no other module.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_MARKER = re.compile(r"\bso the (?:final )?answer is:?\s*(.*)", re.IGNORECASE | re.DOTALL)
# ReAct labels its lines, perhaps with a number ('Thought 2:'); in its chains a thought may say 'so the answer is'.
_REACT = re.compile(r"\s*(?:thought|action)(?: ?\d+)?:", re.IGNORECASE)
_FINISH = re.compile(r"^\s*action(?: ?\d+)?: *finish *(\[.*)", re.IGNORECASE | re.MULTILINE)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_SPACED_ARTICLES = re.compile(r" (?:a|an|the)(?= )")
_PUNCTUATION = string.punctuation.encode()
#: Signs around an answer that are no part of it, where signs are all that is compared.
_AROUND = ".,;:!?\"'()[]{} "
_CLOSED = frozenset(("yes", "no", "noanswer"))
#: Data sets whose official F1 is 0 where one side is yes/no/noanswer and the two differ, in letters and digits alone.
_YES_NO_RULE = frozenset(("hotpot", "hotpotqa", "2wiki", "2wikimultihop", "2wikimultihopqa", "2wikimqa"))


def extract_answer(chain: str) -> str | None:
    """The text after 'So the answer is:' (IRCoT) or 'So the final answer is:' (Self-Ask), or None.

    A chain that opens with 'Thought:' or 'Action:' is ReAct's: there the text in 'Action: Finish[...]', and nothing
    else. Only the first line counts and one closing full stop is dropped; an empty answer counts as none.
    """
    react = _REACT.match(chain) is not None
    match = (_FINISH if react else _MARKER).search(chain)
    if match is None:
        return None
    stated = in_brackets(match.group(1))[0] if react else match.group(1)
    answer = stated.strip().split("\n", 1)[0].strip().removesuffix(".").strip()
    return answer or None


def in_brackets(text: str) -> tuple[str, bool]:
    """The content of the square bracket that opens `text`, stripped, and whether it is closed; brackets may nest."""
    depth = 0
    for at, character in enumerate(text):
        depth += (character == "[") - (character == "]")
        if not depth:
            return text[1:at].strip(), True
    return text[1:].strip(), False


def normalize(text: str) -> str:
    """SQuAD: lower case, no punctuation, no articles, squeezed blanks."""
    # UTF-8 has ASCII bytes for ASCII characters alone, and bytes.translate is much faster than str.translate.
    utf8 = text.lower().encode("utf-8", "surrogatepass")
    marked = utf8.translate(None, _PUNCTUATION).decode("utf-8", "surrogatepass")
    if text.isascii() and text.isprintable():  # then blanks alone part words: faster to find than \b
        padded = f" {marked} "
        while "  " in padded:
            padded = padded.replace("  ", " ")
        return _SPACED_ARTICLES.sub("", padded)[1:-1]
    return " ".join(_ARTICLES.sub(" ", marked).split())


def comparable(text: str) -> str:
    """The key by which texts are equal: the normal form; where that is empty, the text itself.

    'A' (the vitamin), 'The The', 'A+' and '++' are articles and signs alone: they equal what is written like them, but
    for case, blanks and the punctuation around them. No such key equals a normal form, which has no article or sign.
    """
    normal = normalize(text)
    if normal:
        return normal
    squeezed = " ".join(text.lower().split())
    return squeezed.strip(_AROUND) or squeezed


def exact_match(prediction: str, gold: str) -> float:
    """Equality after normalisation; of texts that it leaves nothing of, see `comparable`."""
    return float(comparable(prediction) == comparable(gold))


def f1(prediction: str, gold: str, *, yes_no_rule: bool = False) -> float:
    """Token F1 of the normalised texts, 0 to 1."""
    left, right = normalize(prediction), normalize(gold)
    if yes_no_rule and left != right and (left in _CLOSED or right in _CLOSED):
        return 0.0
    predicted, wanted = left.split(), right.split()
    if not predicted or not wanted:
        return exact_match(prediction, gold)
    common = sum((Counter(predicted) & Counter(wanted)).values())
    return 2 * common / (len(predicted) + len(wanted))


def contains(prediction: str, gold: str) -> float:
    """The gold answer stands in the prediction, on whole words after normalisation.

    A gold answer that normalisation leaves nothing of, such as 'A', must be the whole prediction: as a word it stands
    in almost every sentence.
    """
    wanted = normalize(gold)
    if not wanted:
        return exact_match(prediction, gold)
    return float(f" {wanted} " in f" {normalize(prediction)} ")


def accuracy(prediction: str, gold: str) -> float:
    """The literature's Acc (the paper's, FlashRAG's): the normalised gold answer is a part of the normalised
    prediction, be it within a word. One that normalisation leaves nothing of must be all of it, as in `contains`.
    """
    wanted = normalize(gold)
    return float(wanted in normalize(prediction)) if wanted else exact_match(prediction, gold)


@dataclass(frozen=True, slots=True)
class Score:
    """Scores of one prediction, each 0 to 1, best over the accepted answers."""

    em: float
    f1: float
    acc: float
    """The gold answer is contained in the prediction (see `accuracy`)."""
    acc_words: float
    """The same, on whole words alone."""


def score(prediction: str, answers: Sequence[str], dataset: str = "") -> Score:
    """Scores by the data set's official rules; `answers` are the answer and its aliases, at least one."""
    rule = re.sub(r"[^a-z0-9]", "", dataset.lower()) in _YES_NO_RULE

    def best(measure: Callable[[str, str], float]) -> float:
        return max(measure(prediction, gold) for gold in answers)

    return Score(
        em=best(exact_match),
        f1=best(lambda p, g: f1(p, g, yes_no_rule=rule)),
        acc=best(accuracy),
        acc_words=best(contains),
    )


def is_right(prediction: str, answers: Sequence[str], match: str) -> bool:
    """The filter's question: `match` is 'exact' or 'contains'."""
    measure = exact_match if match == "exact" else contains
    return any(measure(prediction, gold) for gold in answers)
