"""What each piece of a model costs, and partitions that need no more than that."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

from edgeprism.codecs.size import payload_bytes
from edgeprism.errors import PlanError
from edgeprism.specs.codec import EXACT, CodecSpec
from edgeprism.specs.cost import PIXEL_BYTES, TEXT_TOKEN_BYTES, head_macs, output_bytes, rows_read
from edgeprism.specs.model import ModelSpec
from edgeprism.specs.plan import PIECES_A_BLOCK, Plan, Stage

ROTARY = ("llama", "qwen2")  # families without a table of positions
AS_EVEN = 0.1
"""By how much a stage of an even partition may take longer, so that a cut within an MLP, where five times as much
travels as between blocks, is not taken for next to nothing."""
FEWEST_ROWS = 32
"""A product of fewer rows with weights takes as long as one of so many, since the weights have to be read: 24 for one
row and 55 for eight to thirty-two on a Xeon core."""
TEXTS_A_STAGE = 2
"""Texts in flight for each stage, so that none waits; every stage keeps keys and values of all in flight."""


def num_pieces(model: ModelSpec) -> int:
    """Of a model."""
    return PIECES_A_BLOCK * model.num_layers


def check(model: ModelSpec, plan: Plan) -> None:
    """PlanError unless the stages end where the model does."""
    wanted, found = num_pieces(model), plan.stages[-1].stop
    if found != wanted:
        raise PlanError(
            f"the stages end at piece {found}, and {model.architecture} has {wanted}: {PIECES_A_BLOCK} in each of "
            f"{model.num_layers} blocks"
        )


def piece_macs(model: ModelSpec, num_tokens: int) -> tuple[int, ...]:
    """Multiply-accumulates of each piece for one sample as papers count, every block whole; the first one's with the
    embedding. They add up to `specs.cost.whole_model_macs`."""
    embedding, *others = _block(model, num_tokens, num_tokens) * model.num_layers
    return embedding + model.embedding_macs(num_tokens), *others


def piece_work(model: ModelSpec, num_tokens: int) -> tuple[int, ...]:
    """The same by what a run takes for it: of the last block only the rows that the head reads, or ``FEWEST_ROWS``, and
    with the last piece the head, where that makes a number for each word of a vocabulary."""
    num_rows = min(num_tokens, max(FEWEST_ROWS, rows_read(model, 0, num_tokens, num_tokens)))
    whole, last_block = _block(model, num_tokens, num_tokens), _block(model, num_tokens, num_rows)
    first, *others, last = whole * (model.num_layers - 1) + last_block
    return first + model.embedding_macs(num_tokens), *others, last + head_macs(model, num_tokens)


def _block(model: ModelSpec, num_tokens: int, num_rows: int) -> tuple[int, int, int, int]:
    """The pieces of one block, of whose tokens these rows go on."""
    width, wide = model.hidden_size, model.intermediate_size
    keys_values = 2 * num_tokens * width * model.key_value_width
    return (
        keys_values + num_rows * width * width + 2 * num_rows * num_tokens * width,
        num_rows * width * width,
        (model.mlp_matrices - 1) * num_rows * width * wide,
        num_rows * width * wide,
    )


def piece_values(model: ModelSpec) -> tuple[int, ...]:
    """Weights of each piece, biases and norms included as far as they count; the first one's with what embeds, the last
    one's with the head."""
    width, wide = model.hidden_size, model.intermediate_size
    block = (
        width * (width + 2 * model.key_value_width) + 5 * width,
        width * width + 3 * width,
        (model.mlp_matrices - 1) * (width * wide + wide) + 2 * width,
        width * wide + 3 * width,
    )
    pieces = list(block * model.num_layers)
    has_positions = model.model_type not in ROTARY
    rows = has_positions * model.max_tokens + (model.values_per_patch if model.is_vision else model.vocab_size)
    pieces[0] += rows * width
    has_words = model.generates or model.architecture.endswith("ForMaskedLM")
    pieces[-1] += width * (model.vocab_size if has_words else model.num_labels + width)
    return tuple(pieces)


def piece_cache_bytes(model: ModelSpec, num_tokens: int, element_bytes: int) -> tuple[int, ...]:
    """Keys and values that each piece keeps of one text while that is continued; nothing where texts are not."""
    kept = 2 * num_tokens * model.key_value_width * element_bytes if model.generates else 0
    return (kept, 0, 0, 0) * model.num_layers


def kept_bytes(model: ModelSpec, num_tokens: int, element_bytes: int, num_texts: int) -> tuple[int, ...]:
    """Of each piece: its weights, and the keys and values of so many texts where texts are continued."""
    caches = piece_cache_bytes(model, num_tokens, element_bytes)
    return tuple(
        element_bytes * values + num_texts * cache for values, cache in zip(piece_values(model), caches, strict=True)
    )


def work_bytes(model: ModelSpec, num_tokens: int, batch: int, element_bytes: int) -> int:
    """What computing a piece holds besides its weights: the rows, what attention has beside them (queries, keys,
    values, what it gathered), and the wide half."""
    width = 4 * model.hidden_size + 2 * model.key_value_width + model.intermediate_size
    return batch * num_tokens * width * element_bytes


def stage_weight_bytes(model: ModelSpec, start: int, stop: int, element_bytes: int) -> int:
    """Of the pieces [start, stop)."""
    return element_bytes * sum(piece_values(model)[start:stop])


def cut_bytes(
    model: ModelSpec, codec: CodecSpec, *, num_tokens: int, batch: int, element_bytes: int
) -> tuple[int, ...]:
    """What travels at each cut for so many samples: the inputs, then what goes on between pieces (the rows, and where a
    block is cut inside of its halves what they are added to; in the last block of the rows that the head reads), last
    the outputs."""

    def cuts(num_rows: int) -> tuple[int, int, int, int]:
        """Behind each piece of a block, of whose tokens these rows go on."""

        def rows(*widths: int) -> int:
            return sum(
                payload_bytes(codec, num_tokens=num_rows, width=width, batch=batch, element_bytes=element_bytes)
                for width in widths
            )

        width, wide = model.hidden_size, model.intermediate_size
        return rows(width, width), rows(width), rows(width, wide), rows(width)

    value_bytes = PIXEL_BYTES if model.is_vision else TEXT_TOKEN_BYTES
    inputs = batch * model.input_values(num_tokens) * value_bytes
    last = cuts(rows_read(model, 0, num_tokens, num_tokens))[:-1]
    return inputs, *cuts(num_tokens) * (model.num_layers - 1), *last, batch * output_bytes(model, num_tokens)


def even(
    model: ModelSpec, num_tokens: int, devices: Sequence[int], shares: Sequence[float] | None = None
) -> tuple[Stage, ...]:  # fmt: skip
    """Stages on these devices in this order, none without a piece, so that the one that takes longest for its share (by
    default the same for all) takes as short as can be, and the others are as near to their shares as that allows. Then
    cuts are moved to where less travels near by, if that makes the longer one of two neighbours at most ``AS_EVEN``
    longer."""
    macs = piece_work(model, num_tokens)
    if len(devices) > len(macs):
        raise PlanError(f"{len(devices)} devices, and the model has {len(macs)} pieces; use fewer devices")
    parts = [1.0] * len(devices) if shares is None else [max(share, 1e-9) for share in shares]
    done = [0, *accumulate(macs)]
    cuts = _nearest_cuts(done, parts, _least_limit(done, parts) * (1 + 1e-9))
    sent = cut_bytes(model, EXACT, num_tokens=num_tokens, batch=1, element_bytes=4)
    cuts = _with_less_sent(cuts, done, sent, parts)
    return tuple(
        Stage(device=device, start=start, stop=stop)
        for device, start, stop in zip(devices, cuts, cuts[1:], strict=False)
    )


def _least_limit(done: Sequence[int], parts: Sequence[float]) -> float:
    """What the stage that takes longest takes for its share, at least. ``done``: work up to each cut."""
    best = {0: 0.0}
    for part in parts:
        found: dict[int, float] = {}
        for start, longest in best.items():
            for stop in range(start + 1, len(done)):
                found[stop] = min(found.get(stop, math.inf), max(longest, (done[stop] - done[start]) / part))
        best = found
    return best[len(done) - 1]


def _nearest_cuts(done: Sequence[int], parts: Sequence[float], limit: float) -> list[int]:
    """Of the cuts within the limit those whose stages are nearest to the shares, in squares."""
    best: dict[int, tuple[float, list[int]]] = {0: (0.0, [0])}
    for part in parts:
        found: dict[int, tuple[float, list[int]]] = {}
        for start, (cost, cuts) in best.items():
            for stop in range(start + 1, len(done)):
                work = done[stop] - done[start]
                if work > limit * part:
                    break
                total = cost + work * work / part
                if stop not in found or total < found[stop][0]:
                    found[stop] = total, [*cuts, stop]
        best = found
    return best[len(done) - 1][1]


def _with_less_sent(
    cuts: Sequence[int], done: Sequence[int], sent: Sequence[int], parts: Sequence[float]
) -> list[int]:  # fmt: skip
    """Each cut in turn moved by less than a block, to where the fewest bytes are ``sent``."""
    moved = list(cuts)
    for place in range(1, len(cuts) - 1):
        before, cut, after = moved[place - 1], moved[place], cuts[place + 1]

        def longer(at: int, place: int = place, before: int = before, after: int = after) -> float:
            """Of the two stages, for their shares."""
            return max((done[at] - done[before]) / parts[place - 1], (done[after] - done[at]) / parts[place])

        limit = (1 + AS_EVEN) * max(longer(cut), done[-1] / sum(parts))
        near = range(max(before + 1, cut - PIECES_A_BLOCK + 1), min(after, cut + PIECES_A_BLOCK))
        allowed = [at for at in near if at == cut or longer(at) <= limit]
        moved[place] = min(allowed, key=lambda at: (sent[at], longer(at)))
    return moved
