"""The mailbox: frames that came and were not asked for yet, and which of them are outdated. No I/O, no time.

A new *epoch* begins whenever the coordinator gives up or replans. Work of an older epoch (DATA, RESULT, TOKEN, FAULT,
FETCH, CHUNK) is worthless and is dropped; DATA that arrives early, for a later block or epoch, is kept until it is
asked for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection

from edgeprism.wire.frame import Frame, Kind

# A device that runs ahead of the others sends one frame a block; more than this is a device gone wrong.
MAX_EARLY_FRAMES = 256
MAX_CONTROL_FRAMES = 4096

_OF_AN_EPOCH = frozenset({Kind.DATA, Kind.RESULT, Kind.TOKEN, Kind.FAULT, Kind.FETCH, Kind.CHUNK})


class Mailbox:
    """Frames by sender. ``newest_epoch`` is the highest that an EPOCH frame has announced."""

    def __init__(self) -> None:
        self.epoch = 0
        self.newest_epoch = 0
        self._data: dict[int, dict[tuple[int, int, int], Frame]] = {}
        self._control: deque[Frame] = deque()

    def put(self, frame: Frame) -> bool:
        """Keep a frame; False if it was dropped (outdated, sent twice, or one too many)."""
        if self._is_outdated(frame):
            return False
        if frame.kind is Kind.DATA:
            return self._put_data(frame)
        if len(self._control) >= MAX_CONTROL_FRAMES:
            return False
        if frame.kind is Kind.EPOCH:
            self.newest_epoch = max(self.newest_epoch, frame.epoch)
        self._control.append(frame)
        return True

    def advance(self, epoch: int) -> int:
        """Go to another epoch; returns how many kept frames this outdated."""
        self.epoch = epoch
        dropped = sum(map(self._is_outdated, self._control))
        self._control = deque(frame for frame in self._control if not self._is_outdated(frame))
        for sender, frames in self._data.items():
            kept = {key: frame for key, frame in frames.items() if not self._is_outdated(frame)}
            dropped += len(frames) - len(kept)
            self._data[sender] = kept
        return dropped

    def forget(self) -> None:
        """As if nothing had ever come: another coordinator counts its epochs anew."""
        self.epoch = self.newest_epoch = 0
        self._data.clear()
        self._control.clear()

    def take_data(self, sender: int, epoch: int, request: int, block: int) -> Frame | None:
        """The DATA frame of this sender and block, if it has come."""
        return self._data.get(sender, {}).pop((epoch, request, block), None)

    def take_control(self, kinds: Collection[Kind], senders: Collection[int], epoch: int, request: int) -> Frame | None:
        """The oldest control frame that matches, leaving the others in order."""
        for index, frame in enumerate(self._control):
            if frame.kind in kinds and frame.sender in senders and (frame.epoch, frame.request) == (epoch, request):
                del self._control[index]
                return frame
        return None

    def next_control(self) -> Frame | None:
        """The oldest control frame of any kind."""
        return self._control.popleft() if self._control else None

    def _is_outdated(self, frame: Frame) -> bool:
        return frame.epoch < self.epoch and frame.kind in _OF_AN_EPOCH

    def _put_data(self, frame: Frame) -> bool:
        frames = self._data.setdefault(frame.sender, {})
        key = (frame.epoch, frame.request, frame.block)
        if key in frames or len(frames) >= MAX_EARLY_FRAMES:
            return False
        frames[key] = frame
        return True
