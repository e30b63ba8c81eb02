"""Plan `auto` where devices are too small for the model: it is split by its layers, on emulated devices with limits."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from edgeprism.errors import NoLab
from edgeprism.lab.device import LabDevice
from edgeprism.lab.lab import Lab
from edgeprism.lab.namespaces import require_root

pytestmark = [pytest.mark.alone, pytest.mark.timeout(300)]
WEIGHTS_MB = 560
SMALL_MB = 800
"""Too small for the weights beside what a worker is, large enough for half of them."""
ON_DEVICE_0 = """
import json, sys
import torch
import edgeprism
from edgeprism.runtime.auto import AutoSettings

model, cluster, out, *objectives = sys.argv[1:]
torch.set_num_threads(1)
found = {}
ids = torch.arange(60).reshape(2, 30)
with edgeprism.Cluster.from_file(cluster, require_all=True) as devices:
    for objective in objectives:
        one = found[objective] = {}
        try:
            with edgeprism.load(model, cluster=devices, auto=AutoSettings(objective=objective)) as engine:
                one["logits"] = engine(input_ids=ids).logits.tolist()
                trace = engine.last_trace
                one |= {"strategy": trace.plan.strategy, "note": trace.note, "failures": trace.failures}
                engine.use("auto")
                one["again"] = engine.submit(input_ids=ids).result().logits.tolist()
        except edgeprism.errors.EdgeprismError as exc:
            one["error"] = str(exc)
with open(out, "w") as file:
    json.dump(found, file)
"""


@pytest.fixture(autouse=True)
def _root() -> None:
    """Skips where there can be no lab."""
    try:
        require_root()
    except NoLab as exc:
        pytest.skip(str(exc))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.Tensor]:
    """A directory with more than half a gigabyte of weights, and what they make of the request."""
    directory = tmp_path_factory.mktemp("large")
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=1024, num_hidden_layers=11, num_attention_heads=16, intermediate_size=4096, vocab_size=100
    )
    made = BertForSequenceClassification(config).eval()
    assert sum(one.numel() for one in made.parameters()) * 4 > WEIGHTS_MB * 1e6 * 0.98
    made.save_pretrained(directory)
    with torch.no_grad():
        logits = made(input_ids=torch.arange(60).reshape(2, 30)).logits
    return directory, logits


def run(model: Path, folder: Path, memory_mb: tuple[int | None, ...], *objectives: str) -> dict[str, Any]:
    """What device 0 of such devices says of a request, for each objective in turn."""
    devices = [
        LabDevice(name=f"device{index}", rate_mbit=400.0, memory_mb=limit) for index, limit in enumerate(memory_mb)
    ]
    out = folder / "out.json"
    with Lab(devices) as lab:
        cluster = lab.write_cluster(folder)
        lab.start_workers(folder)
        argv = [sys.executable, "-W", "error", "-c", ON_DEVICE_0, str(model), str(cluster), str(out), *objectives]
        assert lab.popen(0, argv, stderr=subprocess.DEVNULL).wait() == 0
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def test_a_model_that_fits_no_device(model: tuple[Path, torch.Tensor], tmp_path: Path) -> None:
    """Its layers are split, the answer is right, and the trace says why; nothing tells of a performance map."""
    directory, logits = model
    found = run(directory, tmp_path, (SMALL_MB, SMALL_MB), "latency")["latency"]
    assert "error" not in found, found
    assert found["strategy"] == "pipeline" and "MB free" in found["note"] and not found["failures"]
    for name in ("logits", "again"):
        torch.testing.assert_close(torch.tensor(found[name]), logits, rtol=1e-4, atol=1e-4)


def test_a_device_that_is_too_small_takes_part_of_a_stream(model: tuple[Path, torch.Tensor], tmp_path: Path) -> None:
    """A pipeline for throughput, since two devices do more than the one that can hold everything."""
    directory, logits = model
    found = run(directory, tmp_path, (None, SMALL_MB), "throughput")["throughput"]
    assert found["strategy"] == "pipeline" and "device 1 has" in found["note"], found
    torch.testing.assert_close(torch.tensor(found["logits"]), logits, rtol=1e-4, atol=1e-4)


def test_where_nothing_fits(model: tuple[Path, torch.Tensor], tmp_path: Path) -> None:
    """One line says what lacks."""
    found = run(model[0], tmp_path, (500, 500), "latency")["latency"]
    assert re.search(r"MB lack: device 0 has \d+ MB, device 1 has \d+ MB", found["error"]), found
    assert "\n" not in found["error"]
