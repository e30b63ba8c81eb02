"""A lossy codec loses what it says and nothing else: `sequence` equals a dense reference in one process."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import edgeprism
from edgeprism.codecs.calibration import Calibration
from edgeprism.codecs.codec import PartitionCodec
from edgeprism.evaluate.calibrate import calibrate
from edgeprism.models.model import Model, Tokens
from edgeprism.models.reads import HeadInput
from edgeprism.models.registry import adapt
from edgeprism.specs.codec import CodecSpec
from edgeprism.specs.plan import Plan
from edgeprism.strategies.meter import Meter
from edgeprism.strategies.sequence.forward import SequenceForward, Work
from edgeprism.strategies.sequence.partition import token_bounds
from edgeprism.strategies.staging import Staging
from edgeprism.wire.memory import MemoryTransport
from tests.families import TEXT_TOKENS, difference, example, expected, make, padded
from tests.strategies.dense import dense_rows

CODECS = [
    *("means:3", "means:L=2", "int8", "int4", "means:2+int8", "means:L=2+int4"),
    *("kv:means:3", "kv:means:L=2", "kv:int8", "kv:int4", "kv:means:2+int8"),
    *("rot+int4", "means:2+rot+int3", "kv:rot+int2", "delta+int8", "delta+rot+int4", "means:2+delta+rot+int2"),
]
SPLITS = {"even": (0.5, 0.5), "uneven": (0.25, 0.45, 0.3)}
TOLERANCE = {torch.float32: 1e-4, torch.float64: 4e-6}  # scales and mean positions are float32 in any case
TOLERANCE_ROTATED = 2e-5  # rotations and predictions are, too


def run_sequence(
    model: Model,
    tokens: Tokens,
    bounds: Sequence[tuple[int, int]],
    codec: str,
    calibration: Calibration | None = None,
) -> HeadInput:
    """What the head reads, from one thread a partition."""
    mesh = MemoryTransport.mesh(len(bounds))
    parts: list[Any] = [None] * len(bounds)

    def work(index: int) -> None:
        work = Work(
            devices=tuple(range(len(bounds))),
            bounds=tuple(bounds),
            index=index,
            codec=CodecSpec.parse(codec),
            calibration=calibration,
            features=tokens.features_of(*bounds[index]),
            mask=tokens.mask,
            reads=tokens.reads,
            epoch=0,
            request=0,
            positions=tokens.positions,
        )
        staging, deadline = Staging(model.device), time.monotonic() + 30
        with torch.no_grad():
            forward = SequenceForward(model, work, mesh[index], staging, deadline=deadline, meter=Meter())
            parts[index] = forward.run()

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(bounds))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return tokens.reads.join(parts, bounds)


def gap(model: Model, inputs: dict[str, Tensor], shares: Sequence[float], codec: str) -> float:
    """Largest difference of what the head reads, at real tokens, between the threads and the dense reference."""
    tokens = model.tokens(inputs)
    bounds = token_bounds(tokens.num_tokens, shares)
    spec, calibration = CodecSpec.parse(codec), None
    if spec.needs_calibration:
        (calibration,) = calibrate(model, [inputs], [spec], shares, num_samples=tokens.batch)
    ours = run_sequence(model, tokens, bounds, codec, calibration)
    with torch.no_grad():
        dense = dense_rows(model, tokens, bounds, codec, None if calibration is None else calibration.tables)
        wanted = tokens.reads.join([tokens.reads.take(dense, 0, tokens.num_tokens)], [(0, tokens.num_tokens)])
    gaps = []
    for own, other in ((ours.rows, wanted.rows), (ours.mean, wanted.mean)):
        assert (own is None) == (other is None)
        if own is not None and other is not None:
            difference = (own - other).abs()
            assert torch.isfinite(own).all()
            if tokens.mask is not None and tokens.reads.every_row:
                difference = difference[tokens.mask]
            gaps.append(float(difference.max()))
    return max(gaps)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(
    ("architecture", "padding"),
    [
        ("ViTModel", "plain"),
        ("Dinov2ForImageClassification", "plain"),
        ("BertModel", "right"),
        ("RobertaForSequenceClassification", "left"),
        ("GPT2Model", "plain"),
        ("GPT2LMHeadModel", "left"),
        ("GPT2ForSequenceClassification", "right"),
        ("LlamaModel", "plain"),
        ("Qwen2ForCausalLM", "left"),
        ("LlamaForSequenceClassification", "right"),
    ],
)
def test_equals_the_dense_reference(architecture: str, padding: str, codec: str, split: str) -> None:
    """Own rows exactly, others' as decoded, log counts, no padding, nothing of later partitions in a causal model.

    Quantised codecs are compared in float64, where rounding to integers falls out alike on both sides.
    """
    dtype = torch.float64 if "int" in codec else torch.float32
    model = adapt(make(architecture).to(dtype))
    inputs = example(architecture, batch=2) if padding == "plain" else padded(architecture, padding, (13, 4))
    is_rotated = "rot" in codec or "delta" in codec
    assert gap(model, inputs, SPLITS[split], codec) <= (TOLERANCE_ROTATED if is_rotated else TOLERANCE[dtype])


@pytest.mark.parametrize("codec", ["means:3", "kv:means:2+int8", "int4"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("architecture", ["BertForMaskedLM", "GPT2Model", "LlamaModel"])
def test_what_stands_at_padding_does_not_matter(architecture: str, side: str, codec: str) -> None:
    """Other ids under the same mask, with huge embeddings, change no output at a real token by more than rounding."""
    reference = make(architecture)
    words = reference.get_input_embeddings().weight
    with torch.no_grad():
        words[50] = 1e4
    inputs = padded(architecture, side)
    garbage = {**inputs, "input_ids": inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, 50)}
    inputs["input_ids"][inputs["input_ids"] == 50] = 51
    garbage["input_ids"][(garbage["input_ids"] == 50) & (inputs["attention_mask"] == 1)] = 51
    model = adapt(reference)
    rows = []
    for given in (inputs, garbage):
        tokens = model.tokens(given)
        bounds = token_bounds(TEXT_TOKENS, (0.4, 0.3, 0.3))
        result = run_sequence(model, tokens, bounds, codec).rows
        assert result is not None and tokens.mask is not None
        rows.append(result[tokens.mask])
    assert (rows[0] - rows[1]).abs().max() <= 1e-5


@pytest.mark.parametrize("architecture", ["ViTForImageClassification", "BertModel", "GPT2Model", "Qwen2Model"])
def test_more_means_lose_less(architecture: str) -> None:
    """The loss of a codec falls with every bit and every mean, from a visible one to none: no test here passes idly."""
    reference = make(architecture)
    inputs = example(architecture)
    wanted = expected(reference, inputs)
    with edgeprism.Cluster.in_process(2) as cluster, edgeprism.load(reference, cluster=cluster) as engine:

        def loss(codec: str) -> float:
            engine.use(Plan.even("sequence", 2, CodecSpec.parse(codec)))
            output = engine(**inputs)
            assert engine.last_trace is not None and engine.last_trace.failures == ()
            return difference(output, wanted, inputs)

        assert loss("means:L=1") > 0.02
        assert loss("int4") > 0.01
        assert loss("int8") < loss("int4") / 4
        assert loss("kv:int8") < loss("kv:int4") / 4
        assert loss("means:1") < 1e-4 < loss("int8")


@pytest.mark.parametrize("codec", ["means:3", "kv:int8", "means:2+int4"])
@pytest.mark.parametrize("architecture", ["BertForSequenceClassification", "GPT2LMHeadModel", "LlamaForCausalLM"])
def test_engine_with_a_lossy_codec(architecture: str, codec: str) -> None:
    """What the engine gives is the head on the dense reference's rows, padded batches included."""
    reference = make(architecture)
    inputs, shares = padded(architecture, "left"), (0.3, 0.3, 0.4)
    model = adapt(reference)
    tokens = model.tokens(inputs)
    with torch.no_grad():
        dense = dense_rows(model, tokens, token_bounds(TEXT_TOKENS, shares), codec)
        read = tokens.reads.join([tokens.reads.take(dense, 0, TEXT_TOKENS)], [(0, TEXT_TOKENS)])
        wanted = {"logits": model.head(read).logits}
    with edgeprism.Cluster.in_process(3) as cluster, edgeprism.load(reference, cluster=cluster) as engine:
        engine.use(Plan(strategy="sequence", shares=shares, codec=CodecSpec.parse(codec)))
        output = engine(**inputs)
        assert engine.last_trace is not None and engine.last_trace.failures == ()
    values = [at_real(value, inputs) for value in (output.logits, wanted["logits"])]
    exact = at_real(expected(reference, inputs)["logits"], inputs)
    # float32: a value on the edge between two codes may fall out either way, which moves few outputs a little
    assert (values[0] - values[1]).abs().mean() <= (values[0] - exact).abs().mean() / 20


def at_real(value: Tensor, inputs: dict[str, Tensor]) -> Tensor:
    """Rows of real tokens; outputs without rows as they are."""
    return value[inputs["attention_mask"].bool()] if value.ndim == 3 else value


@pytest.mark.parametrize("codec", ["means:3", "kv:means:2", "int8"])
@pytest.mark.parametrize("rows", [2, 1])
def test_given_positions_are_averaged(rows: int, codec: str) -> None:
    """In a family that rotates, a mean stands at the mean of its real tokens' positions, whatever they are."""
    model = adapt(make("LlamaModel").double())
    positions = torch.randint(0, 40, (rows, 13), generator=torch.Generator().manual_seed(3))
    inputs = {**padded("LlamaModel", "left", (13, 4)), "position_ids": positions}
    assert gap(model, inputs, SPLITS["uneven"], codec) <= TOLERANCE[torch.float64]


@pytest.mark.parametrize("mistake", ["counts", "causal", "own rows", "positions", "mean positions"])
def test_mistakes_are_seen(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropped log counts, a forgotten causal mask, a device that uses its own means or turns others' keys to another
    position are far beyond the tolerance."""
    from edgeprism.strategies.sequence import bias, forward

    architecture = "GPT2Model"
    if mistake == "counts":
        honest_log = bias._log_counts
        monkeypatch.setattr(
            bias,
            "_log_counts",
            lambda count, rows, dtype: honest_log(None if count is None else count.clamp(max=1), rows, dtype),
        )
    elif mistake == "causal":
        honest = forward.attention_bias
        monkeypatch.setattr(
            forward, "attention_bias", lambda *args, is_causal, dtype: honest(*args, is_causal=False, dtype=dtype)
        )
    elif mistake == "positions":
        architecture = "LlamaModel"
        honest_positions = PartitionCodec.positions
        monkeypatch.setattr(PartitionCodec, "positions", lambda codec, start: honest_positions(codec, 0) * 0)
    elif mistake == "mean positions":
        architecture = "LlamaModel"
        honest_positions = PartitionCodec.positions
        monkeypatch.setattr(PartitionCodec, "positions", lambda codec, start: honest_positions(codec, start).floor())
    else:
        honest_insert = forward._insert
        monkeypatch.setattr(
            forward,
            "_insert",
            lambda remote, own, before: honest_insert(remote, own.mean(2, keepdim=True).expand_as(own), before),
        )
    model = adapt(make(architecture))
    assert gap(model, padded(architecture, "left", (13, 4)), (0.4, 0.6), "means:3") > 1e-2
