"""A client of the reasoner endpoint: one question, its events as they come, or many questions side by side.

    async with Client("http://127.0.0.1:8000") as client:
        answer = await client.reason("Who is the mother of the mayor of Grelstus?")

What the server refuses for the moment is asked again, when it says, and so is a question whose answer was lost on the
way: the server then reasons it again. Leaving a call (a cancelled task, a closed
stream) aborts the question on the server. It needs no Ray and no torch, and logs nothing.
"""

from __future__ import annotations

import asyncio
import time
from asyncio import sleep
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import aclosing
from random import Random
from types import TracebackType
from typing import Any

import httpx

from steper_ray.client.replies import (
    SILENT,
    AccessError,
    Answer,
    BusyError,
    Event,
    FailedError,
    ReasonerError,
    UnreachableError,
    answer_of,
    events,
    parse,
    read,
    refusal,
)
from steper_ray.generation.endpoint.retrying import backoff, retry_after
from steper_ray.serving.wire import ReasonResponse, Stop, Unit

#: The question did not arrive, or nothing came back.
_LOST = (httpx.NetworkError, httpx.RemoteProtocolError, httpx.ConnectTimeout)


class Client:
    """Asks one server. Use it in one event loop; `async with` closes its connections.

    `token`: the server's, where it has one. `timeout_s`: longest silence of the server, more than its own deadline.
    `retries`: further attempts of a question that was refused for the moment, or never arrived. `transport`: httpx's,
    for your own proxies and certificates.
    """

    def __init__(
        self,
        url: str,
        token: str | None = None,
        *,
        timeout_s: float = 120.0,
        retries: int = 5,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._url, self._retries, self._rng = url, retries, Random()
        headers: dict[bytes, bytes] = {} if token is None else {b"authorization": b"Bearer " + token.encode()}
        self._http = httpx.AsyncClient(
            base_url=url,
            headers=headers,
            timeout=httpx.Timeout(timeout_s, connect=10.0, pool=None),
            # How many are asked at once is the caller's business; httpx's own limit would let them wait in silence.
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
            transport=transport,
        )

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def reason(
        self,
        question: str,
        *,
        model: str | None = None,
        unit: Unit | None = None,
        max_steps: int | None = None,
        stop: Stop | None = None,
    ) -> Answer:
        """Asks the student `model`, by default the server's first. Raises ReasonerError, by its subclass."""
        async with aclosing(
            await self._open(_body(question, model, unit, max_steps, stop, stream=False))
        ) as reply:
            return answer_of(parse(ReasonResponse, await read(reply)))

    async def stream(
        self,
        question: str,
        *,
        model: str | None = None,
        unit: Unit | None = None,
        max_steps: int | None = None,
        stop: Stop | None = None,
    ) -> AsyncGenerator[Event, None]:
        """The events of the reasoning, the Answer last. Raises ReasonerError, by its subclass; what has begun is not
        asked again."""
        async with aclosing(
            await self._open(_body(question, model, unit, max_steps, stop, stream=True))
        ) as reply:
            event: Event | None = None
            async with aclosing(events(reply)) as told:
                async for event in told:
                    yield event
            if not isinstance(event, Answer):
                raise FailedError("the stream ended before its answer")

    async def reason_many(
        self,
        questions: Iterable[str],
        *,
        concurrency: int = 16,
        model: str | None = None,
        unit: Unit | None = None,
        max_steps: int | None = None,
        stop: Stop | None = None,
    ) -> AsyncGenerator[Answer | ReasonerError, None]:
        """The answer of each question in the questions' order, as soon as those before it are there.

        `concurrency` questions are under way at once, and at most twice as many are taken ahead of what was yielded.
        An error of one question stands in its place; AccessError and UnreachableError, which no later question would
        escape, are raised. Closing the generator aborts what is under way.
        """
        if concurrency < 1:
            raise ValueError("concurrency: must be 1 or more")
        gate = asyncio.Semaphore(concurrency)

        async def one(question: str) -> Answer | ReasonerError:
            async with gate:
                try:
                    return await self.reason(question, model=model, unit=unit, max_steps=max_steps, stop=stop)
                except (AccessError, UnreachableError):
                    raise
                except ReasonerError as error:
                    return error

        tasks: deque[asyncio.Task[Answer | ReasonerError]] = deque()
        rest = iter(questions)
        try:
            while _fill(tasks, rest, 2 * concurrency, lambda text: asyncio.create_task(one(text))):
                yield await tasks[0]
                tasks.popleft()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _open(self, body: dict[str, Any]) -> httpx.Response:
        """A reply with status 200, not read yet, after as many attempts as it takes. Raises ReasonerError."""
        attempt = 0
        while True:
            attempt += 1
            least_s = 0.0
            error: ReasonerError
            try:
                request = self._http.build_request("POST", "v1/reason", json=body)
                reply = await self._http.send(request, stream=True)
            except _LOST as lost:
                error = UnreachableError(f"{self._url}: {lost or type(lost).__name__}")
            except httpx.TimeoutException as silent:
                raise FailedError(SILENT) from silent
            else:
                if reply.status_code == 200:
                    return reply
                async with aclosing(reply):
                    error = refusal(reply.status_code, await read(reply))
                least_s = retry_after(reply.headers, time.time())
            if attempt > self._retries or not isinstance(error, BusyError | UnreachableError):
                raise error
            await sleep(backoff(attempt, self._rng, least_s))


def _fill(
    tasks: deque[asyncio.Task[Any]],
    questions: Iterator[str],
    most: int,
    begin: Callable[[str], asyncio.Task[Any]],
) -> bool:
    """Begins questions until there are `most` tasks or no more questions; whether there is any task."""
    while len(tasks) < most and (question := next(questions, None)) is not None:
        tasks.append(begin(question))
    return bool(tasks)


def _body(
    question: str,
    model: str | None,
    unit: Unit | None,
    max_steps: int | None,
    stop: Stop | None,
    *,
    stream: bool,
) -> dict[str, Any]:
    fields = {
        "question": question,
        "model": model,
        "stream": stream,
        "unit": unit,
        "max_steps": max_steps,
        "stop": stop,
    }
    return {name: value for name, value in fields.items() if value is not None}
