"""The fixture ``mesh``: each transport behind the same tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from edgeprism.wire.memory import MemoryTransport
from edgeprism.wire.transport import Transport
from tests.wire.meshes import Mesh, zmq_mesh


@pytest.fixture(params=["memory", "zmq"])
def mesh(request: pytest.FixtureRequest) -> Iterator[Mesh]:
    """Makes connected transports of one kind, and closes them."""
    made: list[Transport] = []

    def make(num_devices: int) -> list[Transport]:
        transports = zmq_mesh(num_devices) if request.param == "zmq" else list(MemoryTransport.mesh(num_devices))
        made.extend(transports)
        return transports

    yield make
    for transport in made:
        transport.close()
