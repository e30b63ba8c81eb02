"""What do encoding and decoding take of a block's computation? ViT-B/16, two devices, batch 1, one thread.

The tables of calibrated codecs are fitted to random rows: the time does not depend on what is in them.
"""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Callable

import torch
import transformers

from benchmarks.report import arguments, paired, record
from edgeprism.codecs.calibration import Calibration
from edgeprism.codecs.codec import Codec, make_codec
from edgeprism.codecs.fit import fit_tables
from edgeprism.models.block import Block, attend
from edgeprism.models.registry import adapt
from edgeprism.specs.codec import CodecSpec

CODECS = (
    "int8",
    "int4",
    "rot+int4",
    "delta+rot+int4",
    "delta+rot+int2",
    "delta+pq:4",
    "delta+pq:8",
    "pq:16",
    "delta+pq:16",
)
CODECS += ("means:9.9",)
BEST_AT_AN_EIGHTH, REACH = "delta+rot+int4", 0.05
OWN, RECEIVED = 98, 99  # tokens of device 0 and device 1


def main() -> int:
    """Measures, and writes benchmarks/results/codec_time.json."""
    smoke = arguments(__doc__).parse_args().smoke
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.manual_seed(0)
    width, heads = (64, 2) if smoke else (768, 12)
    config = transformers.ViTConfig(
        hidden_size=width, num_attention_heads=heads, intermediate_size=4 * width, num_hidden_layers=2
    )
    model = adapt(transformers.ViTModel(config).eval())
    texts = ("int8", "delta+rot+int4") if smoke else CODECS
    block, own = model.blocks[0], torch.randn(1, OWN, width)
    calls: dict[str, Callable[[], object]] = {}
    received = torch.randn(1, RECEIVED, width)
    calls["block"] = lambda: compute(block, own, received)
    for text in texts:
        sender, receiver = (codec_of(text, tokens, width) for tokens in (OWN, RECEIVED))
        first = receiver.encode(received, 0), receiver.encode(received, 1)
        receiver.decode(first[0], 0)
        sender.encode(own, 0)
        calls[text] = lambda sender=sender, receiver=receiver, parts=first[1]: (  # type: ignore[misc]
            sender.encode(own, 1),
            receiver.decode(parts, 1),
        )
    with torch.inference_mode():
        seconds = paired(calls, repeats=3 if smoke else 60, warmup=1 if smoke else 10)
    whole_s = statistics.median(seconds["block"])
    figures = {}
    for text in texts:
        ratio = statistics.median(one / block_s for one, block_s in zip(seconds[text], seconds["block"], strict=True))
        figures[text] = {"ms": 1e3 * statistics.median(seconds[text]), "of_block": ratio}
        print(f"{text:16} {figures[text]['ms']:7.3f} ms  {ratio:6.1%} of a block ({1e3 * whole_s:.2f} ms)")
    best = figures[BEST_AT_AN_EIGHTH]["of_block"]
    figures["best_at_an_eighth"] = {
        "codec": BEST_AT_AN_EIGHTH,
        "at_most": REACH,
        "measured": best,
        "met": best <= REACH,
    }
    record(
        "codec_time", figures, {"model": "ViT-B/16", "own rows": OWN, "received rows": RECEIVED, "threads": 1}, smoke
    )
    return 0


def compute(block: Block, own: torch.Tensor, received: torch.Tensor) -> torch.Tensor:
    """A block on one of two devices, the rows of the other at hand."""
    y = block.attention_input(own)
    positions = torch.arange(OWN + RECEIVED)[None]
    keys, values = block.keys_values(y, positions[:, :OWN])
    others = block.keys_values(received, positions[:, OWN:])
    keys, values = torch.cat([keys, others[0]], 2), torch.cat([values, others[1]], 2)
    rows = block.attention_output(own, attend(block.queries(y, positions[:, :OWN]), keys, values, None, block.scale))
    return block.mlp_down(rows, block.mlp_up(rows))


def codec_of(text: str, num_tokens: int, width: int) -> Codec:
    """A codec, with tables where it needs some."""
    spec = CodecSpec.parse(text)
    calibration = None
    if spec.needs_calibration:
        rows = [torch.randn(300, width) for _ in range(2)]
        tables = fit_tables(spec, rows, [torch.eye(width)[None]] * 2)
        calibration = Calibration(codec=spec, fingerprint="", tables=tables)
    return make_codec(spec, num_tokens=num_tokens, mask=None, width=width, dtype=torch.float32, calibration=calibration)


if __name__ == "__main__":
    sys.exit(main())
