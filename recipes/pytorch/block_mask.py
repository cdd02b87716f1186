"""Who sees whom in Block-Attention (arXiv 2409.15355), for attention in PyTorch.

A prompt is a list of blocks, given by their lengths. A token of an independent block, which are all but the last, attends to those before it in its
own block. A token of the final block attends to all before it. So what a token sees is one interval, from a first token to itself; and full
attention is a prompt of one block.
"""

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

# What FlexAttention works on at a time. Samples are filled up to a multiple of it, so that no tile is partial and one compiled kernel does for all.
TILE = 128


def first_seen(blocks: list[int]) -> torch.Tensor:
    """The first token that each token sees, [T]."""
    *independent, final = blocks
    first, start = [], 0
    for length in independent:
        first += [start] * length
        start += length
    return torch.tensor(first + [0] * final)


def dense_mask(blocks: list[int], device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """What is added to the scores, [1, 1, T, T]: 0 where a token (row) sees another (column), elsewhere -∞."""
    first = first_seen(blocks).to(device)
    at = torch.arange(len(first), device=device)
    sees = (first[:, None] <= at) & (at <= at[:, None])
    return torch.zeros(sees.shape, dtype=dtype, device=device).masked_fill_(~sees, -torch.inf)[None, None]


def flex_mask(blocks: list[int], length: int, device: torch.device) -> BlockMask:
    """The same for FlexAttention, which skips the tiles that nobody sees. Tokens from the end of the blocks up to length are filling: nobody before
    them sees them, and what they see does not matter."""
    first = torch.nn.functional.pad(first_seen(blocks), (0, length - sum(blocks))).to(device)

    def sees(_batch, _head, query, key):
        return (first[query] <= key) & (key <= query)

    return create_block_mask(sees, None, None, length, length, device=device, BLOCK_SIZE=TILE)
