"""What a request costs when every sample's tokens are split: the counts of PRISM (arXiv 2507.12145).

In every block each device sends its encoded partition to every peer that reads it: all others, or in a causal model
those with later tokens.
"""

from __future__ import annotations

from edgeprism.codecs.size import payload_bytes
from edgeprism.specs.codec import EXACT, CodecSpec
from edgeprism.specs.cost import Cost, DeviceCost, block_macs, handed_out
from edgeprism.specs.model import ModelSpec
from edgeprism.specs.plan import Plan
from edgeprism.strategies.sequence.partition import token_bounds


def cost(model: ModelSpec, plan: Plan, *, num_tokens: int, batch: int, element_bytes: int) -> Cost:
    """Counts for a batch of ``batch`` samples of ``num_tokens`` tokens each, none of them padding.

    Every block is counted whole, as in the paper; a run does less in the last one, where only rows that the head reads
    are computed. The embedding is counted once, as in the paper; devices that get pixels (``handed_out``) embed
    them, too. PlanError when the codec or the devices do not fit the tokens.

    ViT-B/16, two devices, `means:L=10`, device 0, by hand: Nq = 98 own rows, Nk = 98 + 10 key rows, D = 768, so a block
    is 10 * 98 * 589,824 + 2 * 108 * 589,824 + 2 * 98 * 108 * 768 = 721,686,528; twelve blocks and the patch embedding's
    115,605,504, times two, are 17.55 GFLOP. It sends 10 * 768 * 4 = 30,720 bytes in a block.
    """
    bounds = token_bounds(num_tokens, plan.shares)
    counts = [stop - start for start, stop in bounds]
    input_bytes = sum(
        handed_out(model, *each, num_tokens=num_tokens, batch=batch, element_bytes=element_bytes).num_bytes
        for each in bounds[1:]
        if each[0] < each[1]
    )
    sent = _sent_per_block(model, plan.codec, counts, batch, element_bytes)
    num_exchanges = model.num_layers if any(sent) else 0
    return Cost(
        devices=tuple(
            DeviceCost(
                num_samples=batch if counts[index] else 0,
                num_tokens=counts[index],
                key_rows=_key_rows(model, plan.codec, counts, index),
                macs=batch * _sample_macs(model, plan.codec, counts, index),
                bytes_sent=num_exchanges * sent[index] + (input_bytes if index == 0 else 0),
            )
            for index in range(len(counts))
        ),
        input_bytes=input_bytes,
        bytes_per_block=max(sent),
        exchange_bytes_per_block=sum(sent),
        full_bytes_per_block=sum(_sent_per_block(model, EXACT, counts, batch, element_bytes)),
        num_exchanges=num_exchanges,
    )


def _sent_per_block(model: ModelSpec, codec: CodecSpec, counts: list[int], batch: int, element_bytes: int) -> list[int]:
    """Bytes that each device sends in one block: one payload to every device that reads its rows."""
    width = model.hidden_size if codec.travels == "rows" else 2 * model.key_value_width
    everyone = range(len(counts))
    return [
        payload_bytes(codec, num_tokens=counts[index], width=width, batch=batch, element_bytes=element_bytes)
        * sum(_reads(model, counts, peer, index) for peer in everyone)
        for index in everyone
    ]


def _sample_macs(model: ModelSpec, codec: CodecSpec, counts: list[int], index: int) -> int:
    key_rows = _key_rows(model, codec, counts, index)
    # keys and values that travel are not projected again by those who receive them
    projected_rows = key_rows if codec.travels == "rows" else counts[index]
    block = block_macs(model, own_rows=counts[index], key_rows=key_rows, projected_rows=projected_rows)
    return model.num_layers * block + (model.embedding_macs(sum(counts)) if index == 0 else 0)


def _key_rows(model: ModelSpec, codec: CodecSpec, counts: list[int], index: int) -> int:
    """Own rows and those received in a block."""
    senders = [peer for peer in range(len(counts)) if _reads(model, counts, index, peer)]
    return counts[index] + sum(codec.num_rows(counts[peer]) for peer in senders)


def _reads(model: ModelSpec, counts: list[int], reader: int, sender: int) -> bool:
    """Whether ``reader`` attends to the rows of ``sender``; devices without tokens take no part."""
    if reader == sender or not (counts[reader] and counts[sender]):
        return False
    return sender < reader or not model.is_causal
