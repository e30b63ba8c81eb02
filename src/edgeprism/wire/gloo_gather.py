"""The all_gather form of an exchange: a collective of all devices that take part, as the published systems use it.

Envelopes differ in length, and a collective wants equal ones: each device pads its own to the length of the longest of
the exchange before, and begins it with its true length. Where a longer one comes, everybody sees that, and one more
all_gather brings what is missing; from block to block lengths stay the same, and one is enough.
"""

from __future__ import annotations

import logging
import queue
import struct
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from edgeprism.errors import FrameError, PeerLost
from edgeprism.wire.envelope import Bytes, Envelope, max_bytes
from edgeprism.wire.frame import Limits
from edgeprism.wire.gloo_meet import Place, Unmet, break_off, join_all
from edgeprism.wire.transport import Event, Message

if TYPE_CHECKING:
    from torch.distributed import ProcessGroupGloo

log = logging.getLogger(__name__)

GATHERED = (b"all_gather",)
"""The route of messages that came so: they are not of a link, whose reader counts what is still unread."""
_SHORTEST_BYTES = 4096  # room for the layout of any envelope


class Gathering:
    """One group of devices in one epoch. After an epoch nobody knows who gave up in which collective, so the next one
    has its own group. ``put`` takes what came, from the gathering's thread."""

    def __init__(
        self,
        place: Place,
        devices: Sequence[int],
        own: int,
        epoch: int,
        limits: Limits,
        timeout_s: float,
        put: Callable[[Event], None],
    ) -> None:
        self._place, self._devices, self._own, self._limits = place, tuple(devices), own, limits
        self._epoch, self._timeout_s, self._put = epoch, timeout_s, put
        self._envelopes: queue.SimpleQueue[Bytes | None] = queue.SimpleQueue()
        self._trouble = ""
        self._group: ProcessGroupGloo | None = None
        self._is_over = False
        self._thread = threading.Thread(target=self._live, name=f"edgeprism-gather-{own}", daemon=True)
        self._thread.start()

    def post(self, envelope: Bytes) -> None:
        """Take part in one more exchange, without blocking. PeerLost if the group has failed."""
        if self._trouble:
            others = tuple(device for device in self._devices if device != self._own)
            raise PeerLost(f"the group of devices {', '.join(map(str, self._devices))}: {self._trouble}", others)
        self._envelopes.put(envelope)

    def end(self) -> None:
        """No more exchanges, here or on the others; one that is under way fails."""
        self._is_over = True
        self._envelopes.put(None)
        if self._group is not None:
            break_off(self._group, self._devices.index(self._own) - 1)

    def join(self, timeout_s: float) -> None:
        """After ``end``: wait for the thread."""
        self._thread.join(timeout_s)

    def _live(self) -> None:
        envelope = self._envelopes.get()
        try:
            if envelope is None:
                return
            name = f"all/{self._epoch}/{'-'.join(map(str, self._devices))}"
            self._group = join_all(self._place, name, self._devices, self._own, self._timeout_s, lambda: self._is_over)
            padded_bytes = _SHORTEST_BYTES
            while envelope is not None and not self._is_over:
                padded_bytes = self._exchange(self._group, envelope, padded_bytes)
                envelope = self._envelopes.get()
        except (RuntimeError, Unmet, FrameError) as exc:
            self._trouble = str(exc).splitlines()[0]
            log.info("all_gather of devices %s failed: %s", self._devices, exc)

    def _exchange(self, group: ProcessGroupGloo, envelope: Bytes, padded_bytes: int) -> int:
        """Returns the length of the longest envelope."""
        rows = self._all_gather(group, envelope[:padded_bytes], padded_bytes)
        lengths = [int(struct.unpack_from("<Q", row.data)[0]) for row in rows]
        longest = max(lengths)
        if longest > max_bytes(self._limits):
            raise FrameError(f"an envelope of {longest} bytes; at most {max_bytes(self._limits)} travel")
        if longest > padded_bytes:
            rest = self._all_gather(group, envelope[padded_bytes:], longest - padded_bytes)
            rows = [np.concatenate(pair) for pair in zip(rows, rest, strict=True)]
        for device, row in zip(self._devices, rows, strict=True):
            if device != self._own:
                layout = Envelope.read(row.data, self._limits)
                self._put(Message(device, layout.parts(row.data), GATHERED))
        return max(longest, _SHORTEST_BYTES)

    def _all_gather(self, group: ProcessGroupGloo, envelope: Bytes, num_bytes: int) -> list[Bytes]:
        import torch

        own = np.empty(num_bytes, np.uint8)
        own[: len(envelope)] = envelope
        rows = [np.empty(num_bytes, np.uint8) for _ in self._devices]
        outputs = [torch.from_numpy(row) for row in rows]
        group.allgather([outputs], [torch.from_numpy(own)]).wait()  # type: ignore[attr-defined]  # or time out
        return rows
