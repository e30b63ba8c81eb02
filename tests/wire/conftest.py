"""The fixture ``mesh``: each transport behind the same tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from edgeprism.wire.memory import MemoryTransport
from edgeprism.wire.transport import Transport
from tests.wire.meshes import Mesh, gloo_mesh, zmq_mesh


@pytest.fixture(params=["memory", "zmq", "gloo", "gloo:all_gather"])
def mesh(request: pytest.FixtureRequest) -> Iterator[Mesh]:
    """Makes connected transports of one kind, and closes them."""
    made: list[Transport] = []
    makers: dict[str, Mesh] = {
        "memory": lambda num_devices: list(MemoryTransport.mesh(num_devices)),
        "zmq": zmq_mesh,
        "gloo": gloo_mesh,
        "gloo:all_gather": lambda num_devices: gloo_mesh(num_devices, "all_gather"),
    }

    def make(num_devices: int) -> list[Transport]:
        made.extend(makers[request.param](num_devices))
        return made[-num_devices:]

    make.is_collective = "all_gather" in request.param  # type: ignore[attr-defined]
    yield make
    for transport in made:
        transport.close()
