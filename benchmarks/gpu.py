"""What the training path does on one GPU: exactness of the attentions, speed of a step, DeepSpeed ZeRO-3, LoRA, Liger.

Random weights in the shapes of real models; trees in the shapes of MuSiQue's trajectories (3 to 5 steps, 4 passages
a step). Every part runs in its own try and is written to --json as soon as it is known, so one failure or time limit
costs no other part. Neither Ray nor vLLM.

    python benchmarks/gpu.py --json PATH
    python benchmarks/gpu.py --json PATH --parts exact,shapes,step:0.5b:flex,zero3:1b
    python benchmarks/gpu.py --tiny                            # a CPU's check of the script itself
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from steper_ray.config import TrainConfig
from steper_ray.training.attention import Attention
from steper_ray.training.exactness import examples_of
from steper_ray.training.flops import peak_flops, step_flops
from steper_ray.training.forward import Forward
from steper_ray.training.packing import Branch, Tree, fill_rows, pack_rows
from steper_ray.training.sizes import model_size

ROW = 8192  # tokens
_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
          "vocab_size", "tie_word_embeddings")  # fmt: skip
_SHAPES = {
    "tiny": (64, 128, 2, 4, 2, 512, False),
    "0.5b": (896, 4864, 24, 14, 2, 151936, True),  # Qwen2.5-0.5B
    "1b": (2048, 8192, 16, 32, 8, 128256, True),  # Llama-3.2-1B
    "8b": (4096, 14336, 32, 32, 8, 128256, False),  # Llama-3.1-8B
}
_KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "gemma2": {"head_dim": 16, "query_pre_attn_scalar": 16},  # soft-cap
    "gpt_oss": {"head_dim": 16, "num_local_experts": 2, "layer_types": ["full_attention"] * 2},  # sinks
}


def shape(name: str, kind: str = "llama", **more: Any) -> PretrainedConfig:
    sizes = dict(zip(_SIZES, _SHAPES[name], strict=True))
    return AutoConfig.for_model(kind, max_position_embeddings=16384, use_cache=False, **sizes, **more)


def trees(tokens: int, vocabulary: int, seed: int = 0) -> list[Tree]:
    """Trees of `tokens` tokens and more: a step adds about 420 tokens of passages and 30 of reasoning."""
    draw, found = Random(seed), list[Tree]()

    def some(count: int) -> list[int]:
        return [draw.randrange(3, vocabulary) for _ in range(count)]

    while sum(map(len, found)) < tokens:
        cuts, chain, branches = 120, list[int](), list[Branch]()
        prompt, steps = some(draw.randint(20, 45)), draw.randint(3, 5)
        for step in range(steps):
            cuts += draw.randint(300, 540)
            chain += some(draw.randint(18, 42))
            branches.append(
                Branch(cuts, prompt, (*chain, 2), 0 if not step else 2 if step + 1 == steps else 1)
            )
        found.append(Tree(some(cuts), tuple(branches)))
    return found


def rows_of(found: list[Tree], row: int) -> list[tuple[list[Tree], list[list[int]]]]:
    """One row a forward pass: its trees and their places."""
    return [
        ([found[i] for i in row_], [list(range(len(row_)))])
        for row_ in fill_rows([len(t) for t in found], row)
    ]


def exact(device: torch.device, tiny: bool) -> dict[str, Any]:
    """Largest difference of an example's loss from that of the example alone under eager attention."""
    out: dict[str, Any] = {}
    found = [Tree(tree.trunk[:700], tuple(Branch(200 + 100 * i, b.prompt, b.target, b.task) for i, b in
             enumerate(tree.branches))) for tree in trees(3000, 512)]  # fmt: skip
    alone = examples_of(found)
    for kind, more in _KINDS.items():
        for dtype in (torch.float32,) if tiny else (torch.float32, torch.bfloat16):
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(shape("tiny", kind, **more), attn_implementation="eager")
            model = model.to(device, dtype).train()
            for attention in ("blocks", "dense", *(() if tiny else ("flex",))):
                try:
                    student = Forward(model, model, attention, dtype, device)
                    together = student.losses(pack_rows(found, [list(range(len(found)))], 0))
                    together.sum().backward()
                    gradient = model.get_input_embeddings().weight.grad.float().norm().item()
                    model.zero_grad()
                    with student.attending("eager"), torch.no_grad():
                        each = torch.cat([student.losses(pack_rows([e], [[0]], 0)) for e in alone])
                    out[f"{kind} {str(dtype)[6:]} {attention}"] = [
                        (together - each).abs().max().item(),
                        gradient,
                    ]
                except Exception as error:
                    out[f"{kind} {str(dtype)[6:]} {attention}"] = (
                        f"{type(error).__name__}: {str(error)[:300]}"
                    )
    return out


def timed(run: Callable[[], object], device: torch.device, rounds: int) -> list[float]:
    """Seconds of each round, the device waited for."""
    seconds = []
    for _ in range(rounds):
        if device.type == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return seconds


def figures(
    size: Any, packed: list[Tree], seconds: list[float], device: torch.device, tail: int
) -> dict[str, Any]:
    flops, best = step_flops(size, packed), statistics.median(seconds[-tail:])
    peak = peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    tokens = sum(map(len, packed))
    return {
        "tokens": tokens,
        "seconds": [round(s, 4) for s in seconds],
        "tokens_per_second": tokens / best,
        "mfu": None if peak is None or flops is None else flops / best / peak,
        "peak_gb": torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None,
    }


def step(device: torch.device, name: str, attention: Attention, how: str, row: int) -> dict[str, Any]:
    """One row forward, backward and AdamW with states in bfloat16. `how`: ckpt, liger or both, joined by +."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(shape(name), attn_implementation="eager").train()
    finally:
        torch.set_default_dtype(torch.float32)
    if "liger" in how:
        from transformers.integrations import apply_liger_kernel

        apply_liger_kernel(model, {"fused_linear_cross_entropy": False, "cross_entropy": False})
    if "ckpt" in how:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=device.type == "cuda")
    student = Forward(model, model, attention, torch.bfloat16, device)
    batches = rows_of(trees(6 * row, model.config.vocab_size), row)[:4]
    split = dict.fromkeys(("pack", "forward", "backward", "update"), 0.0)

    def one(at: int) -> None:
        def lap(part: str, since: float) -> float:
            if device.type == "cuda":
                torch.cuda.synchronize()
            now = time.perf_counter()
            split[part] = now - since
            return now

        clock = time.perf_counter()
        chosen, places = batches[at % len(batches)]
        packed = pack_rows(chosen, places, 0)
        clock = lap("pack", clock)
        loss = student.losses(packed).mean()
        clock = lap("forward", clock)
        loss.backward()
        clock = lap("backward", clock)
        optimizer.step()
        optimizer.zero_grad()
        lap("update", clock)

    counter = iter(range(100))
    # Four rows of other lengths, twice: recompilation for a new length shows in the first four.
    seconds = timed(lambda: one(next(counter)), device, 8)
    mean = [tree for chosen, _ in batches for tree in chosen]
    out = figures(model_size(model.config, TrainConfig()), mean, [sum(seconds[4:])], device, 1)
    return out | {
        "rounds": [round(s, 3) for s in seconds],
        "last": {k: round(v, 4) for k, v in split.items()},
    }


def zero3(device: torch.device, name: str, how: str, row: int) -> dict[str, Any]:
    """A training's engine: ZeRO, bfloat16, float32 masters. `how`: stage2, offload, lora, liger, flex, ckpt."""
    from steper_ray.training.engine import Engine, Worker

    torch.cuda.reset_peak_memory_stats()
    settings = {
        "use_gpu": True, "workers": 1, "row_tokens": row, "offload": "offload" in how, "check_memory": False,
        "attention": "flex" if "flex" in how else "blocks", "gradient_checkpointing": "ckpt" in how,
        "zero_stage": 2 if "stage2" in how else 3, "liger": "liger" in how,
        "lora": {} if "lora" in how else None, "lr": 1e-6,
    }  # fmt: skip
    config = TrainConfig.model_validate(settings)
    with tempfile.TemporaryDirectory() as folder:
        torch.set_default_dtype(torch.bfloat16)
        with torch.device(device):
            model = AutoModelForCausalLM.from_config(shape(name))
        torch.set_default_dtype(torch.float32)
        model.save_pretrained(folder)
        del model
        torch.cuda.empty_cache()
        started = time.perf_counter()
        engine = Engine(folder, config, Worker(0, 1, device))
    opened = time.perf_counter() - started
    batches = rows_of(trees(4 * row, engine.module.config.vocab_size), row)[:2]

    def one() -> None:
        for at, (chosen, places) in enumerate(batches):
            losses = engine.losses(pack_rows(chosen, places, 0))
            engine.backward(losses.mean(), last=at + 1 == len(batches))
        engine.step(1e-6)

    seconds = timed(one, device, 5)
    mean = [tree for chosen, _ in batches for tree in chosen]
    shape_ = model_size(engine.module.config, config)
    out = figures(shape_, mean, seconds, device, 3) | {"open_s": opened}
    engine.close()
    return out


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--parts", default="exact,step:0.5b:flex,step:0.5b:blocks,step:0.5b:dense")
    parser.add_argument("--row", type=int, default=ROW)
    options = parser.parse_args()
    device = torch.device("cpu" if options.tiny else "cuda:0")
    result: dict[str, Any] = {"torch": torch.__version__, "row_tokens": options.row}
    if not options.tiny:
        torch.cuda.set_device(device)
        result["device"] = torch.cuda.get_device_name(device)
        os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1",
                       "MASTER_PORT": "29511"}  # fmt: skip
        torch.distributed.init_process_group("nccl")
    for part in options.parts.split(","):
        what, name, *how = [*part.split(":"), "", "", ""][:4]
        began = time.perf_counter()
        try:
            if what == "exact":
                found = exact(device, options.tiny)
            elif what == "step":
                found = step(device, name, how[0], how[1], options.row)  # type: ignore[arg-type]
            else:
                found = zero3(device, name, "+".join(how), options.row)
        except BaseException as error:
            traceback.print_exc(limit=-6)
            found = {"error": f"{type(error).__name__}: {str(error)[:500]}"}
            if isinstance(error, KeyboardInterrupt):
                raise
        found["part_s"] = round(time.perf_counter() - began, 1)
        result[part] = found
        print(part, json.dumps(found), flush=True)
        if options.json:
            options.json.write_text(json.dumps(result, indent=1))
        gc.collect()
        if not options.tiny:
            torch._dynamo.reset()
            torch.cuda.empty_cache()
            result[part]["left_gb"] = torch.cuda.memory_allocated() / 1e9


if __name__ == "__main__":
    main()
