"""A clock that only sleeping moves, in place of time.monotonic and asyncio.sleep."""

import asyncio


class FakeTime:
    """`pauses` are the waits so far, which took no time."""

    def __init__(self):
        self.now, self.pauses = 0.0, []

    def __call__(self):
        return self.now

    async def sleep(self, seconds):
        self.pauses.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)
