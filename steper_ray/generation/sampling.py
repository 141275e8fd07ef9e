"""The next token of each row of a batch, greedy or drawn. A row's choice depends on its own logits and draw alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from steper_ray.config import SamplingConfig


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


def _draw(
    logits: torch.Tensor, samplings: Sequence[SamplingConfig], uniforms: Sequence[float | None]
) -> torch.Tensor:
    """Inverts the cumulative distribution of each row's nucleus at its uniform number."""

    def column(values: Sequence[float | None]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32, device=logits.device)[:, None]

    probs = (logits / column([s.temperature for s in samplings])).softmax(-1)
    probs, tokens = probs.sort(-1, descending=True)
    # The nucleus: tokens before which less than top_p of the mass lies. The first one always belongs to it.
    before = probs.cumsum(-1) - probs
    probs = probs.masked_fill(before >= column([s.top_p for s in samplings]), 0.0)
    mass = probs.cumsum(-1)
    rank = (mass <= column(uniforms) * mass[:, -1:]).sum(-1, keepdim=True)
    last = (probs > 0).sum(-1, keepdim=True) - 1
    return tokens.gather(-1, torch.minimum(rank, last))[:, 0]
