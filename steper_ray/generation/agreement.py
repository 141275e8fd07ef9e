"""Checks that an engine gives a student's probes the log-probabilities that the student had when it was exported.

An engine with its own implementation of an architecture may compute another model than the one that was trained. A
model without probes (core/probes.py) is not checked. Knows no engine.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from steper_ray.core.probes import PROBES, Probe, Probes, read_probes
from steper_ray.errors import EngineSetupError

logger = logging.getLogger(__name__)

#: Log-probabilities of the most probable next tokens after a prompt, by token id; as many as LISTED of them.
NextTokens = Callable[[list[int]], Awaitable[Mapping[int, float]]]
LISTED = 20

#: Mean difference of log-probabilities from which the check warns, and from which it refuses. Two implementations of
#: one model in float32 differ by about 1e-5. In bfloat16 a logit above 16 is a multiple of 1/8, on both sides: the same
#: model differs by 0.05 on average. GPT-NeoX in vLLM 0.32, another model than in transformers, differs by 0.4.
_FLOAT32, _BFLOAT16 = (1e-3, 2e-2), (0.1, 0.3)


async def check_agreement(folder: str, dtype: str, context: int, next_tokens: NextTokens) -> None:
    """Compares the engine, in `dtype`, with the probes of a model's folder; those beyond its `context` are left out.

    Logs a warning, or raises EngineSetupError, where they differ by more than rounding. Raises ModelError for a file
    of probes that cannot be read.
    """
    probes = read_probes(Path(folder))
    asked = [] if probes is None else [p for p in probes.probes if len(p.prompt) < context]
    if probes is None or not asked:
        return
    found = await asyncio.gather(*(next_tokens(list(probe.prompt)) for probe in asked))
    off = sum(map(_difference, asked, found)) / len(asked)
    warn, refuse = _limits(probes, dtype)
    if off <= warn:
        return
    what = (
        f"model '{folder}': this engine's log-probabilities differ by {off:.2g} on average from those that the student "
        f"was trained to ({len(asked)} prompts in {PROBES}, rounding stays below {warn:g})"
    )
    if off <= refuse:
        logger.warning("%s: its answers may differ from those of engine.kind=transformers", what)
        return
    raise EngineSetupError(
        f"{what}: it runs another model than the one that was trained. Set engine.kind=transformers, or take another "
        f"version of the engine, or check that the folder's weights and config are the exported ones; deleting {PROBES} "
        "there serves it without this check"
    )


def _difference(probe: Probe, listed: Mapping[int, float]) -> float:
    """Of the student's most probable token; at least that to the least probable listed one where it is not listed."""
    logprob = listed.get(probe.token)
    return abs(probe.logprob - (min(listed.values()) if logprob is None else logprob))


def _limits(probes: Probes, dtype: str) -> tuple[float, float]:
    return _FLOAT32 if probes.dtype == dtype == "float32" else _BFLOAT16
