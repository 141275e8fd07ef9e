"""Attention over packed step trees: one dense mask, blocks that skip what no token sees, or FlexAttention.

A row of several trees is mostly what its tokens do NOT see. The blocks are a tree's trunk, plain causal, and its
branches against the tree; nothing between trees is computed. FlexAttention (Dong et al., 2024) skips tiles
of which nothing is seen, in one fused kernel a layer. All give the same outputs and gradients, and all express the
soft-caps and attention sinks that a model asks for. `eager` leaves rows of one example each to the model's own
attention. What none of them expresses is found by `exactness.py` before training. Knows torch and transformers'
attention functions; no model, no Ray.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

from steper_ray.core.errors import TrainingError
from steper_ray.training.packing import Packed, Span

Attention = Literal["blocks", "dense", "flex", "eager"]
#: The `attn_implementation` of a model that takes the inputs of `attention_inputs`.
IMPLEMENTATIONS: dict[Attention, str] = {
    "blocks": "step_tree_blocks",
    "dense": "step_tree_dense",
    "flex": "flex_attention",
    "eager": "eager",
}


def model_inputs(packed: Packed, attention: Attention, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """The arguments of a forward pass: tokens, their positions and what each of them sees.

    With `eager` the tokens alone: every row is one example at the row's start, and causal layers never see the padding
    behind it. So a model sees exactly what it sees without packing, whatever its layers are.
    """
    if attention == "eager":
        return {"input_ids": packed.input_ids}
    inputs = {"input_ids": packed.input_ids, "position_ids": packed.position_ids}
    return inputs | attention_inputs(packed, attention, dtype)


def attention_inputs(
    packed: Packed, attention: Attention, dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    """The arguments of a model's forward pass that say what each token sees; `dtype` is the model's."""
    if attention == "dense":
        # Additive: models that do not ask AttentionInterface add it to their scores.
        visible = attention_mask(packed)
        mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
        return {"attention_mask": mask.masked_fill(~visible, torch.finfo(dtype).min)}
    if attention == "flex":
        return {"attention_mask": flex_mask(packed)}
    return {"attention_blocks": attention_blocks(packed)}


def attention_mask(packed: Packed) -> torch.Tensor:
    """Boolean mask (rows, 1, length, length), true where a query (axis 2) may see a key (axis 3).

    Padding sees itself alone, so that no softmax is over nothing.
    """
    length = packed.input_ids.shape[1]
    mask = torch.stack([_visible(packed, row, 0, length, 0) for row in range(len(packed.input_ids))])
    mask |= torch.eye(length, dtype=torch.bool, device=mask.device)
    return mask[:, None]


def flex_mask(packed: Packed) -> BlockMask:
    """As `attention_mask`, for FlexAttention: it keeps the tiles of which a token sees anything."""
    rows, length = packed.input_ids.shape

    def visible(
        row: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor
    ) -> torch.Tensor:
        return _sees(packed, row, query, key) | (query == key)

    return create_block_mask(visible, rows, None, length, length, device=packed.input_ids.device)


def _sees(packed: Packed, row: int | torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Whether the token at place `query` of a row sees the one at `key`: the one rule of a step tree."""
    tree, branch = packed.tree, packed.branch
    same_tree = (tree[row, query] == tree[row, key]) & (tree[row, query] != -1)
    same_branch = branch[row, query] == branch[row, key]
    in_cut = (branch[row, key] == -1) & (packed.position_ids[row, key] < packed.cut[row, query])
    return (query >= key) & same_tree & (same_branch | in_cut)


def _visible(packed: Packed, row: int, start: int, end: int, first_query: int) -> torch.Tensor:
    """Mask of what the tokens from `first_query` to `end` of one row see of those from `start` to `end`."""
    order = torch.arange(start, end, device=packed.input_ids.device)
    return _sees(packed, row, order[first_query - start :, None], order)


#: Of each row its trees: (tokens of the trunk, tokens of the branches, mask of the branches against the tree or
#: None where the whole tree is causal).
Blocks = list[list[tuple[int, int, torch.Tensor | None]]]


def attention_blocks(packed: Packed) -> Blocks:
    """The blocks of every row."""
    return [
        [(span.trunk, span.size - span.trunk, _branch_mask(packed, row, span)) for span in spans]
        for row, spans in enumerate(packed.spans)
    ]


def _branch_mask(packed: Packed, row: int, span: Span) -> torch.Tensor | None:
    if span.plain:
        return None
    start, end = span.start, span.start + span.size
    return _visible(packed, row, start, end, start + span.trunk)[None, None]


def block_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    attention_blocks: Blocks | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """An attention function of transformers. `query` has shape (rows, heads, length, width), the output
    (rows, length, heads, width); padding gets zeros. Raises TrainingError if the model did not pass the blocks on."""
    if attention_blocks is None:
        raise TrainingError(
            f"{type(module).__name__} was given no attention_blocks: this model does not pass them on; "
            "set train.attention=dense"
        )

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        return _attend(module, q, k, v, mask, **kwargs)

    rows = []
    for row, blocks in enumerate(attention_blocks):
        used = [trunk + branches for trunk, branches, _ in blocks]
        sizes = [*used, query.shape[2] - sum(used)]
        # split, not slices: its backward joins the pieces once, that of a slice adds a whole row of zeros.
        parts = zip(
            *(states[row : row + 1].split(sizes, dim=2) for states in (query, key, value)), strict=True
        )
        out = []
        for (trunk, branches, mask), (q, k, v) in zip(blocks, parts, strict=False):
            if mask is None:
                out.append(attend(q, k, v, None))
                continue
            trunk_q, branch_q = q.split([trunk, branches], dim=2)
            out.append(attend(trunk_q, k[:, :, :trunk], v[:, :, :trunk], None))
            out.append(attend(branch_q, k, v, mask))
        out.append(query.new_zeros(1, sizes[-1], query.shape[1], value.shape[3]))
        rows.append(torch.cat(out, dim=1))
    return torch.cat(rows), None


def dense_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """An attention function of transformers that takes an additive mask. Shapes as in `block_attention`."""
    mask = None if attention_mask is None else attention_mask.to(query.dtype)
    return _attend(module, query, key, value, mask, **kwargs), None


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **kwargs: Any,
) -> torch.Tensor:
    """Attention under a boolean or additive mask, or causal without one, by the fastest kernel that expresses it."""
    if softcap is None and s_aux is None:
        plain: torch.Tensor = sdpa_attention_forward(module, query, key, value, mask, **kwargs)[0]
        return plain
    scores = _scores(query, key, kwargs.get("scaling"), softcap)
    if mask is None:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    shares = _softmax(scores, s_aux).to(query.dtype)
    shares = torch.nn.functional.dropout(shares, p=kwargs.get("dropout", 0.0), training=module.training)
    seen: torch.Tensor = shares @ repeat_kv(value, query.shape[1] // value.shape[1])
    return seen.transpose(1, 2).contiguous()


def _scores(
    query: torch.Tensor, key: torch.Tensor, scaling: float | None, softcap: float | None
) -> torch.Tensor:
    """Scaled products, bounded smoothly to +-`softcap` (Gemma 2)."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = query @ repeat_kv(key, query.shape[1] // key.shape[1]).transpose(2, 3) * scale
    return scores if softcap is None else softcap * torch.tanh(scores / softcap)


def _softmax(scores: torch.Tensor, sinks: torch.Tensor | None) -> torch.Tensor:
    """In float32 or wider. `sinks`, a logit a head, take a share of what is seen and add nothing to it (gpt-oss)."""
    wide = torch.promote_types(scores.dtype, torch.float32)
    if sinks is None:
        return scores.softmax(dim=-1, dtype=wide)
    column = sinks.reshape(1, -1, 1, 1).expand(*scores.shape[:3], 1)
    return torch.cat([scores, column.to(scores.dtype)], dim=-1).softmax(dim=-1, dtype=wide)[..., :-1]


AttentionInterface.register(IMPLEMENTATIONS["blocks"], block_attention)
AttentionInterface.register(IMPLEMENTATIONS["dense"], dense_attention)
