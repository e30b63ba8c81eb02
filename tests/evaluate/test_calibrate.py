"""From a model and inputs to tables, from tables to answers: in one process, in several, and on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import edgeprism
from edgeprism.cli.main import main
from edgeprism.codecs.calibration import Calibration
from edgeprism.errors import FrameError, InputError, PlanError
from edgeprism.evaluate.calibrate import calibrate
from edgeprism.models.registry import adapt
from edgeprism.runtime.calibrations import tables_received, tables_to_send
from edgeprism.specs.codec import CodecSpec
from tests.families import example, make

CODECS = ["delta+rot+int4", "delta+pq:8", "pq:4", "kv:pq:4", "means:2+delta+rot+int3"]
TEXTS = ("BertForSequenceClassification", "GPT2LMHeadModel", "LlamaForCausalLM")


def tables_of(architecture: str, codecs: list[str]) -> list[Calibration]:
    """From thirty batches of the family's example inputs."""
    inputs = [example(architecture, seed=seed) for seed in range(30)]
    batch = next(iter(inputs[0].values())).shape[0]
    specs = [CodecSpec.parse(codec) for codec in codecs]
    return calibrate(adapt(make(architecture)), inputs, specs, (0.5, 0.5), num_samples=30 * batch)


@pytest.mark.parametrize("architecture", ["ViTForImageClassification", "Dinov2ForImageClassification", *TEXTS])
def test_calibrated_codecs_lose_little(architecture: str) -> None:
    """Each codec runs on two devices in one process and gives answers near the exact ones; four bits a value are
    nearer than means of two with three."""
    model, inputs = make(architecture), example(architecture, seed=99)
    wanted = model(**inputs)[0].detach()
    off = {}
    for codec, calibration in zip(CODECS, tables_of(architecture, CODECS), strict=True):
        with (
            edgeprism.Cluster.in_process(2) as cluster,
            edgeprism.load(model, cluster=cluster, plan="sequence", codec=codec, calibrations=[calibration]) as engine,
        ):
            output = engine(**inputs)[0]
            assert engine.last_trace is not None and not engine.last_trace.failures
            assert engine.last_trace.plan.strategy == "sequence"
        off[codec] = float((output - wanted).norm() / wanted.norm())
    assert 0 < off["delta+rot+int4"] < 0.4
    assert all(0 < difference < 1.0 for difference in off.values()), off
    assert off["delta+rot+int4"] < off["means:2+delta+rot+int3"]


@pytest.mark.parametrize("architecture", ["ViTForImageClassification", *TEXTS])
def test_training_sees_what_devices_compute(architecture: str) -> None:
    """The trainable module has the answers of the engine, with gradients, twice in a row."""
    inputs = example(architecture, seed=99)
    for codec, calibration in zip(CODECS, tables_of(architecture, CODECS), strict=True):
        model = make(architecture)
        with (
            edgeprism.Cluster.in_process(2) as cluster,
            edgeprism.load(model, cluster=cluster, plan="sequence", codec=codec, calibrations=[calibration]) as engine,
        ):
            wanted = engine(**inputs)[0]
        wrapped = edgeprism.with_codec(model, codec, 2, calibration=calibration)
        for _ in range(2):
            output = wrapped(**inputs)[0]
            # a value near the border of two codes may fall on either side of it
            assert (output - wanted).norm() < 0.05 * wanted.norm()
        output.square().mean().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in wrapped.parameters())
        assert any(p.grad is not None and p.grad.abs().max() > 0 for p in wrapped.parameters())


def test_gradient_checkpointing_is_refused_with_differences() -> None:
    """It computes blocks once more, the last one first, which would be predicted from what came after."""
    model = make("ViTForImageClassification")
    for module in model.modules():
        if hasattr(module, "gradient_checkpointing"):
            module.gradient_checkpointing = True  # by hand: transformers' own way of saying so is being renamed
    with pytest.raises(InputError, match="gradient checkpointing"):
        edgeprism.with_codec(model, "delta+rot+int4", 2)


def test_tables_reach_other_processes(tmp_path: Path) -> None:
    """Worker processes get them with the order to load the model, and answer as one process does."""
    architecture = "ViTForImageClassification"
    make(architecture).save_pretrained(tmp_path)
    codecs, inputs = ["delta+pq:8", "delta+rot+int4"], example(architecture, seed=99)
    given = tables_of(architecture, codecs)
    answers = []
    for cluster in (edgeprism.Cluster.in_process(2), edgeprism.Cluster.spawn(2)):
        with cluster, edgeprism.load(
            str(tmp_path), cluster=cluster, plan="sequence", codec=codecs[0], calibrations=given
        ) as engine:  # fmt: skip
            answers.append(engine(**inputs)[0])
            engine.use("sequence", codecs[1])
            answers.append(engine(**inputs)[0])
            assert engine.last_trace is not None and engine.last_trace.plan.num_devices == 2
            assert not engine.last_trace.failures
            with pytest.raises(PlanError, match="make a new engine"):
                engine.use("sequence", "pq:2")
    assert torch.allclose(answers[0], answers[2], atol=1e-5) and torch.allclose(answers[1], answers[3], atol=1e-5)
    assert not torch.allclose(answers[0], answers[1], atol=1e-5)


def test_padding_is_not_calibrated_on() -> None:
    """What stands at padding changes no table."""
    architecture, specs = "BertForSequenceClassification", [CodecSpec.parse("means:2+delta+rot+int4")]
    model, made = adapt(make(architecture)), []
    for filler in (0, 7):
        inputs = example(architecture, seed=1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        inputs["attention_mask"][:, 9:] = 0
        inputs["input_ids"][:, 9:] = filler
        made += calibrate(model, [inputs], specs, (0.5, 0.5), num_samples=len(inputs["input_ids"]))
    for name, table in made[0].tables.items():
        assert torch.allclose(table, made[1].tables[name], atol=1e-5), name


def test_the_command_writes_what_runs_find(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """calibrate, then evaluate with the codec: the file is found by the model's fingerprint. Another model's is not."""
    from transformers import ViTImageProcessorPil

    monkeypatch.setenv("EDGEPRISM_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data" / "cifar10").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, count in (("train_5k", 40), ("test_500", 10)):
        images = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        np.savez(
            tmp_path / "data" / "cifar10" / f"{name}.npz", images=images, labels=np.arange(count, dtype=np.uint8) % 10
        )
    for seed in (0, 1):
        make("ViTForImageClassification", seed=seed, num_labels=10).save_pretrained(tmp_path / f"vit{seed}")
        ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path / f"vit{seed}")
    data = ("--dataset", "cifar10", "--data", str(tmp_path / "data"))
    arguments = ("--codec", "delta+pq:8,delta+rot+int4", *data, "--json")
    assert main(["evaluate", str(tmp_path / "vit0"), *arguments]) == 2
    assert "edgeprism calibrate" in capsys.readouterr().err
    assert main(["calibrate", str(tmp_path / "vit0"), *arguments, "--limit", "20"]) == 0
    files = [Path(one["file"]) for one in json.loads(capsys.readouterr().out)["calibrations"]]
    assert [Calibration.read(file).source["samples"] for file in files] == [20, 20]
    assert main(["evaluate", str(tmp_path / "vit0"), *arguments]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert [result["codec"] for result in results] == ["delta+pq:8", "delta+rot+int4"]
    assert [result["relative_bytes"] for result in results] == [1 / 32, 1 / 8]
    assert main(["evaluate", str(tmp_path / "vit1"), *arguments]) == 2
    assert main(["evaluate", str(tmp_path / "vit1"), *arguments, "--calibration", str(files[0])]) == 2
    assert "another model" in capsys.readouterr().err
    tuned = ["--codec", "delta+rot+int4", *data, "--output", str(tmp_path / "tuned"), "--steps", "2", "--batch", "4"]
    assert main(["finetune", str(tmp_path / "vit0"), *tuned]) == 0
    assert main(["evaluate", str(tmp_path / "tuned"), "--codec", "delta+rot+int4", *data]) == 0
    capsys.readouterr()
    assert main(["calibrate", str(tmp_path / "vit0"), "--codec", "int8", *data]) == 2
    assert "needs no calibration" in capsys.readouterr().err


def test_tables_travel() -> None:
    """All come back; too many are refused before they are sent, and what is wrong where it is received."""
    spec, width = CodecSpec.parse("delta+pq:16"), 384
    tables = {
        "gain": torch.randn(12, width),
        "offset": torch.randn(12, width),
        "basis": torch.randn(12, 1, width, width).half(),
        "codebooks": torch.randn(12, 1, 24, 256, 16).half(),
    }
    calibration = Calibration(codec=spec, fingerprint="f", tables=tables)
    meta, buffers = tables_to_send({str(spec): calibration})
    assert len(buffers) == len(tables)
    again = tables_received(json.loads(json.dumps(meta)), [torch.from_numpy(buffer.data) for buffer in buffers])
    assert all(torch.equal(again[str(spec)].tables[name], table) for name, table in tables.items())
    wrong_tables = [[{"codec": str(spec), "tables": names}] for names in (["gain", "offset"], [], 3, None)]
    for broken in ([], [{"codec": "x", "tables": ["gain"]}], *wrong_tables, [[]], 7):
        with pytest.raises(FrameError, match="cannot be used"):
            tables_received(broken, [torch.ones(1)])
    with pytest.raises(InputError, match="fewer codecs"):
        tables_to_send({str(number): calibration for number in range(100)})


def test_seven_devices_answer_together(tmp_path: Path) -> None:
    """Shares that do not add up to one exactly are still those that were asked for."""
    with (
        edgeprism.Cluster.in_process(7) as cluster,
        edgeprism.load(make("ViTForImageClassification"), cluster=cluster) as engine,
    ):
        plan = edgeprism.Plan.even("sequence", 7, CodecSpec.parse("rot+int4"))
        engine.use(plan)
        engine(**example("ViTForImageClassification"))
        assert engine.last_trace is not None and engine.last_trace.plan == plan


def test_nothing_to_make_is_refused() -> None:
    """A codec without tables has nothing to calibrate."""
    with pytest.raises(InputError, match="int8 needs no calibration"):
        calibrate(adapt(make("ViTModel")), [], [CodecSpec.parse("int8")], (0.5, 0.5), num_samples=1)
