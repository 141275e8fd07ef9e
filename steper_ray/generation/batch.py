"""The sequences that a transformers model runs together, each at its own length, and one decoding step of them all.

A sequence joins by a prefill of its prompt but the last token; that token is the first one it decodes, so every
sampled token comes from the same code. It leaves the moment it ends. Greedy results do not depend on who else is in
the batch (up to rounding). It knows no threads and no event loops.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import torch

from steper_ray.config import SamplingConfig
from steper_ray.generation.base import Chunk, Likeliest
from steper_ray.generation.prefixes import Prefix, PrefixStore
from steper_ray.generation.sampling import choose, draws, likeliest
from steper_ray.generation.slots import SlotCache
from steper_ray.generation.stops import StopStrings
from steper_ray.generation.tokens import Decode, Detokenizer
from steper_ray.schema import Usage

# A shorter prompt is padded to a longer one in the same pass only within this share of its length: on a CPU a pass
# over one prompt is nearly as fast per token as a pass over many, so padding soon costs more than it saves.
_SIMILAR = 7 / 8


class Running:
    """One sequence, from its prompt to its end. `max_tokens` must fit into the model after the prompt.

    It may leave a batch before its end and join again: it continues where it stopped.
    """

    def __init__(
        self,
        prompt: list[int],
        max_tokens: int,
        sampling: SamplingConfig,
        stop: Sequence[str],
        decode: Decode,
    ) -> None:
        self.prompt = prompt
        self.sampling = sampling
        self.next_token = prompt[-1]
        self.length = len(prompt) - 1  # tokens in the cache, once it has joined
        self.cached = 0  # of them, those that were not computed for this sequence
        self._max_tokens = max_tokens
        self._written: list[int] = []
        self._uniforms = draws(sampling, max_tokens)
        self._detokenizer = Detokenizer(decode, prompt)
        self._stop = StopStrings(stop)

    @property
    def may_end(self) -> bool:
        """Whether the next token may be an end of sequence."""
        return len(self._written) >= self.sampling.min_tokens

    @property
    def uniform(self) -> float | None:
        """The draw of the next token; None if it is greedy."""
        return self._uniforms[len(self._written)] if self._uniforms else None

    @property
    def tokens(self) -> list[int]:
        """The prompt and the tokens written after it without the last: what is read when it joins."""
        return [*self.prompt, *self._written]

    def accept(self, token: int, logprob: float, is_end: bool, top: tuple[Likeliest, ...] = ()) -> Chunk:
        """Takes the next token; the chunk that ends the sequence has a finish reason."""
        self.next_token = token
        self.length += 1
        self._written.append(token)
        text, stopped = ("", False) if is_end else self._stop.push(self._detokenizer.push(token))
        stopped = stopped or is_end
        usage = Usage(len(self.prompt), len(self._written), self.cached)
        if not stopped and len(self._written) < self._max_tokens:
            return Chunk(text, (token,), (logprob,), None, usage, top=top)
        reason = "stop" if stopped else "length"
        return Chunk(text + self._stop.flush(), (token,), (logprob,), reason, usage, top=top)


R = TypeVar("R", bound=Running)


def next_group(waiting: Sequence[R], room: int, max_tokens: int) -> list[R]:
    """The oldest waiting sequence and those of similar length that fit into one pass with it, oldest first.

    At most `room` of them, and at most `max_tokens` with padding (a longer prompt goes alone).
    """
    longest = shortest = waiting[0].length + 1
    group: list[R] = []
    for sequence in waiting:
        size = sequence.length + 1
        high, low = max(longest, size), min(shortest, size)
        if not group or (low >= _SIMILAR * high and high * (len(group) + 1) <= max_tokens):
            group.append(sequence)
            longest, shortest = high, low
        if len(group) == room:
            break
    return group


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether memory ran out: a GPU's, or by its message a CPU's, for which torch has no error class."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


class Batch(Generic[R]):
    """Runs on one thread. `end_ids` end a sequence; `rows` are the sequences under way.

    Each chunk has `top_logprobs` of the likeliest tokens.
    """

    def __init__(
        self,
        model: Any,
        end_ids: frozenset[int],
        max_rows: int,
        max_model_len: int,
        top_logprobs: int = 0,
    ) -> None:
        self.rows: list[R] = []
        self._top_logprobs = top_logprobs
        self.max_rows = max_rows
        self._model, self._end_ids, self._max_model_len = model, end_ids, max_model_len
        self._cache = self._new_cache()
        # As much as the batch itself may hold: there are more trajectories than rows.
        self._prefixes = PrefixStore(max_rows * max_model_len)

    @property
    def device_type(self) -> str:
        """'cpu' or 'cuda'."""
        return str(self._model.device.type)

    def join(self, group: Sequence[R]) -> None:
        """Prefills the prompts of a group: in one pass, except those that begin like an earlier prompt from there on.

        If it raises, none of them has joined; if for want of memory, it may succeed after `release`.
        """
        known = {id(s): found for s in group if (found := self._prefixes.take(s.tokens[:-1])) is not None}
        fresh = [sequence for sequence in group if id(sequence) not in known]
        rest = [sequence for sequence in group if id(sequence) in known]
        self._prefill(fresh)
        for row, sequence in enumerate(rest, len(self.rows) + len(fresh)):
            self._extend(row, sequence, *known[id(sequence)])
        self.rows.extend([*fresh, *rest])

    def release(self) -> bool:
        """Frees what the running sequences do not need: kept prompts, and all slots if none runs. False: nothing."""
        kept = self._prefixes.clear()
        if self.rows:
            return kept
        held = self._cache.is_used
        self._cache = self._new_cache()
        return kept or held

    def _prefill(self, group: Sequence[R]) -> None:
        for sequence in group:
            sequence.cached = 0
        columns = max((sequence.length for sequence in group), default=0)
        if not columns:
            return
        ids = torch.zeros((len(group), columns), dtype=torch.long)
        for row, sequence in enumerate(group):
            ids[row, : sequence.length] = torch.tensor(sequence.tokens[:-1])
        self._cache.prefill(len(self.rows), len(group), columns)
        # Padding lies to the right, where causal attention does not look: no mask, the fastest kernels.
        self._forward(ids.to(self._model.device))

    def _extend(self, row: int, sequence: R, prefix: Prefix, shared: int) -> None:
        device, end = self._model.device, sequence.length
        self._cache.extend(row, prefix.states, shared, end)
        sequence.cached = min(shared, len(sequence.prompt))
        if shared < end:
            positions = torch.arange(shared, end, device=device)
            seen = torch.arange(end, device=device) <= positions[:, None]
            ids = torch.tensor([sequence.tokens[shared:end]], device=device)
            self._forward(ids, attention_mask=seen[None, None], position_ids=positions[None])

    def step(self) -> list[tuple[R, Chunk]]:
        """One more token of each row. Those that end have left the batch when this returns.

        If it raises, the cache cannot be trusted any more: call `clear`.
        """
        device, rows = self._model.device, list(self.rows)
        ends = torch.tensor([row.length for row in rows], device=device)
        columns = max(row.length for row in rows) + 1
        self._cache.decode(ends, columns)
        unseen = torch.arange(columns, device=device) > ends[:, None]
        mask = torch.zeros(unseen.shape, dtype=self._model.dtype, device=device)
        mask.masked_fill_(unseen, torch.finfo(mask.dtype).min)
        tokens = torch.tensor([[row.next_token] for row in rows], device=device)
        logits = self._forward(tokens, attention_mask=mask[:, None, None], position_ids=ends[:, None])
        last = logits[:, -1]
        ids, logprobs = choose(
            last, [row.sampling for row in rows], [row.uniform for row in rows], self._barred(last)
        )
        tops = likeliest(last, self._top_logprobs)
        chunks = [
            (row, row.accept(token, logprob, token in self._end_ids, top))
            for row, token, logprob, top in zip(rows, ids, logprobs, tops, strict=True)
        ]
        for at in reversed(range(len(rows))):
            if chunks[at][1].finish_reason is not None:
                self.remove(at)
        return chunks

    def remove(self, at: int) -> None:
        """Row `at` leaves; the last row takes its place. The beginning of its prompt may serve another one."""
        left = self.rows[at].prompt[:-1]
        try:
            if left:
                self._prefixes.put(left, self._cache.states(at, len(left)))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            self._prefixes.clear()  # what is kept for speed must never cost a request
        last = self.rows.pop()
        if at < len(self.rows):
            self.rows[at] = last
            self._cache.move(len(self.rows), at, last.length)

    def clear(self) -> None:
        """Drops all rows and the cache."""
        self.rows.clear()
        self._prefixes.clear()
        self._cache = self._new_cache()

    def _barred(self, logits: torch.Tensor) -> torch.Tensor | None:
        """The ends of sequence, in the rows that may not end yet; None where all may."""
        early = [at for at, row in enumerate(self.rows) if not row.may_end]
        if not early:
            return None
        barred = torch.zeros_like(logits, dtype=torch.bool)
        barred[torch.tensor(early)[:, None], torch.tensor(sorted(self._end_ids))] = True
        return barred

    def _forward(self, ids: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        out = self._model(
            input_ids=ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1, **kwargs
        )
        logits: torch.Tensor = out.logits
        return logits

    def _new_cache(self) -> SlotCache:
        layers = self._model.config.get_text_config().num_hidden_layers
        return SlotCache(layers, self.max_rows, self._max_model_len)
