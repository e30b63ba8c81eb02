"""The sweep on real processes of which one dies: it alone is missing from the map."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

import edgeprism
from edgeprism.policy.choose import Policy
from edgeprism.policy.network import Network
from edgeprism.profiler.sweep import Point, sweep
from edgeprism.runtime.profiling import Identity, Profiler
from tests.families import make

pytestmark = pytest.mark.alone


@pytest.mark.filterwarnings("ignore:device 2")
@pytest.mark.parametrize("dies", ["before its link is measured", "when the sweep begins"])
def test_a_device_that_dies(dies: str, tmp_path: Path) -> None:
    """What the others can do is measured and chosen; what needs it is listed as skipped."""
    make("ViTForImageClassification").save_pretrained(str(tmp_path))
    with edgeprism.Cluster.spawn(3, share_cores=True) as cluster:
        engine = edgeprism.load(str(tmp_path), cluster=cluster, plan="local")
        profiler = Profiler(engine, Identity(fingerprint="0" * 64, cluster=cluster.key, names=cluster.names))
        if dies == "before its link is measured":
            os.kill(cluster.pids[1], signal.SIGKILL)
        reached = profiler.look_around()
        if dies == "when the sweep begins":
            os.kill(cluster.pids[1], signal.SIGKILL)
            assert all(link.together_bytes_per_s for link in profiler._links.values())
        else:
            assert reached == (0, 1)
        wanted = sweep(engine.spec, reached, 3, [], batches=(1, 4))
        profiler.run(wanted, until_s=time.monotonic() + 120, done=lambda _: None)
        found = profiler.result()
    assert found.costs.measured == (0, 1)
    assert any("device 2" in one or "over 0, 1, 2" in one for one in found.skipped)
    decision = Policy(found, points_lost=lambda codec, num_devices: None).decide(4, 17, Network.measured(found.costs))
    assert all(one.plan.num_devices == 1 or not one.plan.shares[2] for one in decision.candidates)
    assert any(one.plan.strategy == "replica" for one in decision.candidates)


def test_a_batch_that_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Skips the larger ones of its plan, not those of others; what was measured stays."""
    make("ViTForImageClassification").save_pretrained(tmp_path)
    measured = Profiler._measured

    def runs_out(self: Profiler, point: Point, done: Any) -> Any:
        if point.batch >= 4:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory")
        return measured(self, point, done)

    monkeypatch.setattr(Profiler, "_measured", runs_out)
    with edgeprism.load(str(tmp_path), plan="local") as engine:
        profiler = Profiler(engine, Identity(fingerprint="0" * 64, cluster="c", names=("device 0",)))
        wanted = sweep(engine.spec, profiler.look_around(), 1, [], batches=(1, 2, 4, 8))
        assert not profiler.has_news
        profiler.run(wanted, until_s=time.monotonic() + 60, done=lambda _: None)
        found = profiler.result()
    assert profiler.has_news
    assert sorted(one.batch for one in found.requests) == [1, 2]
    assert len(found.skipped) == 2
    assert "allocate memory" in found.skipped[0]
    assert "batch 4 needed more memory" in found.skipped[1]
