"""`edgeprism plan --plan pipeline` with a performance map: the best stages, what they take, and what others would."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import ViTConfig

from edgeprism.cli.main import main
from edgeprism.cli.plan_pipeline import as_document, as_text
from edgeprism.planner.micro_batch import best_pipeline, sizes_up_to
from edgeprism.planner.pipeline import Pipeline
from edgeprism.planner.quickest import quickest
from edgeprism.planner.throughput import fastest
from edgeprism.policy.network import Network
from edgeprism.policy.pipeline import pipeline_of
from edgeprism.policy.predict import predict
from edgeprism.specs.codec import CodecSpec
from edgeprism.specs.performance_map import PerformanceMap
from edgeprism.specs.plan import Plan
from edgeprism.wire.keys import KeyPair
from tests.families import make
from tests.policy.maps import performance_map


def planned(found: PerformanceMap, *, rate_mbit: float = 400.0, codec: str = "exact", **options: Any) -> dict[str, Any]:
    """The best stages and what they take."""
    network, spec = Network.measured(found.costs).at(rate_mbit * 1e6 / 8), CodecSpec.parse(codec)

    def make(size: int) -> Pipeline:
        return pipeline_of(
            found.costs, found.model, network, num_tokens=197, micro_batch=size, element_bytes=4, codec=spec, **options
        )

    best = best_pipeline(make, [1], 1, "throughput")
    plan = Plan.pipeline(best.stages, best.pipeline.num_devices, spec)
    return as_document(plan, best.pipeline, found.model, num_tokens=197, element_bytes=4)


def test_two_equal_devices_have_a_half_each() -> None:
    """Twice as many samples; one alone takes what one device takes and the transfer of its rows."""
    found = performance_map()
    document = planned(found)
    alone_s = predict(
        found.costs, found.model, Plan.local(), batch=1, num_tokens=197, element_bytes=4,
        network=Network.measured(found.costs),
    ).total_s  # fmt: skip
    assert document["period_s"] == pytest.approx(alone_s / 2, rel=0.05)
    rows_s = document["stages"][1]["bytes_in"] / 50e6  # cut within an MLP, five times a block's rows
    assert document["request_s"] == pytest.approx(alone_s + rows_s, rel=0.05)
    assert sum(row["pieces"][1] - row["pieces"][0] for row in document["stages"]) == 48
    assert all(1.02 * baseline_s >= document["period_s"] for baseline_s in document["baselines"].values())


def test_a_slow_device_gets_little_and_a_slow_link_nothing() -> None:
    """A quarter of the speed: about a fifth of the pieces. Over 1 Mbit/s one device does everything."""
    found = performance_map((1.0, 0.25))
    pieces = {row["device"]: row["pieces"][1] - row["pieces"][0] for row in planned(found)["stages"]}
    assert 7 <= pieces[1] <= 12
    assert [row["device"] for row in planned(found, rate_mbit=1.0)["stages"]] == [0]
    assert len(planned(found, rate_mbit=20.0, codec="int4")["stages"]) == 2


def test_the_best_micro_batch_is_found() -> None:
    """Larger ones compute faster, since weights are read once for each; a single request of eight is answered soonest
    in parts, so that devices work at the same time."""
    found, network = performance_map(), Network.measured(performance_map().costs)

    def make(size: int) -> Pipeline:
        return pipeline_of(found.costs, found.model, network, num_tokens=197, micro_batch=size, element_bytes=4)

    best = best_pipeline(make, sizes_up_to(8), 8, "throughput")
    each = {size: make(size).period_s(fastest(make(size))) / size for size in (1, 2, 4, 8)}
    assert best.micro_batch == min(each, key=lambda size: each[size])
    soonest = best_pipeline(make, sizes_up_to(8), 8, "latency")
    whole = make(8)
    took_s = soonest.pipeline.request_s(soonest.stages)
    took_s += (8 // soonest.micro_batch - 1) * soonest.pipeline.period_s(soonest.stages)
    assert soonest.micro_batch < 8 and took_s < 0.75 * whole.request_s(quickest(whole))
    assert sizes_up_to(1) == (1,) and sizes_up_to(12) == (1, 2, 3, 6, 12)


def test_devices_on_one_medium_share_it() -> None:
    """Where the profile found two directions at once much slower than one: transfers add up, and the text says so."""
    found = performance_map((1.0,) * 4)
    links = tuple(replace(link, both_factor=0.5) for link in found.costs.links)
    shared = replace(found, costs=replace(found.costs, links=links))
    alone, together = planned(found, rate_mbit=50.0), planned(shared, rate_mbit=50.0)
    between = [sum(row["bytes_in"] for row in document["stages"][1:]) for document in (alone, together)]
    assert together["period_s"] > alone["period_s"] and between[1] < 0.6 * between[0]
    assert "over one medium" in "\n".join(as_text(together)) and "medium" not in "\n".join(as_text(alone))


def test_what_bytes_take_is_in_the_map() -> None:
    """Carrying, laying out and staging a megabyte, as it was fitted: 0.2 ms, 0.2 ms and 3 ms."""
    found = performance_map()
    devices = tuple(replace(one, staging=(0.001, 0.003)) for one in found.costs.devices)
    pipeline = pipeline_of(
        replace(found.costs, devices=devices), found.model, Network.measured(found.costs), num_tokens=197,
        micro_batch=1, element_bytes=4,
    )  # fmt: skip
    assert pipeline.s_per_byte == pytest.approx((3.4e-9, 3.4e-9))


def test_memory_is_kept_to() -> None:
    """Where device 0 may hold a third of the weights it does; the text says what each holds, and what is slowest."""
    document = planned(performance_map(), memory_bytes={0: 130e6, 1: 1e9})
    held = {row["device"]: row["memory_bytes"] for row in document["stages"]}
    assert held[0] <= 130e6 < held[1]
    text = "\n".join(as_text(document))
    assert "The slowest: device 1 computes stage" in text and "PipeDream" in text


def test_the_command_reads_the_map(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without one stages are cut where the work is even, and it says so; a number of memories that does not fit is
    refused."""
    ViTConfig(architectures=["ViTForImageClassification"], num_labels=10).save_pretrained(tmp_path)
    assert main(["plan", str(tmp_path), "--plan", "pipeline", "--devices", "4"]) == 0
    text = capsys.readouterr().out
    assert "pipeline of 4 stages, micro-batches of 1" in text and "`edgeprism profile` measures" in text
    assert text.endswith("To run it: --plan pipeline --stages 0:0-10,1:10-22,2:22-34,3:34-48\n")
    for words, why in (
        (("--devices", "3", "--memory-mb", "1,1"), "--memory-mb takes 3 numbers"),
        (("--devices", "2", "--memory-mb", "100,100"), "the model's weights take 346 MB, and 146 MB lack"),
        (("--stages", "0:0-40,1:40-48", "--memory-mb", "100,900"), "device 0 lacks"),
        (("--objective", "latency"), "--objective needs a performance map: name the devices"),
        (("--shares", "0.9,0.2"), "add up to 1.1"),
    ):
        assert main(["plan", str(tmp_path), "--plan", "pipeline", *words]) == 2
        assert why in capsys.readouterr().err
    assert main(["plan", str(tmp_path), "--plan", "pipeline", "--devices", "3", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [row["pieces"] for row in document["stages"]] == [[0, 14], [14, 30], [30, 48]]
    assert document["stages"][0]["weight_bytes"] == pytest.approx(4 * 86e6 * 14 / 48, rel=0.05)


def test_memory_moves_cuts_without_a_map(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What fits can be asked before anything can be measured: even where that fits, else within each one's memory; a
    device whose share is nothing has no part."""
    ViTConfig(architectures=["ViTForImageClassification"], num_labels=10).save_pretrained(tmp_path)

    def held(*words: str) -> dict[int, float]:
        assert main(["plan", str(tmp_path), "--plan", "pipeline", "--json", *words]) == 0
        rows = json.loads(capsys.readouterr().out)["stages"]
        assert rows[0]["pieces"][0] == 0 and rows[-1]["pieces"][1] == 48
        return {row["device"]: row["memory_bytes"] for row in rows}

    even = held("--devices", "2")
    assert 0.8 < even[0] / even[1] < 1.25
    assert held("--devices", "2", "--memory-mb", "300,300") == even
    small = held("--devices", "3", "--memory-mb", "500,70,500")
    assert small[1] <= 70e6 < min(small[0], small[2])
    half = [held("--devices", "2", "--micro-batch", "32", "--codec", codec)[1] for codec in ("exact", "int8")]
    assert half[0] - half[1] > 30e6  # of queues
    assert held("--shares", "0.4,0.0,0.6", "--memory-mb", "100,900,900").keys() == {0, 2}


def test_devices_that_have_no_map_are_those_that_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stages for as many as there are, and the command that measures them."""
    monkeypatch.setenv("EDGEPRISM_CACHE", str(tmp_path / "cache"))
    make("ViTForImageClassification").save_pretrained(tmp_path)
    keys = [KeyPair.generate().public for _ in range(3)]
    members = [f'[[device]]\nname = "pi{i}"\naddress = "127.0.0.{i}:9"\npublic_key = "{keys[i]}"' for i in (1, 2)]
    coordinator = f'[coordinator]\nname = "laptop"\npublic_key = "{keys[0]}"'
    (tmp_path / "cluster.toml").write_text("\n".join([coordinator, *members]))
    words = ["plan", str(tmp_path), "--plan", "pipeline"]
    for named, count in (["--cluster", str(tmp_path / "cluster.toml")], 3), (["--local-workers", "2"], 2):
        assert main([*words, *named, "--json"]) == 0
        said = capsys.readouterr()
        assert [row["device"] for row in json.loads(said.out)["stages"]] == list(range(count))
        assert f"run: edgeprism profile {tmp_path} {' '.join(named)}" in said.err
    for given, why in (
        (("--devices", "3"), "2 devices are named"),
        (("--stages", "0:0-6,5:6-12"), "device 5, and there are 2"),
        (("--shares", "0.4,0.3,0.3"), "names 3 devices, and there are 2"),
    ):
        assert main([*words, "--local-workers", "2", *given]) == 2
        assert why in capsys.readouterr().err
    assert main([*words, "--local-workers", "2", "--objective", "latency"]) == 2
    assert f"run edgeprism profile {tmp_path} with the same devices" in capsys.readouterr().err


def test_a_range_of_widths_is_planned_by_its_widest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As it is run; one that grows wider is refused."""
    ViTConfig(architectures=["ViTForImageClassification"], num_labels=10).save_pretrained(tmp_path)
    words = ["plan", str(tmp_path), "--plan", "pipeline", "--devices", "2", "--json", "--codec"]
    assert main([*words, "exact..int4"]) == 0
    plan = json.loads(capsys.readouterr().out)["plan"]
    assert (plan["codec"], plan["narrowest"]) == ("exact", "int4")
    assert main([*words, "int8..exact"]) == 2
    assert "name the wider one first" in capsys.readouterr().err
