"""Checks that an engine gives a student's probes the log-probabilities that the student had when it was exported.

An engine with its own implementation of an architecture may compute another model than the one that was trained. A
model without probes (core/probes.py) is not checked. Knows no engine.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from steper_ray.core.errors import EngineSetupError
from steper_ray.core.probes import PROBES, Probe, Probes, read_probes

logger = logging.getLogger(__name__)

#: Log-probabilities of the most probable next tokens after a prompt, by token id; as many as LISTED of them.
NextTokens = Callable[[list[int]], Awaitable[Mapping[int, float]]]
LISTED = 20

#: Mean difference of log-probabilities from which the check warns, and from which it refuses. Two implementations of
#: one model in float32 differ by about 1e-5. In bfloat16 a logit above 16 is a multiple of 1/8, on both sides: the same
#: model differs by 0.05 on average. GPT-NeoX in vLLM 0.32, another model than in transformers, differs by 0.4.
_FLOAT32, _BFLOAT16 = (1e-3, 2e-2), (0.1, 0.3)


class Agreement:
    """One check of each model or adapter that an engine runs, by folder. For one event loop.

    `context` is the engine's: longer probes are omitted. Raises ModelError for probes that cannot be read.
    """

    def __init__(self, folders: Iterable[str], context: int) -> None:
        self._probes: dict[str, Probes] = {}
        self._checks: dict[str, asyncio.Future[None]] = {}
        for folder in folders:
            if (found := read_probes(Path(folder))) is not None:
                fitting = tuple(probe for probe in found.probes if len(probe.prompt) < context)
                self._probes[folder] = replace(found, probes=fitting)

    async def check(self, folder: str, dtype: str, next_tokens: NextTokens) -> None:
        """Compares once, in the engine's `dtype`; every caller waits for the result.

        Logs a warning, or raises EngineSetupError, where the difference is more than rounding. What `next_tokens`
        raises is raised, and the next caller tries again.
        """
        probes = self._probes.get(folder)
        if probes is None or not probes.probes:
            return
        check = self._checks.get(folder)
        if check is None or _broke_off(check):
            check = self._checks[folder] = asyncio.ensure_future(_compare(folder, probes, dtype, next_tokens))
        await asyncio.shield(check)  # a caller that gives up does not end it for the others


def _broke_off(check: asyncio.Future[None]) -> bool:
    """Whether it ended without a result."""
    if not check.done():
        return False
    return check.cancelled() or not isinstance(check.exception(), EngineSetupError | None)


async def _compare(folder: str, probes: Probes, dtype: str, next_tokens: NextTokens) -> None:
    found = await asyncio.gather(*(next_tokens(list(probe.prompt)) for probe in probes.probes))
    off = sum(map(_difference, probes.probes, found)) / len(found)
    warn, refuse = _FLOAT32 if probes.dtype == dtype == "float32" else _BFLOAT16
    if off <= warn:
        return
    what = (
        f"model '{folder}': this engine's log-probabilities differ by {off:.2g} on average from those of the trained "
        f"student ({len(found)} prompts in {PROBES}; rounding stays below {warn:g})"
    )
    if off <= refuse:
        logger.warning("%s: its answers may differ from those of engine.kind=transformers", what)
        return
    raise EngineSetupError(
        f"{what}: it runs another model than the one that was trained. Set engine.kind=transformers, or take another "
        "version of the engine, or check that the folder's weights and config are the exported ones; without "
        f"{PROBES} in the folder this is not checked"
    )


def _difference(probe: Probe, listed: Mapping[int, float]) -> float:
    """Of the student's most probable token; at least that to the least probable listed one where it is not listed."""
    logprob = listed.get(probe.token)
    return abs(probe.logprob - (min(listed.values()) if logprob is None else logprob))
