"""What engines want in place of the contracts' inputs, by plain indexing: token tables for page tables, token lists by expert."""

import torch


def token_slots(kv_indptr, kv_indices, page_size, last_page_len):
    """The slot (page * page_size + place) of each token of each sequence, as a list of tensors."""
    slots = []
    for sequence in range(len(kv_indptr) - 1):
        pages = kv_indices[kv_indptr[sequence] : kv_indptr[sequence + 1]].long()
        own = (pages[:, None] * page_size + torch.arange(page_size)).flatten()
        missing = 0 if last_page_len is None or not len(pages) else page_size - int(last_page_len[sequence])
        slots.append(own[: len(own) - missing])
    return slots


def block_table(kv_indptr, kv_indices):
    """The pages of each sequence as a row, padded with a page that there is not."""
    rows = [kv_indices[kv_indptr[sequence] : kv_indptr[sequence + 1]] for sequence in range(len(kv_indptr) - 1)]
    table = torch.full((len(rows), max([1, *map(len, rows)])), 1 << 30, dtype=torch.int32)
    for row, pages in zip(table, rows):
        row[: len(pages)] = pages
    return table


def lengths(kv_indptr, page_size, last_page_len):
    """Tokens of each sequence."""
    pages = kv_indptr[1:] - kv_indptr[:-1]
    whole = pages * page_size
    return whole if last_page_len is None else torch.where(pages > 0, whole - page_size + last_page_len, 0).to(torch.int32)


def indptr(lists):
    """Where each of several lists begins in all of them one after another."""
    return torch.tensor([0, *torch.tensor([len(one) for one in lists], dtype=torch.int64).cumsum(0).tolist()], dtype=torch.int32)


def blocks_of_experts(topk_indices, block):
    """Assignments (token * top_k + choice) sorted by expert, each expert's padded to whole blocks with the count of all; the
    expert of each block; how many there are. Choices of no expert here (-1) are blocks of expert -1.
    """
    flat = topk_indices.flatten()
    ids, experts = [], []
    for expert in sorted(set(flat.tolist())):
        own = (flat == expert).nonzero().flatten().tolist()
        own += [flat.numel()] * (-len(own) % block)
        ids += own
        experts += [expert] * (len(own) // block)
    return (torch.tensor(values, dtype=torch.int32) for values in (ids, experts, [len(ids)]))


def side_by_side(ckv_cache, kpe_cache):
    """Both caches of fp8 as one, latents first. (PyTorch on the CPU puts bytes side by side, but not fp8.)"""
    return torch.cat([ckv_cache.view(torch.uint8), kpe_cache.view(torch.uint8)], -1).view(ckv_cache.dtype)
