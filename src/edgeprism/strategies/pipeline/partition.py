"""What each piece of a model costs, and partitions that need no more than that."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from edgeprism.codecs.size import payload_bytes
from edgeprism.errors import PlanError
from edgeprism.specs.codec import CodecSpec
from edgeprism.specs.cost import PIXEL_BYTES, TEXT_TOKEN_BYTES
from edgeprism.specs.model import ModelSpec
from edgeprism.specs.plan import PIECES_A_BLOCK, Plan, Stage

ROTARY = ("llama", "qwen2")  # families without a table of positions
OUTPUT_BYTES = 4  # of one number of an output, in float32


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
    """Multiply-accumulates of each piece for one sample; the first one's with the embedding. They add up to
    `specs.cost.whole_model_macs`."""
    width, wide = model.hidden_size, model.intermediate_size
    attention = num_tokens * width * (width + 2 * model.key_value_width) + 2 * num_tokens * num_tokens * width
    block = (
        attention,
        num_tokens * width * width,
        (model.mlp_matrices - 1) * num_tokens * width * wide,
        num_tokens * width * wide,
    )
    pieces = list(block * model.num_layers)
    pieces[0] += model.embedding_macs(num_tokens)
    return tuple(pieces)


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


def stage_weight_bytes(model: ModelSpec, start: int, stop: int, element_bytes: int) -> int:
    """Of the pieces [start, stop)."""
    return element_bytes * sum(piece_values(model)[start:stop])


def cut_bytes(
    model: ModelSpec, codec: CodecSpec, *, num_tokens: int, batch: int, element_bytes: int
) -> tuple[int, ...]:
    """What travels at each cut for so many samples: the inputs, then what goes on between pieces (the rows, and where a
    block is cut inside of its halves what they are added to), last the outputs."""

    def rows(*widths: int) -> int:
        return sum(
            payload_bytes(codec, num_tokens=num_tokens, width=width, batch=batch, element_bytes=element_bytes)
            for width in widths
        )

    width, wide = model.hidden_size, model.intermediate_size
    inside = (rows(width, width), rows(width), rows(width, wide), rows(width))
    value_bytes = PIXEL_BYTES if model.is_vision else TEXT_TOKEN_BYTES
    inputs = batch * model.input_values(num_tokens) * value_bytes
    return (inputs, *(inside * model.num_layers)[:-1], batch * _output_values(model, num_tokens) * OUTPUT_BYTES)


def even(macs: Sequence[int], devices: Sequence[int], shares: Sequence[float] | None = None) -> tuple[Stage, ...]:
    """Stages on these devices in this order, cut where the work is nearest to each one's share (by default the same for
    all). With as many pieces as devices, or more, everyone has one."""
    if len(devices) > len(macs):
        raise PlanError(f"{len(devices)} devices, and the model has {len(macs)} pieces; use fewer devices")
    parts = [1 / len(devices)] * len(devices) if shares is None else [share / sum(shares) for share in shares]
    done = [0, *accumulate(macs)]
    wanted = [part * done[-1] for part in accumulate(parts)]
    cuts, last = [0], len(macs)
    for place, target in enumerate(wanted[:-1]):
        low, high = cuts[-1] + 1, last - (len(devices) - place - 1)
        cuts.append(min(range(low, high + 1), key=lambda cut: abs(done[cut] - target)))
    cuts.append(last)
    return tuple(
        Stage(device=device, start=start, stop=stop)
        for device, start, stop in zip(devices, cuts, cuts[1:], strict=False)
    )


def _output_values(model: ModelSpec, num_tokens: int) -> int:
    if model.generates or model.architecture.endswith("ForMaskedLM"):
        return num_tokens * model.vocab_size
    return model.num_labels or num_tokens * model.hidden_size
