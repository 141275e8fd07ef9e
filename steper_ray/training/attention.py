"""What a token of packed trees may see: as one dense mask, as blocks that skip what nobody sees, or for FlexAttention.

A row of several trees is mostly what its tokens do NOT see. The blocks are a tree's trunk, plain causal, and its
branches against the tree; nothing between trees is computed. FlexAttention (Dong et al., 2024) skips tiles
of which nothing is seen, in one fused kernel a layer. All give the same outputs and gradients. Knows torch and
transformers' attention functions; no model, no Ray.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from steper_ray.errors import TrainingError
from steper_ray.training.packing import Packed, Span

Attention = Literal["blocks", "dense", "flex"]
#: What a model is loaded with (`attn_implementation`) to take the inputs of `attention_inputs`.
IMPLEMENTATIONS: dict[Attention, str] = {
    "blocks": "step_tree_blocks",
    "dense": "sdpa",
    "flex": "flex_attention",
}


def attention_inputs(packed: Packed, attention: Attention) -> dict[str, Any]:
    """The arguments of a model's forward pass that say what each token sees."""
    if attention == "dense":
        return {"attention_mask": attention_mask(packed)}
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
    """What the tokens from `first_query` to `end` of one row see of those from `start` to `end`."""
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
        return sdpa_attention_forward(module, q, k, v, mask, **kwargs)[0]

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


AttentionInterface.register(IMPLEMENTATIONS["blocks"], block_attention)
