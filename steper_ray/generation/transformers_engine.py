"""The embedded engine: a transformers model on one worker thread that serves all requests in one running batch.

Requests join and leave between decoding steps, so none waits for the slowest. The generator may be made before or
inside an event loop and used from any loop: each stream gets its chunks on the loop that reads it. The tokenizer it
shows belongs to the caller's side; the worker decodes with a copy, because tokenizers are not safe across threads.
"""

from __future__ import annotations

import asyncio
import copy
import queue
import threading
from collections.abc import AsyncGenerator, Iterable, Sequence

import torch

from steper_ray.config import EngineConfig, SamplingConfig
from steper_ray.core.errors import EngineDeadError, GenerationError, ModelError
from steper_ray.generation.base import Chunk, Prompt
from steper_ray.generation.batch import Batch, Running, is_out_of_memory, next_group
from steper_ray.generation.loading import end_ids, load_for
from steper_ray.generation.tokens import (
    Decode,
    decoder_of,
    engine_tokenizer,
    fit_tokens,
    model_prompt,
)
from steper_ray.generation.waiting import Deadline, Pulse

# Tokens of one prefill pass, and of all passes between two decoding steps: what running sequences wait for at most.
# On a CPU (measured with the miniature model) larger passes are slower per token.
_PREFILL_TOKENS = {"cpu": 2048, "cuda": 16384}


class TransformersGenerator:
    """Generates with a Hugging Face causal language model of full attention layers.

    Raises ModelError if the model cannot be loaded or run this way. `close` ends the worker thread.
    """

    def __init__(self, config: EngineConfig, top_logprobs: int = 0) -> None:
        self.tokenizer = engine_tokenizer(config)
        self.model = load_for(config)
        self._max_model_len, self._timeout_s = config.max_model_len, config.timeout_s
        self._vocabulary = self.model.get_input_embeddings().weight.shape[0]
        self._decode: Decode = decoder_of(copy.deepcopy(self.tokenizer))
        self._pulse = Pulse()
        ends = end_ids(self.model, self.tokenizer)
        size = config.max_batch, config.max_model_len
        self._worker = _Worker(Batch(self.model, ends, *size, top_logprobs))

    @property
    def active(self) -> int:
        """Sequences in the running batch."""
        return self._worker.active

    async def stream(
        self, prompt: Prompt, sampling: SamplingConfig, stop: Sequence[str] = ()
    ) -> AsyncGenerator[Chunk, None]:
        """See Generator. A prompt as text is tokenised with the begin-of-sequence token in front."""
        ids = model_prompt(self.tokenizer, prompt, self._vocabulary)
        max_tokens = fit_tokens(len(ids), sampling.max_tokens, self._max_model_len)
        request = _Request(ids, max_tokens, sampling, stop, self._decode)
        deadline = Deadline(self._timeout_s)
        self._worker.submit(request)
        try:
            item = await deadline.begin(request.inbox.get(), self._pulse)
            while True:
                self._pulse.beat()
                if isinstance(item, GenerationError):
                    raise item
                yield item
                if item.finish_reason is not None:
                    return
                item = await deadline.wait(request.inbox.get())
        finally:
            request.closed = True

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Takes new values of some weights, by their names in the model, and forgets what the old ones computed.

        While no request is under way. Raises ModelError for a name that the model has not, or another shape.
        """
        own = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, weight in weights:
                if name not in own or own[name].shape != weight.shape:
                    raise ModelError(
                        f"the engine's model has no weight {name} of shape {tuple(weight.shape)}"
                    )
                own[name].copy_(weight)
        self._worker.forget()

    async def check(self) -> None:
        """See Generator."""
        self._worker.check()

    async def close(self) -> None:
        """Ends the worker; streams that are still open raise EngineDeadError. Closing twice is fine."""
        await asyncio.to_thread(self._worker.close)


class _OutOfMemoryError(GenerationError):
    """A prefill for which there was no memory."""


class _Request(Running):
    """A running sequence and the reader of its stream. `closed` is set by the reader and seen by the worker."""

    def __init__(
        self,
        prompt: list[int],
        max_tokens: int,
        sampling: SamplingConfig,
        stop: Sequence[str],
        decode: Decode,
    ) -> None:
        super().__init__(prompt, max_tokens, sampling, stop, decode)
        self.loop = asyncio.get_running_loop()
        self.inbox: asyncio.Queue[Chunk | GenerationError] = asyncio.Queue()
        self.closed = False


class _Worker:
    """The thread that owns the batch. Every submitted request ends in a last chunk, in an error, or closed."""

    def __init__(self, batch: Batch[_Request]) -> None:
        self._batch = batch
        self._waiting: list[_Request] = []
        self._arrived: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        self._lock = threading.Lock()  # guards _end: nothing arrives after the worker has ended
        self._end: str | None = None
        self._prefill_tokens = _PREFILL_TOKENS[batch.device_type]
        self._thread = threading.Thread(target=self._run, name="transformers-engine", daemon=True)
        self._thread.start()

    @property
    def active(self) -> int:
        return len(self._batch.rows)

    def check(self) -> None:
        """Raises EngineDeadError once the worker has ended."""
        with self._lock:
            self._check()

    def forget(self) -> None:
        """Drops the keys and values of earlier prompts, which no running sequence needs."""
        if self._batch.rows or self._waiting:
            raise EngineDeadError("the weights were changed while requests were under way")
        self._batch.release()

    def submit(self, request: _Request) -> None:
        with self._lock:
            self._check()
            self._arrived.put(request)

    def _check(self) -> None:
        if self._end is not None:
            raise EngineDeadError(self._end)

    def close(self) -> None:
        with self._lock:
            self._end = self._end or "the engine was closed"
            self._arrived.put(None)
        self._thread.join()

    def _run(self) -> None:
        try:
            with torch.inference_mode():
                while self._receive():
                    self._drop_closed()
                    self._admit()
                    self._step()
        finally:
            self._finish()

    def _receive(self) -> bool:
        """Takes what has arrived, and waits for it if there is nothing else to do. False: close."""
        idle = not (self._waiting or self._batch.rows)
        while idle or not self._arrived.empty():
            request = self._arrived.get()
            if request is None:
                return False
            self._waiting.append(request)
            idle = False
        return True

    def _drop_closed(self) -> None:
        self._waiting = [request for request in self._waiting if not request.closed]
        rows = list(self._batch.rows)
        for at in reversed(range(len(rows))):
            if rows[at].closed:
                self._batch.remove(at)

    def _admit(self) -> None:
        """Prefills the oldest waiting requests, as far as rows are free and the running ones are not kept long."""
        budget = self._prefill_tokens
        while self._waiting and budget > 0 and (room := self._batch.max_rows - self.active) > 0:
            group = next_group(self._waiting, room, self._prefill_tokens)
            chosen = set(map(id, group))
            self._waiting = [request for request in self._waiting if id(request) not in chosen]
            budget -= sum(request.length + 1 for request in group)
            self._join(group)

    def _join(self, group: list[_Request]) -> None:
        """Prefills the group. If memory runs out, once more after freeing what can be spared; then one by one.

        A request that fails alone ends in an error.
        """
        failed = self._try_join(group)
        if isinstance(failed, _OutOfMemoryError) and self._batch.release():
            failed = self._try_join(group)
        if failed is None:
            return
        if len(group) == 1:
            _deliver([(group[0], failed)])
            return
        for request in group:
            self._join([request])

    def _try_join(self, group: list[_Request]) -> GenerationError | None:
        """The error, if there was one, without the failed pass' traceback, which would keep its memory."""
        try:
            self._batch.join(group)
        except torch.AcceleratorError:
            raise  # the device itself is lost: no later request could succeed
        except RuntimeError as error:
            if not is_out_of_memory(error):
                return GenerationError(f"the model failed on the prompt: {error}")
            fix = "lower engine.max_batch or engine.max_model_len"
            return _OutOfMemoryError(f"out of memory on the prompt ({fix}): {error}")
        return None

    def _step(self) -> None:
        rows = list(self._batch.rows)
        if not rows:
            return
        try:
            _deliver(self._batch.step())
            return
        except torch.AcceleratorError:
            raise
        except RuntimeError as error:
            failed = GenerationError(f"the model failed on a step: {error}")
        # Here and not above, where the error's traceback would keep the failed pass in memory.
        self._batch.clear()
        if len(rows) == 1:
            _deliver([(rows[0], failed)])
        else:
            self._step_alone(rows)

    def _step_alone(self, requests: list[_Request]) -> None:
        """Each request's next token, with no other in the batch: the one that the model fails on fails for itself.

        The others then wait to join again, before those that came later.
        """
        going_on = []
        for request in requests:
            self._join([request])
            self._step()
            if self._batch.rows:
                self._batch.remove(0)
                going_on.append(request)
        self._waiting = going_on + self._waiting

    def _finish(self) -> None:
        """Ends every wait, however the worker ended."""
        with self._lock:
            self._end = self._end or "the engine's worker thread failed; its traceback is on standard error"
            left = [*self._batch.rows, *self._waiting]
            while not self._arrived.empty():
                if (request := self._arrived.get()) is not None:
                    left.append(request)
        self._batch.clear()
        _deliver((request, EngineDeadError(self._end)) for request in left)


def _deliver(items: Iterable[tuple[_Request, Chunk | GenerationError]]) -> None:
    """Hands items to their readers, with one wake-up an event loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[_Request, Chunk | GenerationError]]] = {}
    for request, item in items:
        by_loop.setdefault(request.loop, []).append((request, item))
    for loop, some in by_loop.items():
        try:
            loop.call_soon_threadsafe(_put, some)
        except RuntimeError:  # the loop was closed with streams open: they are no longer read
            for request, _ in some:
                request.closed = True


def _put(items: Sequence[tuple[_Request, Chunk | GenerationError]]) -> None:
    for request, item in items:
        request.inbox.put_nowait(item)
