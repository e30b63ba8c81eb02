"""A pipeline on emulated devices with memories of their own that loses them one after the other."""

from __future__ import annotations

import json
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
MEMORY_MB = (520, 1100, 700)
"""A worker is some 280 MB: room for 240, 820 and 420 MB of 560 MB of weights. Half of them is too much for device 0."""
ON_DEVICE_0 = """
import itertools, json, sys, time
import torch
import edgeprism

model, cluster = sys.argv[1:]
torch.set_num_threads(1)
ids = torch.arange(60).reshape(2, 30)

def tell(**what):
    print(json.dumps(what), flush=True)

with edgeprism.Cluster.from_file(cluster, require_all=True) as devices:
    with edgeprism.load(model, cluster=devices, plan="pipeline") as engine:
        for line in itertools.chain([""], sys.stdin):
            began_s = time.monotonic()
            try:
                logits = engine(input_ids=ids).logits.tolist()
                stages = [str(stage) for stage in engine.last_trace.plan.stages]
                tell(logits=logits, stages=stages, took_s=time.monotonic() - began_s)
            except edgeprism.errors.EdgeprismError as exc:
                tell(error=str(exc), took_s=time.monotonic() - began_s)
"""


@pytest.fixture(autouse=True)
def _root() -> None:
    """Skips where there can be no lab."""
    try:
        require_root()
    except NoLab as exc:
        pytest.skip(str(exc))


def test_stages_go_where_there_is_memory_and_then_nowhere(tmp_path: Path) -> None:
    """Without device 2 the halves would be too much for device 0, so device 1 gets more than half, and the answer is
    right. Without both, requests fail within 5 s and name device and bytes; so does the next one."""
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=1024, num_hidden_layers=11, num_attention_heads=16, intermediate_size=4096, vocab_size=100
    )
    model = BertForSequenceClassification(config).eval()
    with torch.no_grad():
        wanted = model(input_ids=torch.arange(60).reshape(2, 30)).logits
    model.save_pretrained(tmp_path / "model")
    del model
    devices = [
        LabDevice(name=f"device{index}", rate_mbit=1000.0, memory_mb=limit) for index, limit in enumerate(MEMORY_MB)
    ]
    with Lab(devices, share_cores=True) as lab:
        cluster = lab.write_cluster(tmp_path)
        workers = lab.start_workers(tmp_path)
        argv = [sys.executable, "-c", ON_DEVICE_0, str(tmp_path / "model"), str(cluster)]
        with lab.popen(0, argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as coordinator:

            def said() -> dict[str, Any]:
                found: dict[str, Any] = json.loads(coordinator.stdout.readline())
                return found

            def again() -> dict[str, Any]:
                coordinator.stdin.write("\n")
                coordinator.stdin.flush()
                return said()

            first = said()
            assert len(first["stages"]) == 3, first
            workers[1].kill()
            second = again()
            assert "error" not in second, second
            pieces = {int(text.split(":")[0]): text.split(":")[1].split("-") for text in second["stages"]}
            num_held = {device: int(stop) - int(start) for device, (start, stop) in pieces.items()}
            assert num_held.keys() == {0, 1} and 0 < num_held[0] < 20 and sum(num_held.values()) == 44, second
            for one in (first, second):
                torch.testing.assert_close(torch.tensor(one["logits"]), wanted, rtol=1e-4, atol=1e-4)
            workers[0].kill()
            for failed in (again(), again()):
                assert failed["took_s"] < 5 and "cannot hold the model" in failed["error"], failed
                assert "MB lack: device 0 has" in failed["error"] and "device 1: " in failed["error"], failed
            coordinator.stdin.close()
            assert coordinator.wait(30) == 0
