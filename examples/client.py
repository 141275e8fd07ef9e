"""Asks a served student many questions, 32 at a time, in their order.

    python examples/client.py http://127.0.0.1:8000 "First question?" "Second question?"

The server's token, where it has one, is read from STEPER_API_TOKEN.
"""

from __future__ import annotations

import asyncio
import os
import sys

from steper_ray import Client
from steper_ray.client import Answer


async def main(url: str, *questions: str) -> list[str]:
    """Returns the answers; of a question that failed, its error."""
    found = []
    async with Client(url, os.environ.get("STEPER_API_TOKEN")) as client:
        async for result in client.reason_many(questions, concurrency=32):
            found.append(result.text or "no answer" if isinstance(result, Answer) else f"failed: {result}")
            print(found[-1])
    return found


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
