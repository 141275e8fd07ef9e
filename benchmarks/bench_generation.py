"""The embedded engine's running batch against two ways of `transformers`: padded batches and its continuous batching.

Prompts ask for one fact of a miniature world over 4 to 20 passages, as the steps of a trajectory have them, all sent
at once; all ways are greedy with at most 16 sequences together. It prints how many texts are the same.
"""

from __future__ import annotations

import asyncio
from random import Random

import torch
from paired import ratios, tell
from transformers import ContinuousBatchingConfig, GenerationConfig

from steper_ray.config import EngineConfig, SamplingConfig
from steper_ray.corpora.miniature import make_worlds
from steper_ray.frameworks import FRAMEWORKS
from steper_ray.generation.base import generate
from steper_ray.generation.prefixes import PrefixStore
from steper_ray.generation.transformers_engine import TransformersGenerator
from steper_ray.prompts import PromptEncoder

PROMPTS, AT_ONCE, ROUNDS = 64, 16, 3
SAMPLING = SamplingConfig(max_tokens=96)


def prompts(encoder: PromptEncoder) -> list[list[int]]:
    rng, found = Random(0), []
    worlds = [world for world, _ in make_worlds(77, 8, "train")]
    for _ in range(PROMPTS):
        world = rng.choice(worlds)
        entity, relation = rng.choice(list(world.facts))
        passages = rng.sample(world.passages, 4 * rng.randint(1, 5))
        question = f"What is the {relation} of {entity}?"
        found.append([*encoder.trunk(passages), *encoder.question(question)])
    return found


def main() -> None:
    engine = TransformersGenerator(EngineConfig(model="miniature:teacher", max_batch=AT_ONCE))
    asked = prompts(PromptEncoder(engine.tokenizer, FRAMEWORKS["ircot"].layout))
    engine._worker._batch._prefixes = PrefixStore(0)  # no round may profit from the one before
    model, texts = engine.model, dict[str, list[str]]()

    def running() -> None:
        async def all_of_them() -> list[str]:
            found = await asyncio.gather(*(generate(engine, p, SAMPLING) for p in asked))
            assert not any(c.usage.cached_tokens for c in found)
            return [c.text for c in found]

        texts["running"] = asyncio.run(all_of_them())

    def padded() -> None:
        texts["padded"] = []
        for at in range(0, PROMPTS, AT_ONCE):
            some = asked[at : at + AT_ONCE]
            width = max(map(len, some))
            ids = torch.tensor([[2] * (width - len(p)) + p for p in some])
            with torch.inference_mode():
                made = model.generate(
                    input_ids=ids,
                    attention_mask=(
                        torch.arange(width) >= torch.tensor([[width - len(p)] for p in some])
                    ).long(),
                    max_new_tokens=SAMPLING.max_tokens,
                    min_new_tokens=SAMPLING.min_tokens,
                    do_sample=False,
                    pad_token_id=2,
                )
            texts["padded"] += engine.tokenizer.batch_decode(made[:, width:], skip_special_tokens=True)

    greedy = GenerationConfig(
        max_new_tokens=SAMPLING.max_tokens,
        do_sample=False,
        eos_token_id=engine.tokenizer.eos_token_id,
        pad_token_id=2,
    )
    together = ContinuousBatchingConfig(max_requests_per_batch=AT_ONCE, max_memory_percent=0.1)
    chosen = model.config._attn_implementation

    def continuous() -> None:
        made = model.generate_batch(asked, greedy, together)
        model.set_attn_implementation(chosen)  # it leaves its own
        texts["continuous"] = engine.tokenizer.batch_decode(
            [one.generated_tokens for one in made.values()], skip_special_tokens=True
        )

    for name, way in (("padded batches", padded), ("transformers' continuous batching", continuous)):
        found = ratios(running, way, ROUNDS)
        same = sum(a == b for a, b in zip(texts["running"], texts[way.__name__], strict=True))
        print(f"{PROMPTS} prompts, {same} of them with the same text both ways")
        tell(f"time of {name} over time of the running batch", found)
    asyncio.run(engine.close())


if __name__ == "__main__":
    main()
