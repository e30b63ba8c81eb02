"""A cluster in one process: each device is a thread, and the wire a queue. What tests and ``Cluster.in_process`` use.

Frames pass through the same bytes as on a network, so that nothing works here that would fail there.
"""

from __future__ import annotations

import queue
from collections.abc import Sequence
from typing import final

from edgeprism.errors import PeerLost
from edgeprism.wire.frame import DEFAULT_LIMITS, Limits, Part
from edgeprism.wire.transport import Event, Lost, Message, Transport


@final
class MemoryTransport(Transport):
    """One device of a mesh. Sending copies, so a buffer may change as soon as ``send`` or ``start`` returns."""

    def __init__(
        self, rank: int, mesh: list[MemoryTransport], num_devices: int, limits: Limits = DEFAULT_LIMITS
    ) -> None:
        super().__init__(rank, num_devices, limits)
        self._mesh = mesh
        self._inbox: queue.SimpleQueue[Event | None] = queue.SimpleQueue()  # None: wake up
        self._is_closed = False

    @classmethod
    def mesh(cls, num_devices: int, limits: Limits = DEFAULT_LIMITS) -> list[MemoryTransport]:
        """That many devices, all connected with each other; each is for one thread."""
        mesh: list[MemoryTransport] = []
        mesh.extend(cls(rank, mesh, num_devices, limits) for rank in range(num_devices))
        return mesh

    def connected(self) -> set[int]:
        """Everyone who has not closed."""
        return {peer.rank for peer in self._mesh if peer is not self and not peer._is_closed}

    def close(self) -> None:
        """Tell the others."""
        if self._is_closed:
            return
        self._is_closed = True
        for peer in self._mesh:
            if peer is not self:
                peer.is_orphan |= self.rank == 0  # threads end with their coordinator
                peer._inbox.put(Lost(self.rank, "it closed its transport"))

    def _post(self, peer: int, parts: Sequence[Part]) -> None:
        receiver = self._mesh[peer]
        if self._is_closed or receiver._is_closed:
            raise PeerLost(f"device {peer} is gone: its transport is closed", (peer,))
        receiver._inbox.put(Message(self.rank, [bytearray(part) for part in parts]))

    def _poll(self, timeout_s: float | None) -> list[Event]:
        came: list[Event | None] = []
        try:
            came.append(self._inbox.get(timeout=timeout_s) if timeout_s != 0 else self._inbox.get_nowait())
            while len(came) < 64:
                came.append(self._inbox.get_nowait())
        except queue.Empty:
            pass
        return [event for event in came if event is not None]

    def _wake(self) -> None:
        self._inbox.put(None)
