"""The mailbox: frames that came and were not asked for yet, and which of them are outdated. No I/O, no time.

A new *epoch* begins whenever the coordinator gives up or replans. Work of an older epoch (DATA, RESULT, TOKEN, FAULT,
FETCH, CHUNK, HANDOVER, CREDIT) is worthless and is dropped; DATA that arrives early, for a later block or epoch, is
kept until it is asked for.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection

from edgeprism.wire.frame import Frame, Kind

# Of one sender. A device that runs ahead of the others sends one frame a block; more is a device gone wrong. Its newer
# rows count more than its older ones, so that its successor is heard.
MAX_EARLY_FRAMES = 256
MAX_CONTROL_FRAMES = 4096
MAX_KEPT_BYTES = 3 * 2**27

_OF_AN_EPOCH = frozenset(
    {Kind.DATA, Kind.RESULT, Kind.TOKEN, Kind.FAULT, Kind.FETCH, Kind.CHUNK, Kind.HANDOVER, Kind.CREDIT}
)


class Mailbox:
    """Frames by sender. ``newest_epoch`` is the highest that an EPOCH frame has announced."""

    def __init__(self) -> None:
        self.epoch = 0
        self.newest_epoch = 0
        self._data: dict[int, dict[tuple[int, int, int], Frame]] = {}
        self._control: deque[Frame] = deque()
        self._num_control: Counter[int] = Counter()
        self._num_bytes: Counter[int] = Counter()

    def put(self, frame: Frame) -> bool:
        """Keep a frame; False if it was dropped (outdated, sent twice, or one too many), or an older one for it."""
        if self._is_outdated(frame):
            return False
        if frame.kind is Kind.DATA:
            return self._put_data(frame)
        if frame.kind is Kind.EPOCH:  # even if it is not kept: waits must end
            self.newest_epoch = max(self.newest_epoch, frame.epoch)
        sender = frame.sender
        if (
            self._num_control[sender] >= MAX_CONTROL_FRAMES
            or self._num_bytes[sender] + frame.num_bytes > MAX_KEPT_BYTES
        ):
            return False
        self._control.append(frame)
        self._count(frame, 1)
        return True

    def advance(self, epoch: int) -> int:
        """Go to another epoch; returns how many kept frames this outdated."""
        self.epoch = epoch
        outdated = [frame for frame in self._control if self._is_outdated(frame)]
        self._control = deque(frame for frame in self._control if not self._is_outdated(frame))
        for sender, frames in self._data.items():
            outdated += [frame for frame in frames.values() if self._is_outdated(frame)]
            self._data[sender] = {key: frame for key, frame in frames.items() if not self._is_outdated(frame)}
        for frame in outdated:
            self._count(frame, -1)
        return len(outdated)

    def forget(self) -> None:
        """As if nothing had ever come: another coordinator counts its epochs anew."""
        self.epoch = self.newest_epoch = 0
        self._data.clear()
        self._control.clear()
        self._num_control.clear()
        self._num_bytes.clear()

    def take_data(self, sender: int, epoch: int, request: int, block: int) -> Frame | None:
        """The DATA frame of this sender and block, if it has come."""
        frame = self._data.get(sender, {}).pop((epoch, request, block), None)
        return None if frame is None else self._count(frame, -1)

    def look_for_data(self, sender: int, epoch: int, request: int, block: int) -> Frame | None:
        """The same frame, which stays."""
        return self._data.get(sender, {}).get((epoch, request, block))

    def take_control(self, kinds: Collection[Kind], senders: Collection[int], epoch: int, request: int) -> Frame | None:
        """The oldest control frame that matches, leaving the others in order."""
        for index, frame in enumerate(self._control):
            if frame.kind in kinds and frame.sender in senders and (frame.epoch, frame.request) == (epoch, request):
                del self._control[index]
                return self._count(frame, -1)
        return None

    def next_control(self) -> Frame | None:
        """The oldest control frame of any kind."""
        return self._count(self._control.popleft(), -1) if self._control else None

    def _is_outdated(self, frame: Frame) -> bool:
        return frame.epoch < self.epoch and frame.kind in _OF_AN_EPOCH

    def _put_data(self, frame: Frame) -> bool:
        frames = self._data.setdefault(frame.sender, {})
        key = (frame.epoch, frame.request, frame.block)
        if key in frames or frame.num_bytes > MAX_KEPT_BYTES:
            return False
        num_before = len(frames)
        while frames and (
            len(frames) >= MAX_EARLY_FRAMES or self._num_bytes[frame.sender] + frame.num_bytes > MAX_KEPT_BYTES
        ):
            self._count(frames.pop(next(iter(frames))), -1)
        frames[key] = self._count(frame, 1)
        return len(frames) > num_before

    def _count(self, frame: Frame, sign: int) -> Frame:
        self._num_bytes[frame.sender] += sign * frame.num_bytes
        if frame.kind is not Kind.DATA:
            self._num_control[frame.sender] += sign
        return frame
