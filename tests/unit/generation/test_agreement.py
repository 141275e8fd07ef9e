"""An engine that gives a student's prompts other log-probabilities than the student is warned of or refused, once."""

import asyncio
import logging

import pytest

from steper_ray.core.errors import EngineSetupError, GenerationError, ModelError
from steper_ray.core.probes import PROBES, Probe, Probes, write_probes
from steper_ray.generation.agreement import Agreement

pytestmark = pytest.mark.asyncio

PROMPTS = [Probe((3, 4), 7, -0.5), Probe((3, 4, 5), 8, -1.5), Probe(tuple(range(40)), 9, -0.1)]


class Engine:
    """Gives each probe its log-probability, `off` by so much, and counts what it is asked."""

    def __init__(self, off=0.0, listed=True, fails=0):
        self.off, self.listed, self.fails, self.asked = off, listed, fails, []

    async def __call__(self, ids):
        self.asked.append(tuple(ids))
        await asyncio.sleep(0)
        if self.fails:
            self.fails -= 1
            raise GenerationError("busy")
        (probe,) = [probe for probe in PROMPTS if probe.prompt == tuple(ids)]
        others = {100: probe.logprob - self.off, 101: probe.logprob - 2 * self.off}
        return others | ({probe.token: probe.logprob + self.off} if self.listed else {})


@pytest.fixture
def folder(tmp_path):
    write_probes(tmp_path, Probes("float32", tuple(PROMPTS)))
    return str(tmp_path)


async def check(folder, engine, dtype="float32", context=64):
    await Agreement([folder], context).check(folder, dtype, engine)


@pytest.mark.parametrize(("dtype", "off"), [("float32", 1e-4), ("bfloat16", 0.09)])
async def test_rounding_is_no_news(folder, dtype, off, caplog):
    with caplog.at_level(logging.WARNING):
        await check(folder, Engine(off), dtype)
    assert not caplog.records


@pytest.mark.parametrize(("dtype", "off"), [("float32", 5e-3), ("bfloat16", 0.2)])
async def test_more_than_rounding_is_warned_of_in_one_line(folder, dtype, off, caplog):
    with caplog.at_level(logging.WARNING):
        await check(folder, Engine(off), dtype)
    (record,) = caplog.records
    assert folder in record.getMessage()
    assert f"differ by {off:.2g} on average" in record.getMessage()


@pytest.mark.parametrize(("dtype", "off"), [("float32", 0.05), ("bfloat16", 0.39)])
async def test_another_model_is_refused_with_the_fix(folder, dtype, off):
    with pytest.raises(
        EngineSetupError, match=rf"{folder}.*differ by {off:.2g}.*engine\.kind=transformers.*{PROBES}"
    ):
        await check(folder, Engine(off), dtype)


async def test_a_token_that_the_engine_does_not_list_is_off_by_the_least_listed_one_at_least(folder):
    with pytest.raises(EngineSetupError, match=r"differ by 0\.8 on average"):
        await check(folder, Engine(0.4, listed=False))


async def test_requests_that_come_together_share_one_check_and_its_refusal(folder):
    agreement, engine = Agreement([folder], 64), Engine(1.0)
    results = await asyncio.gather(
        *(agreement.check(folder, "float32", engine) for _ in range(5)), return_exceptions=True
    )
    results += await asyncio.gather(agreement.check(folder, "float32", engine), return_exceptions=True)
    assert [type(result) for result in results] == [EngineSetupError] * 6
    assert sorted(engine.asked, key=len) == [probe.prompt for probe in PROMPTS]


async def test_a_caller_that_gives_up_ends_no_check(folder):
    agreement, engine = Agreement([folder], 64), Engine()
    first = asyncio.create_task(agreement.check(folder, "float32", engine))
    await asyncio.sleep(0)
    first.cancel()
    await agreement.check(folder, "float32", engine)
    assert len(engine.asked) == len(PROMPTS)
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_a_check_that_breaks_off_is_made_again(folder):
    agreement, engine = Agreement([folder], 64), Engine(fails=1)
    with pytest.raises(GenerationError, match="busy"):
        await agreement.check(folder, "float32", engine)
    await agreement.check(folder, "float32", engine)
    assert len(engine.asked) == 2 * len(PROMPTS)


async def test_prompts_beyond_the_engines_context_are_left_out(folder):
    engine = Engine()
    await check(folder, engine, context=40)
    assert len(engine.asked) == 2
    await check(folder, engine, context=2)
    assert len(engine.asked) == 2


async def test_a_model_without_probes_is_not_checked_and_broken_ones_are_named_when_it_loads(tmp_path):
    engine = Engine()
    await check(str(tmp_path), engine)
    await check("organisation/model", engine)
    assert not engine.asked
    (tmp_path / PROBES).write_text("{")
    with pytest.raises(ModelError, match=PROBES):
        Agreement([str(tmp_path)], 64)
