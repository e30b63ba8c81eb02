"""Counts of work and bytes: the published tables, and small cases worked by hand."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeprism.errors import PlanError
from edgeprism.specs.codec import CodecSpec
from edgeprism.specs.cost import Cost
from edgeprism.specs.model import ModelSpec
from edgeprism.specs.plan import Plan
from edgeprism.strategies.registry import count
from tests.specs.configs import BERT_BASE, GPT2, SMOLLM2, VIT_BASE

VIT, BERT, GPT, SMOL = (ModelSpec.from_config(config) for config in (VIT_BASE, BERT_BASE, GPT2, SMOLLM2))


def sequence(
    model: ModelSpec, codec: str, num_tokens: int, *, num_devices: int = 2, batch: int = 1, element_bytes: int = 4
) -> Cost:
    """Tokens split evenly."""
    plan = Plan.even("sequence", num_devices, CodecSpec.parse(codec))
    return count(model, plan, num_tokens=num_tokens, batch=batch, element_bytes=element_bytes)


def local(model: ModelSpec, num_tokens: int) -> Cost:
    """One sample on one device."""
    return count(model, Plan.local(), num_tokens=num_tokens, batch=1, element_bytes=4)


@pytest.mark.parametrize(
    ("codec", "key_rows", "gflop", "saved_percent"),
    [
        ("exact", 197, 20.39, 0.0),
        ("means:L=10", 108, 17.55, 89.85),
        ("means:9.9", 108, 17.55, 89.85),
        ("means:L=20", 118, 17.87, 79.70),
        ("means:L=30", 128, 18.19, 69.54),
    ],
)
def test_published_vit_table(codec: str, key_rows: int, gflop: float, saved_percent: float) -> None:
    """PRISM's table for ViT-B/16 on two devices: the device with 98 rows is the coordinator (arXiv 2507.12145)."""
    cost = sequence(VIT, codec, 197)
    assert cost.saved is not None
    assert cost.devices[0].num_tokens == 98
    assert cost.devices[0].key_rows == key_rows
    assert round(cost.devices[0].gflop, 2) == gflop
    assert round(100 * cost.saved, 2) == saved_percent


def test_one_device() -> None:
    """ViT-B/16 whole: 35.13 GFLOP, nothing sent."""
    cost = local(VIT, 197)
    assert round(cost.devices[0].gflop, 2) == 35.13
    assert cost.devices[0].bytes_sent == 0
    assert cost.saved is None


def test_published_bert_headline() -> None:
    """BERT-base, 256 tokens, one mean from each of two devices: 99.22 % of the exchange, 51.24 % of the work."""
    cost, whole = sequence(BERT, "means:L=1", 256), local(BERT, 256)
    assert cost.saved is not None
    assert round(100 * cost.saved, 2) == 99.22
    assert round(100 * (1 - cost.devices[0].gflop / whole.devices[0].gflop), 2) == 51.24


def test_vit_bytes_by_hand() -> None:
    """Tokens 98 to 196 lie in 8 of 14 rows of patches, 14 * 16 * 16 * 3 values each, which go out once with a table of
    levels; then 98 rows go one way and 99 the other in each of twelve blocks."""
    cost = sequence(VIT, "exact", 197)
    assert cost.input_bytes == 8 * 14 * 768 + 3 * 256 * 4
    assert [device.bytes_sent for device in cost.devices] == [cost.input_bytes + 12 * 98 * 3072, 12 * 99 * 3072]
    assert cost.bytes_per_block == 99 * 768 * 4
    assert cost.num_exchanges == 12


def test_batch_and_dtype_scale_the_bytes() -> None:
    """Bytes are for the whole batch, rows in the dtype that the model computes in and pictures always a byte a value;
    work does not depend on the dtype."""
    one, many = sequence(VIT, "exact", 197), sequence(VIT, "exact", 197, batch=8, element_bytes=2)
    assert many.bytes_per_block == 4 * one.bytes_per_block
    assert many.input_bytes == 8 * (one.input_bytes - 3 * 256 * 4) + 3 * 256 * 2
    assert many.devices[0].macs == 8 * one.devices[0].macs


def test_three_devices_send_to_two_peers_each() -> None:
    """What a device sends in a block counts once for each peer."""
    cost = sequence(BERT, "means:L=4", 99, num_devices=3)
    assert cost.bytes_per_block == 2 * 4 * 768 * 4
    assert [device.key_rows for device in cost.devices] == [33 + 8] * 3


def test_texts_are_handed_out_as_ids() -> None:
    """The other device looks its own 50 tokens up: an id and a position each, no embedded rows."""
    assert sequence(BERT, "exact", 100).input_bytes == 50 * 8


def test_keys_and_values_are_projected_once() -> None:
    """With kv: codecs a device projects its own rows only: half the work for half the tokens, twice the bytes."""
    rows, keys_values = sequence(BERT, "exact", 256), sequence(BERT, "kv:exact", 256)
    assert keys_values.devices[0].macs * 2 == local(BERT, 256).devices[0].macs
    assert rows.devices[0].macs - keys_values.devices[0].macs == 12 * 2 * 128 * 768 * 768
    assert keys_values.bytes_per_block == 2 * rows.bytes_per_block
    assert keys_values.saved == -1


def test_grouped_heads_by_hand() -> None:
    """SmolLM2-135M, 512 tokens: a row passes 2 * 576 * 576 (queries, output) + 2 * 576 * 192 (keys, values) +
    3 * 576 * 1536 (gated MLP) = 3,538,944; with 2 * 512 * 576 of attention for each row, 30 blocks are 126.84 GFLOP."""
    assert local(SMOL, 512).devices[0].macs == 30 * 512 * (3_538_944 + 2 * 512 * 576)
    rows, keys_values = sequence(SMOL, "exact", 512), sequence(SMOL, "kv:exact", 512)
    assert rows.bytes_per_block == 256 * 576 * 4
    assert keys_values.bytes_per_block == 256 * 2 * 192 * 4
    assert keys_values.saved == pytest.approx(1 / 3)
    assert rows.devices[1].macs - keys_values.devices[1].macs == 30 * 256 * 2 * 576 * 192
    assert sequence(SMOL, "kv:int8", 512).bytes_per_block == 256 * 2 * (192 + 4)
    assert sequence(SMOL, "means:L=2+int8", 512).bytes_per_block == 2 * (576 + 4)


def test_causal_models_send_forward_only() -> None:
    """GPT-2 over three devices: each reads the partitions before its own, the last one sends nothing."""
    cost = sequence(GPT, "exact", 90, num_devices=3)
    assert [device.key_rows for device in cost.devices] == [30, 60, 90]
    assert [device.bytes_sent for device in cost.devices] == [60 * 8 + 12 * 2 * 30 * 3072, 12 * 30 * 3072, 0]
    assert cost.bytes_per_block == 2 * 30 * 3072


def test_causal_means() -> None:
    """With means a later device reads the means of those before it."""
    assert [device.key_rows for device in sequence(GPT, "means:L=2", 90, num_devices=3).devices] == [30, 32, 34]


def test_device_without_a_share_takes_no_part() -> None:
    """A share of nothing: no rows, no work, nothing sent to it."""
    plan = Plan(strategy="sequence", shares=(0.5, 0.0, 0.5))
    cost = count(BERT, plan, num_tokens=100, batch=1, element_bytes=4)
    assert (cost.devices[1].macs, cost.devices[1].key_rows, cost.devices[1].bytes_sent) == (0, 0, 0)
    assert cost.bytes_per_block == 50 * 3072


@pytest.mark.parametrize("strategy", ["replica", "sequence"])
@pytest.mark.parametrize("model", [VIT, BERT, GPT, SMOL], ids=lambda model: model.architecture)
def test_one_share_costs_what_local_costs(model: ModelSpec, strategy: str) -> None:
    """Any strategy over one device is the one-device model."""
    cost = count(model, Plan.even(strategy, 1), num_tokens=197, batch=3, element_bytes=4)
    assert cost == count(model, Plan.local(), num_tokens=197, batch=3, element_bytes=4)


def test_replica_by_hand() -> None:
    """Eight images on two devices: half the work each, four images of 224 x 224 x 3 pixels of eight bits sent once."""
    cost = count(VIT, Plan.even("replica", 2), num_tokens=197, batch=8, element_bytes=4)
    assert [device.macs for device in cost.devices] == [4 * local(VIT, 197).devices[0].macs] * 2
    assert [device.bytes_sent for device in cost.devices] == [4 * 224 * 224 * 3, 0]
    assert cost.num_exchanges == cost.bytes_per_block == 0


def test_replica_of_fewer_samples_than_devices() -> None:
    """One sample stays with the coordinator; the others rest."""
    cost = count(BERT, Plan.even("replica", 3), num_tokens=100, batch=1, element_bytes=4)
    assert [device.num_samples for device in cost.devices] == [1, 0, 0]
    assert [device.macs for device in cost.devices[1:]] == [0, 0]
    assert cost.input_bytes == 0


def test_gated_mlp_has_three_matrices() -> None:
    """A SwiGLU block adds a third matrix of the hidden width."""
    config = {"architectures": ["Dinov2Model"], "hidden_size": 48, "num_attention_heads": 4, "num_hidden_layers": 1}
    gated = ModelSpec.from_config({**config, "use_swiglu_ffn": True})  # 4 * 48 * 2 / 3 = 128 wide
    macs = 4 * 257 * 48 * 48 + 2 * 257 * 257 * 48 + 3 * 257 * 48 * 128 + gated.patch_embedding_macs
    assert local(gated, 257).devices[0].macs == macs


@settings(deadline=None)
@given(
    st.sampled_from([VIT, BERT, GPT]),
    st.lists(st.integers(1, 20), min_size=1, max_size=8),
    st.sampled_from(["exact", "kv:exact", "int8"]),
)
def test_work_is_shared_not_lost(model: ModelSpec, weights: list[int], codec: str) -> None:
    """Attention and MLP of all devices add up to one device's; only projections of received rows come on top."""
    plan = Plan(strategy="sequence", shares=tuple(w / sum(weights) for w in weights), codec=CodecSpec.parse(codec))
    cost = count(model, plan, num_tokens=197, batch=1, element_bytes=4)
    received = sum(device.key_rows - device.num_tokens for device in cost.devices)
    again = 0 if codec.startswith("kv:") else 12 * 2 * received * 768 * 768
    whole = local(model, 197).devices[0].macs
    unseen = sum(device.num_tokens * (197 - device.key_rows) for device in cost.devices)  # masked in causal models
    assert sum(device.macs for device in cost.devices) == whole + again - 12 * 2 * unseen * 768


@pytest.mark.parametrize(
    ("codec", "num_tokens", "num_devices", "batch", "message"),
    [
        ("exact", 3, 4, 1, "more devices than tokens"),
        ("means:50", 64, 2, 1, "partition of 32"),
        ("means:L=33", 64, 2, 1, "partition of 32"),
        ("exact", 513, 2, 1, "takes 1 to 512 tokens"),
        ("exact", 0, 2, 1, "takes 1 to 512 tokens"),
        ("exact", 64, 2, 0, "a batch has 1 to"),
    ],
)
def test_impossible_requests(codec: str, num_tokens: int, num_devices: int, batch: int, message: str) -> None:
    """What cannot run is not counted either."""
    with pytest.raises(PlanError, match=message):
        sequence(BERT, codec, num_tokens, num_devices=num_devices, batch=batch)
