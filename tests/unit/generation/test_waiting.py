"""The time of a generation: what counts, and what does not. On a loop whose clock jumps instead of waiting."""

import asyncio
from types import SimpleNamespace

import pytest

from steper_ray.config import SamplingConfig
from steper_ray.core.errors import GenerationError
from steper_ray.generation import generate
from steper_ray.generation.vllm_engine import VllmGenerator
from steper_ray.generation.waiting import Deadline, DeadlineError, Pulse

GREEDY = SamplingConfig(max_tokens=12)


class JumpingLoop(asyncio.SelectorEventLoop):
    """Its time goes on to the next timer at once when nothing else is to do."""

    def __init__(self):
        super().__init__()
        self._now, select = 0.0, self._selector.select

        def jump(timeout=None):
            self._now += timeout or 0.0
            return select(0)

        self._selector.select = jump

    def time(self):
        return self._now


def run(coroutine):
    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        return runner.run(coroutine)


async def beating(pulse, times, every_s):
    for _ in range(times):
        await asyncio.sleep(every_s)
        pulse.beat()


def test_a_request_waits_in_the_queue_as_long_as_the_engine_answers_others():
    async def first_answer():
        pulse, deadline = Pulse(), Deadline(10)
        others = asyncio.create_task(beating(pulse, times=20, every_s=9))
        assert await deadline.begin(asyncio.sleep(185, "mine"), pulse) == "mine"
        await others
        assert deadline.left == pytest.approx(10)  # its own time begins with its first answer
        with pytest.raises(DeadlineError, match=r"10 s \(engine\.timeout_s\)"):
            await deadline.wait(asyncio.sleep(11))

    run(first_answer())


@pytest.mark.parametrize(("beats", "over_at"), [(0, 10), (3, 37)])
def test_an_engine_that_answers_nobody_any_more_is_waited_for_no_longer(beats, over_at):
    async def no_answer():
        pulse, deadline = Pulse(), Deadline(10)
        others = asyncio.create_task(beating(pulse, beats, every_s=9))
        mine = asyncio.create_task(asyncio.Event().wait())
        with pytest.raises(DeadlineError):
            await deadline.begin(mine, pulse)
        assert asyncio.get_running_loop().time() == pytest.approx(over_at)
        assert mine.cancelled()
        await others

    run(no_answer())


def test_a_reader_that_leaves_the_queue_cancels_its_request():
    async def left():
        mine = asyncio.create_task(asyncio.Event().wait())
        waiting = asyncio.create_task(Deadline(10).begin(mine, Pulse()))
        await asyncio.sleep(1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert mine.cancelled()

    run(left())


class OneByOne(VllmGenerator):
    """vLLM's side scripted: it answers one request at a time, with a token a second."""

    def __init__(self, timeout_s):
        self.tokenizer, self._vocabulary, self._max_model_len = None, 100, 100
        self._timeout_s, self._llm, self._pulse = timeout_s, object(), Pulse()
        self._turn, self.ended, self._ends, self._top_logprobs = asyncio.Lock(), [], [], 0

    async def _agreed(self, adapter):
        pass

    async def _outputs(self, ids, params, adapter):
        try:
            async with self._turn:
                for n in range(1, 9):
                    await asyncio.sleep(1 if ids != [7] else 1000)
                    end = "stop" if n == 8 else None
                    known = [{n: SimpleNamespace(logprob=-0.5)}]
                    token = SimpleNamespace(token_ids=[n], logprobs=known, text="a", finish_reason=end)
                    yield SimpleNamespace(
                        outputs=[token], finished=n == 8, prompt_token_ids=ids, num_cached_tokens=0
                    )
        finally:
            self.ended.append(ids)


def test_vllms_queue_does_not_count_and_a_request_that_hangs_runs_into_its_time(monkeypatch):
    monkeypatch.setattr("steper_ray.generation.vllm_engine._params", lambda *args: None)

    async def ask():
        engine = OneByOne(timeout_s=10)
        together = await asyncio.gather(*(generate(engine, [n], GREEDY) for n in range(5)))
        assert [done.text for done in together] == ["a" * 8] * 5
        assert asyncio.get_running_loop().time() == 40
        with pytest.raises(GenerationError, match=r"engine\.timeout_s"):
            await generate(engine, [7], GREEDY)
        assert engine.ended[-1] == [7]

    run(ask())
