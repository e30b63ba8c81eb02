"""Codecs for tests, with tables fitted to random rows where they need some."""

from __future__ import annotations

import torch
from torch import Tensor

from edgeprism.codecs.calibration import Calibration
from edgeprism.codecs.codec import Codec, make_codec
from edgeprism.codecs.fit import fit_tables
from edgeprism.specs.codec import CodecSpec

NUM_BLOCKS = 3


def related_rows(num_vectors: int, width: int, seed: int = 0) -> list[Tensor]:
    """Rows of each block: those of the block before, changed a little; some values are many times larger."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.rand(width, generator=generator).mul(4).exp()
    rows = [torch.randn(num_vectors, width, generator=generator)]
    for _ in range(NUM_BLOCKS - 1):
        rows.append(0.9 * rows[-1] + 0.3 * torch.randn(num_vectors, width, generator=generator))
    return [block * sizes for block in rows]


def calibration_of(spec: CodecSpec, width: int, rows: list[Tensor] | None = None) -> Calibration | None:
    """Tables of ``spec`` for rows of ``width`` values; None where it needs none."""
    if not spec.needs_calibration:
        return None
    groups = 2 if spec.travels == "keys_values" else 1
    metrics = [torch.eye(width // groups).expand(groups, -1, -1)] * NUM_BLOCKS
    tables = fit_tables(spec, related_rows(300, width) if rows is None else rows, metrics)
    return Calibration(codec=spec, fingerprint="", tables=tables)


def codec_of(
    text: str, num_tokens: int, width: int, mask: Tensor | None = None, dtype: torch.dtype = torch.float32
) -> Codec:
    """The codec of one partition."""
    spec = CodecSpec.parse(text)
    return make_codec(
        spec, num_tokens=num_tokens, mask=mask, width=width, dtype=dtype, calibration=calibration_of(spec, width)
    )
