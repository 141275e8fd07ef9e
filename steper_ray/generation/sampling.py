"""The next token of each row of a batch, greedy or drawn. A row's choice depends on its own logits and draw alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from steper_ray.config import SamplingConfig
from steper_ray.generation.base import Likeliest


def draws(sampling: SamplingConfig, count: int) -> tuple[float, ...]:
    """One uniform number in [0, 1) for each token of a request, from its own seed; none for greedy decoding."""
    if sampling.temperature == 0:
        return ()
    generator = torch.Generator().manual_seed(sampling.seed)
    return tuple(torch.rand(count, generator=generator, dtype=torch.float64).tolist())


def choose(
    logits: torch.Tensor,
    samplings: Sequence[SamplingConfig],
    uniforms: Sequence[float | None],
    barred: torch.Tensor | None = None,
) -> tuple[list[int], list[float]]:
    """Token ids and their log-probabilities under the model (before temperature, top-p and `barred`).

    `logits` is [rows, vocabulary]; a row is drawn where its uniform number is given, else it is greedy. `barred`, of
    the same shape, is true where a token may not be chosen.
    """
    logits = logits.float()
    allowed = logits if barred is None else logits.masked_fill(barred, -torch.inf)
    chosen = allowed.argmax(-1)
    drawn = [row for row, uniform in enumerate(uniforms) if uniform is not None]
    if drawn:
        at = torch.tensor(drawn, device=logits.device)
        chosen[at] = _draw(allowed[at], [samplings[row] for row in drawn], [uniforms[row] for row in drawn])
    logprobs = logits.gather(-1, chosen[:, None])[:, 0] - logits.logsumexp(-1)
    return chosen.tolist(), logprobs.tolist()


def likeliest(logits: torch.Tensor, count: int) -> list[tuple[Likeliest, ...]]:
    """Of each row of [rows, vocabulary] its `count` likeliest tokens, in a tuple of one; empty for a count of 0."""
    if not count:
        return [()] * len(logits)
    logprobs, ids = logits.float().log_softmax(-1).topk(min(count, logits.shape[-1]))
    rows = zip(ids.tolist(), logprobs.tolist(), strict=True)
    return [(tuple(zip(*row, strict=True)),) for row in rows]


def _draw(
    logits: torch.Tensor, samplings: Sequence[SamplingConfig], uniforms: Sequence[float | None]
) -> torch.Tensor:
    """Draws from each row's nucleus by Gumbel noise, which the row's uniform number seeds.

    The largest noisy logit is a draw from the softmax. It hardly ever depends on the last bits of the logits, which
    differ with the company of a row; the inverse of a cumulative distribution often does.
    """
    found = []
    for row, sampling, uniform in zip(logits, samplings, uniforms, strict=True):
        assert uniform is not None
        row = row / sampling.temperature
        if sampling.top_p < 1:
            row = row.masked_fill(~_nucleus(row.softmax(-1), sampling.top_p), -torch.inf)
        generator = torch.Generator().manual_seed(int(uniform * 2**62))
        noise = torch.rand(len(row), generator=generator, dtype=torch.float64)
        found.append((row - (-noise.log()).log().to(row)).argmax(-1))
    return torch.stack(found)


def _nucleus(probs: torch.Tensor, top_p: float) -> torch.Tensor:
    """Mask of the tokens with less than `top_p` of the mass before them; the likeliest one is always among them."""
    probs, tokens = probs.sort(-1, descending=True)
    return torch.zeros_like(tokens, dtype=torch.bool).scatter(-1, tokens, probs.cumsum(-1) - probs < top_p)
