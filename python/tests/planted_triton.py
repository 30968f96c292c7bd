"""Small kernels of Triton, each with one bug that `BUG` plants."""

import triton
import triton.language as tl


@triton.jit
def add(x, y, out, n, BLOCK: tl.constexpr, BUG: tl.constexpr):
    """The mask of the last block is one too long."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = i <= n if BUG else i < n
    tl.store(out + i, tl.load(x + i, mask=mask) + tl.load(y + i, mask=mask), mask=mask)


@triton.jit
def scale_rows(x, out, columns, stride, BLOCK: tl.constexpr, BUG: tl.constexpr):
    """The rows of a wider matrix lie `stride` apart, not `columns`."""
    row, column = tl.program_id(0), tl.arange(0, BLOCK)
    step = columns if BUG else stride
    values = tl.load(x + row * step + column, mask=column < columns)
    tl.store(out + row * columns + column, values * 2, mask=column < columns)


@triton.jit
def softmax(x, out, columns, BLOCK: tl.constexpr, BUG: tl.constexpr):
    """What is masked out counts as 0 in the maximum and in the sum, not as minus infinity."""
    row, column = tl.program_id(0), tl.arange(0, BLOCK)
    mask = column < columns
    values = tl.load(x + row * columns + column, mask=mask, other=0.0 if BUG else float("-inf"))
    values = tl.exp(values - tl.max(values))
    tl.store(out + row * columns + column, values / tl.sum(values), mask=mask)


@triton.jit
def attention(q, k, v, out, tokens, scale, BLOCK: tl.constexpr, WIDTH: tl.constexpr, BUG: tl.constexpr):
    """One query, in f32: the scores are not scaled."""
    token, i = tl.arange(0, BLOCK), tl.arange(0, WIDTH)
    rows = token[:, None] * WIDTH + i[None, :]
    mask = token < tokens
    query = tl.load(q + tl.program_id(0) * WIDTH + i)
    scores = tl.sum(query[None, :] * tl.load(k + rows, mask=mask[:, None], other=0.0), 1)
    if not BUG:
        scores *= scale
    scores = tl.where(mask, scores, float("-inf"))
    weights = tl.exp(scores - tl.max(scores))
    total = tl.sum(weights[:, None] * tl.load(v + rows, mask=mask[:, None], other=0.0), 0)
    tl.store(out + tl.program_id(0) * WIDTH + i, total / tl.sum(weights))


@triton.jit
def partial_sums(x, parts, n, SPLIT: tl.constexpr, BUG: tl.constexpr):
    """The first stage of a sum in pieces. Pieces without anything in them are left out, as the second stage expects."""
    piece, i = tl.program_id(0), tl.arange(0, SPLIT)
    if piece * SPLIT < n:
        at = piece * SPLIT + i
        tl.store(parts + piece, tl.sum(tl.load(x + at, mask=at < n, other=0.0)))


@triton.jit
def sum_of_parts(parts, out, pieces, most, BLOCK: tl.constexpr, BUG: tl.constexpr):
    """The second stage reads all pieces, also those that were left out."""
    i = tl.arange(0, BLOCK)
    count = most if BUG else pieces
    tl.store(out, tl.sum(tl.load(parts + i, mask=i < count, other=0.0)))


@triton.jit
def shift(x, n, BLOCK: tl.constexpr, BUG: tl.constexpr):
    """Moves everything by one place, in place: one block reads what another one writes."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    source = i + 1 if BUG else i
    tl.store(x + i, tl.load(x + source, mask=source < n, other=0.0) * 2, mask=i < n)


@triton.jit
def histogram(ids, counts, n, BLOCK: tl.constexpr, BUG: tl.constexpr):
    """Counts without an atomic operation."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    place = counts + tl.load(ids + i, mask=i < n, other=0)
    if BUG:
        tl.store(place, tl.load(place, mask=i < n, other=0) + 1, mask=i < n)
    else:
        tl.atomic_add(place, 1, mask=i < n)


@triton.jit
def matmul(a, b, c, K: tl.constexpr, SIZE: tl.constexpr, STEP: tl.constexpr, BUG: tl.constexpr):
    """The sum is kept in the type of the output, f16, not in f32."""
    row, column, k = tl.arange(0, SIZE)[:, None], tl.arange(0, SIZE)[None, :], tl.arange(0, STEP)
    total = tl.zeros((SIZE, SIZE), tl.float16 if BUG else tl.float32)
    for start in range(0, K, STEP):
        left = tl.load(a + row * K + (start + k)[None, :])
        right = tl.load(b + (start + k)[:, None] * SIZE + column)
        total += tl.dot(left, right).to(total.dtype)
    tl.store(c + row * SIZE + column, total.to(tl.float16))


@triton.jit
def gather(table, ids, out, tokens, width, BLOCK: tl.constexpr, BUG: tl.constexpr):
    """Behind the last id of a padded list lies garbage, which is no row of the table."""
    place, i = tl.program_id(0), tl.arange(0, BLOCK)
    row = tl.load(ids + place)
    mask = i < width
    if not BUG:
        mask = mask & (place < tokens)
    tl.store(out + place * width + i, tl.load(table + row * width + i, mask=mask, other=0.0), mask=i < width)


@triton.jit
def rms_norm(x, weight, out, columns, eps, BLOCK: tl.constexpr, BUG: tl.constexpr):
    """The mean is taken over the block, not over the columns."""
    row, i = tl.program_id(0), tl.arange(0, BLOCK)
    mask = i < columns
    values = tl.load(x + row * columns + i, mask=mask, other=0.0)
    mean = tl.sum(values * values) / (BLOCK if BUG else columns)
    tl.store(out + row * columns + i, values / tl.sqrt(mean + eps) * tl.load(weight + i, mask=mask, other=0.0), mask=mask)


@triton.jit
def weights(scores, out, columns, BLOCK: tl.constexpr, BUG: tl.constexpr):
    """A softmax that does not take off the largest score: the exponentials overflow."""
    row, column = tl.program_id(0), tl.arange(0, BLOCK)
    mask = column < columns
    values = tl.load(scores + row * columns + column, mask=mask, other=float("-inf"))
    largest = 0.0 if BUG else tl.max(values)
    values = tl.exp(values - largest)
    tl.store(out + row * columns + column, values / tl.sum(values), mask=mask)


@triton.jit
def paged_rows(cache, pages, out, tokens, PAGE: tl.constexpr, WIDTH: tl.constexpr, BUG: tl.constexpr):
    """The page of a token is looked for one place too far where a page ends."""
    token, i = tl.program_id(0), tl.arange(0, WIDTH)
    place = token + 1 if BUG else token
    page = tl.load(pages + place // PAGE)
    tl.store(out + token * WIDTH + i, tl.load(cache + (page * PAGE + token % PAGE) * WIDTH + i))


@triton.jit
def head_sums(x, out, stride_token, stride_head, WIDTH: tl.constexpr, BUG: tl.constexpr):
    """Heads lie `stride_head` apart: they are cut out of rows that hold more than them."""
    token, head, i = tl.program_id(0), tl.program_id(1), tl.arange(0, WIDTH)
    step = WIDTH if BUG else stride_head
    tl.store(out + token * tl.num_programs(1) + head, tl.sum(tl.load(x + token * stride_token + head * step + i)))


@triton.jit
def online(scores, values, out, tokens, BLOCK: tl.constexpr, WIDTH: tl.constexpr, BUG: tl.constexpr):
    """Attention in blocks: what was summed up before is not brought to the new maximum."""
    i = tl.arange(0, WIDTH)
    largest, total, sums = float("-inf"), 0.0, tl.zeros((WIDTH,), tl.float32)
    for begin in range(0, tokens, BLOCK):
        token = begin + tl.arange(0, BLOCK)
        mask = token < tokens
        block = tl.load(scores + token, mask=mask, other=float("-inf"))
        new = tl.maximum(largest, tl.max(block))
        parts = tl.exp(block - new)
        factor = 1.0 if BUG else tl.exp(largest - new)
        rows = tl.load(values + token[:, None] * WIDTH + i[None, :], mask=mask[:, None], other=0.0)
        sums = sums * factor + tl.sum(parts[:, None] * rows, 0)
        total = total * factor + tl.sum(parts)
        largest = new
    tl.store(out + i, sums / total)


@triton.jit
def causal(scores, out, tokens, new, BLOCK: tl.constexpr, BUG: tl.constexpr):
    """Several new tokens behind a cache: each may see all that is before it, not only as many as its own number."""
    query, key = tl.program_id(0), tl.arange(0, BLOCK)
    last = query if BUG else query + tokens - new
    mask = key <= last
    values = tl.exp(tl.load(scores + query * tokens + key, mask=mask, other=float("-inf")))
    tl.store(out + query * tokens + key, values / tl.sum(values), mask=key < tokens)


@triton.jit
def expert_rows(x, weights, experts, out, K: tl.constexpr, N: tl.constexpr, BUG: tl.constexpr):
    """The matrix of an expert begins after the rows of those before it, not after one row for each."""
    token, k, n = tl.program_id(0), tl.arange(0, K), tl.arange(0, N)
    begin = tl.load(experts + token) * (K if BUG else N * K)
    matrix = tl.load(weights + begin + n[:, None] * K + k[None, :])
    tl.store(out + token * N + n, tl.sum(matrix * tl.load(x + token * K + k)[None, :], 1))


@triton.jit
def two_best(scores, chosen, experts, BLOCK: tl.constexpr, BUG: tl.constexpr):
    """After the first choice all that have its score are taken out, not it alone: of two equal ones the second is lost."""
    row, i = tl.program_id(0), tl.arange(0, BLOCK)
    values = tl.load(scores + row * experts + i, mask=i < experts, other=float("-inf"))
    first = tl.argmax(values, 0, tie_break_left=True)
    gone = values == tl.max(values) if BUG else i == first
    tl.store(chosen + row * 2, first)
    tl.store(chosen + row * 2 + 1, tl.argmax(tl.where(gone, float("-inf"), values), 0, tie_break_left=True))
