"""What the web side asks Serve's controller about its engines."""

import asyncio
import threading

from steper_ray.serving import handles
from steper_ray.serving.handles import EngineClient


async def test_probes_that_come_together_put_one_question_to_the_controller(monkeypatch):
    asked, answers = [], threading.Event()

    def state(handle):
        asked.append(handle)
        answers.wait(10)
        return handles._State(running=True, coming=False)

    monkeypatch.setattr(handles, "_state", state)
    client = EngineClient("handle")
    probes = [asyncio.ensure_future(client.ready()) for _ in range(20)]
    while not asked:
        await asyncio.sleep(0)
    left = probes.pop()
    left.cancel()  # its question is the others' too
    answers.set()
    assert await asyncio.gather(*probes) == [True] * 19
    assert await client.ready()
    assert asked == ["handle"]
    assert left.cancelled()
