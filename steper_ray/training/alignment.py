"""What the build's teacher said at each token of a chain, as far as the student's chain has the teacher's tokens.

A chain is tokenised again for training, from the text that was kept of each step. A token has the teacher's likeliest
ones where it and all before it in its step are the tokens that the teacher wrote: there both have read the same. Where
they part (a blank that was cleaned, words that were cut off), the rest of the step has none. No Ray, no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Any

import numpy as np
import numpy.typing as npt

from steper_ray.core.tokenizers import vocabulary_fingerprint
from steper_ray.schema import Step, TopLogprobs

#: In place of a token where nothing was said, or where the tokenizer has none of this number.
NONE = -1
_LEAST = -100.0  # a probability of nothing, as a number that can be multiplied by 0

Ints = npt.NDArray[np.int32]
Halves = npt.NDArray[np.float16]


def likeliest(pieces: Sequence[Sequence[int]], steps: Sequence[Step], tokenizer: Any) -> tuple[Ints, Halves]:
    """Of each token of the steps' `pieces` the teacher's likeliest tokens, and their log-probabilities.

    Both of shape (tokens, k), with k = 0 where no step has any of this tokenizer's. Raises ValueError for a
    log-probability that is no number.
    """
    tops = [_known(step.top_logprobs, tokenizer) for step in steps]
    width = min((len(top.ids) // len(top.written) for top in tops if top is not None), default=0)
    shape = sum(map(len, pieces)), width
    ids, logprobs = np.full(shape, NONE, np.int32), np.zeros(shape, np.float16)
    at = 0
    for piece, top in zip(pieces, tops, strict=True):
        if top is not None:
            same = takewhile(lambda pair: pair[0] == pair[1], zip(piece, top.written, strict=False))
            said = sum(1 for _ in same)
            for into, values in ((ids, top.ids), (logprobs, top.logprobs)):
                into[at : at + said] = np.reshape(values, (len(top.written), -1))[:said, :width]
        at += len(piece)
    if np.isnan(logprobs).any():
        raise ValueError("a log-probability of its teacher is no number")
    if width:
        ids[ids >= len(tokenizer)] = NONE
    return ids, np.maximum(logprobs, np.float16(_LEAST))


def _known(top: TopLogprobs | None, tokenizer: Any) -> TopLogprobs | None:
    return top if top is not None and top.vocabulary == vocabulary_fingerprint(tokenizer) else None
