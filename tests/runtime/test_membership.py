"""Which devices are used together: those that answer, hold the model and can reach each other."""

from __future__ import annotations

import time

import edgeprism
from edgeprism.wire.memory import MemoryTransport
from tests.families import difference, example, expected, make

ARCHITECTURE = "BertForSequenceClassification"


def test_devices_without_a_link_are_not_used_together() -> None:
    """Devices 1 and 2 cannot reach each other: one of them is left out, and used as soon as the link is there."""
    model = make(ARCHITECTURE)
    inputs = example(ARCHITECTURE)
    with edgeprism.Cluster.in_process(4) as cluster:
        assert isinstance(cluster.transport, MemoryTransport)
        one = cluster.transport._mesh[1]
        one.connected = lambda: {0, 3}  # type: ignore[method-assign]
        engine = edgeprism.load(model, cluster=cluster, plan="sequence")
        assert engine.devices == (0, 1, 3)

        output = engine(**inputs)

        assert difference(output, expected(model, inputs), inputs) <= 1e-4
        assert engine.last_trace is not None
        assert [device.device for device in engine.last_trace.devices] == [0, 1, 3]
        assert not engine.last_trace.failures

        del one.connected
        deadline = time.monotonic() + 5
        while engine.devices != (0, 1, 2, 3) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert difference(engine(**inputs), expected(model, inputs), inputs) <= 1e-4
        assert [device.device for device in engine.last_trace.devices] == [0, 1, 2, 3]
