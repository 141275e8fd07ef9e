"""vLLM in process: its asynchronous engine, with token ids in and token ids out.

The model runs in vLLM's own processes, started and ended with the generator; a script that makes one needs an
`if __name__ == "__main__"` guard. Prompts that share their beginning share its key-value cache. Nothing of a request is
logged, and vLLM sends no usage statistics unless the environment asks for it. vLLM is imported only when an engine is
made, because it reads its environment then.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from steper_ray.config import EngineConfig, SamplingConfig
from steper_ray.core.chat import end_of_turn
from steper_ray.core.copies import local_name
from steper_ray.core.errors import EngineDeadError, GenerationError, ModelError
from steper_ray.generation.agreement import LISTED, Agreement
from steper_ray.generation.base import Chunk, Prompt, likeliest_of
from steper_ray.generation.tokens import engine_tokenizer, fit_tokens, model_prompt
from steper_ray.generation.vllm_settings import ENVIRONMENT, lora_arguments, vllm_arguments
from steper_ray.generation.waiting import Deadline, Pulse
from steper_ray.models import resolve_model
from steper_ray.schema import Usage

_SHUTDOWN_S = 30.0  # then vLLM kills its processes; its own default is too short for a busy machine

NO_ADAPTERS: Mapping[str, str] = MappingProxyType({})

_CLOSED = "the engine was closed"
_DIED = "the vLLM engine died; its last words are on standard error"


class VllmGenerator:
    """Generates with any model that vLLM runs, on a CPU or on `tensor_parallel_size` GPUs of one machine.

    `adapters`: folders of LoRA adapters by name, for `adapted`. Raises ModelError if the model cannot be loaded. It may
    be made before an event loop runs or inside one, and is then used in one loop only.
    """

    def __init__(
        self, config: EngineConfig, adapters: Mapping[str, str] = NO_ADAPTERS, top_logprobs: int = 0
    ) -> None:
        self.tokenizer = engine_tokenizer(config)
        self._top_logprobs = top_logprobs
        self._max_model_len, self._timeout_s = config.max_model_len, config.timeout_s
        self._folder = resolve_model(config.model)
        adapters = {name: local_name(folder) for name, folder in adapters.items()}
        self._agreement = Agreement((self._folder, *adapters.values()), config.max_model_len)
        self._llm: Any = _start(config, adapters, max(LISTED, top_logprobs))  # None once it is closed
        self._adapters = adapters
        self._vocabulary: int = self._llm.model_config.get_vocab_size()
        self._open: set[str] = set()  # requests whose streams are being read
        self._pulse = Pulse()
        end = end_of_turn(self.tokenizer)
        self._ends = [] if end == self.tokenizer.eos_token_id else [end]

    @property
    def active(self) -> int:
        """Requests that are waiting or running in the engine."""
        return int(self._llm.get_num_unfinished_requests()) if self._llm is not None else 0

    def adapted(self, name: str) -> Adapted:
        """The engine as one of its adapters makes it. Requests of all of them run together."""
        from vllm.lora.request import LoRARequest

        number = list(self._adapters).index(name) + 1
        return Adapted(self, LoRARequest(name, number, self._adapters[name]))

    async def stream(
        self, prompt: Prompt, sampling: SamplingConfig, stop: Sequence[str] = (), adapter: Any = None
    ) -> AsyncGenerator[Chunk, None]:
        """See Generator. A prompt as text is tokenised with the begin-of-sequence token in front.

        The first request waits for the check of agreement.py; raises EngineSetupError where it fails.
        """
        ids = model_prompt(self.tokenizer, prompt, self._vocabulary)
        max_tokens = fit_tokens(len(ids), sampling.max_tokens, self._max_model_len)
        if self._llm is None:
            raise EngineDeadError(_CLOSED)
        await self._agreed(adapter)
        params = _params(sampling, max_tokens, stop, self._ends, self._top_logprobs)
        outputs = self._outputs(ids, params, adapter)
        deadline = Deadline(self._timeout_s)
        written = 0
        async with aclosing(outputs):
            output = await deadline.begin(anext(outputs), self._pulse)
            while True:
                self._pulse.beat()
                chunk = _chunk(output, written, self._top_logprobs)
                yield chunk
                if chunk.finish_reason is not None:
                    return
                written += len(chunk.token_ids)
                output = await deadline.wait(anext(outputs))

    async def check(self) -> None:
        """See Generator."""
        if self._llm is None:
            raise EngineDeadError(_CLOSED)
        if self._llm.errored:
            raise EngineDeadError(_DIED)

    async def close(self) -> None:
        """Ends the engine's processes; streams that are still open raise EngineDeadError. Closing twice is fine."""
        # The last reference goes with this call: an engine that lives on to the end of Python complains there.
        llm, self._llm = self._llm, None
        if llm is None:
            return
        if self._open and not llm.errored:
            await llm.abort(list(self._open))
        if llm.output_handler is not None:
            llm.output_handler.cancel()  # or it reports the end as a failure
        await asyncio.to_thread(llm.shutdown, timeout=_SHUTDOWN_S)

    async def _agreed(self, adapter: Any) -> None:
        """Waits for the one check that the engine runs the model, or this adapter, as it was trained."""
        folder = self._folder if adapter is None else self._adapters[adapter.lora_name]
        dtype = str(self._llm.model_config.dtype).removeprefix("torch.")
        check = self._agreement.check(folder, dtype, partial(self._next_tokens, adapter=adapter))
        await Deadline(self._timeout_s).wait(check)

    async def _next_tokens(self, ids: list[int], adapter: Any) -> dict[int, float]:
        """The most probable tokens after a prompt, with their log-probabilities."""
        from vllm.sampling_params import SamplingParams

        params = SamplingParams(temperature=0.0, max_tokens=1, logprobs=LISTED)
        async with aclosing(self._outputs(ids, params, adapter)) as outputs:
            async for output in outputs:
                (listed,) = output.outputs[0].logprobs
        return {token: at.logprob for token, at in listed.items()}

    async def _outputs(self, ids: list[int], params: Any, adapter: Any) -> AsyncGenerator[Any, None]:
        """vLLM's own stream of one request, with its errors as ours."""
        from vllm.exceptions import VLLMError
        from vllm.inputs import tokens_input

        llm, request_id = self._llm, uuid.uuid4().hex
        self._open.add(request_id)
        try:
            stream = llm.generate(tokens_input(ids), params, request_id, lora_request=adapter)
            async with aclosing(stream) as outputs:
                async for output in outputs:
                    reason = output.outputs[0].finish_reason
                    if reason not in (None, "stop", "length"):
                        raise (
                            EngineDeadError(_CLOSED)
                            if self._llm is None
                            else GenerationError(f"vLLM ended the request with '{reason}'")
                        )
                    yield output
        except VLLMError as error:
            if self._llm is None:
                raise EngineDeadError(_CLOSED) from error
            if llm.errored:
                raise EngineDeadError(_DIED) from error
            raise GenerationError(f"vLLM could not answer the request: {error.__cause__ or error}") from error
        finally:
            self._open.discard(request_id)


class Adapted:
    """One adapter of an engine; closing it closes the engine."""

    def __init__(self, engine: VllmGenerator, adapter: Any) -> None:
        self.tokenizer = engine.tokenizer
        self._engine, self._adapter = engine, adapter

    def stream(
        self, prompt: Prompt, sampling: SamplingConfig, stop: Sequence[str] = ()
    ) -> AsyncGenerator[Chunk, None]:
        return self._engine.stream(prompt, sampling, stop, self._adapter)

    async def check(self) -> None:
        await self._engine.check()

    async def close(self) -> None:
        await self._engine.close()


def _chunk(output: Any, written: int, top_logprobs: int = 0) -> Chunk:
    """The new part of an output; `written` counts the tokens of the ones before it."""
    delta = output.outputs[0]
    ids = tuple(delta.token_ids)
    listed = delta.logprobs or ()
    logprobs = tuple(at[token].logprob for token, at in zip(ids, listed, strict=True))
    if top_logprobs:
        values = ({token: one.logprob for token, one in at.items()} for at in listed)
        top = tuple(likeliest_of(one, top_logprobs) for one in values)
    else:
        top = ()
    # In every chunk: a stream that is cut after its first sentence has no last one.
    usage = Usage(len(output.prompt_token_ids), written + len(ids), output.num_cached_tokens or 0)
    return Chunk(delta.text, ids, logprobs, delta.finish_reason if output.finished else None, usage, top=top)


def _params(
    sampling: SamplingConfig, max_tokens: int, stop: Sequence[str], ends: list[int], top_logprobs: int = 0
) -> Any:
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    return SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        seed=sampling.seed,
        max_tokens=max_tokens,
        min_tokens=min(sampling.min_tokens, max_tokens),
        stop=[string for string in stop if string],
        stop_token_ids=ends,  # besides those of the model's generation config
        logprobs=top_logprobs,  # 0: of the sampled token alone
        output_kind=RequestOutputKind.DELTA,
    )


def _start(config: EngineConfig, adapters: Mapping[str, str], max_logprobs: int) -> Any:
    """A running AsyncLLM."""
    folder = resolve_model(config.model)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.platforms import current_platform
        from vllm.v1.engine.async_llm import AsyncLLM
    except ImportError as error:
        raise ModelError(
            f"engine.kind=vllm: vLLM cannot be imported ({error}): install one of the extras `cpu` and `gpu`, "
            "or set engine.kind=transformers"
        ) from error
    on_cpu = current_platform.is_cpu()
    try:
        return AsyncLLM.from_engine_args(
            AsyncEngineArgs(
                **vllm_arguments(config, on_cpu),
                **lora_arguments(adapters, on_cpu),
                model=folder,
                max_logprobs=max_logprobs,
                distributed_executor_backend=_executor(config, on_cpu),
                disable_log_stats=True,
            )
        )
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(f"vLLM cannot load model '{config.model}': {_reason(error)}") from error
    except RuntimeError as error:
        room = "VLLM_CPU_KVCACHE_SPACE, in GiB" if on_cpu else "engine.gpu_memory_utilization"
        raise ModelError(
            f"vLLM cannot load model '{config.model}': {error} Its own words are above, on standard error. If it is "
            f"memory: lower engine.max_model_len or engine.max_batch, or give the cache more room ({room})"
        ) from error


def _executor(config: EngineConfig, on_cpu: bool) -> Any:
    """The executor of the model: one process per GPU, or the engine's own process where one is enough.

    On a CPU vLLM 0.32 still starts a worker process, binds that of every engine to the same cores, and its engine
    spins on one more while it waits. In the engine's process the model's threads are as many as OMP_NUM_THREADS says,
    which Ray sets to an actor's CPUs. Who wants vLLM's binding asks for it in its own variable.
    """
    if config.tensor_parallel_size > 1:
        return "mp"  # else, inside of a Ray actor, vLLM places its workers itself, on other actors' GPUs
    if on_cpu and "VLLM_CPU_OMP_THREADS_BIND" not in os.environ:
        from vllm.v1.executor.uniproc_executor import UniProcExecutor

        return UniProcExecutor  # the class: vLLM overrules its name
    return None


def _reason(error: Exception) -> str:
    """The message, without the arguments that pydantic repeats in it."""
    if isinstance(error, ValidationError):
        return "; ".join(item["msg"].removeprefix("Value error, ") for item in error.errors())
    return str(error)
