"""What is kept of frames that nobody has asked for yet, and what gives way: bounded in number and bytes, by sender."""

from __future__ import annotations

import numpy as np
import pytest

from edgeprism.wire import mailbox
from edgeprism.wire.frame import Buffer, Frame, Kind
from edgeprism.wire.mailbox import Mailbox

pytestmark = pytest.mark.alone


def frame(kind: Kind, *, sender: int = 1, epoch: int = 0, block: int = 0, num_bytes: int = 0) -> Frame:
    """A frame with an array of that many bytes."""
    arrays = (Buffer.of(np.zeros(num_bytes, np.uint8)),) if num_bytes else ()
    return Frame(kind=kind, epoch=epoch, request=1, block=block, sender=sender, arrays=arrays)


def test_rows_that_nobody_takes_give_way_to_newer_ones() -> None:
    """A device gone wrong fills its place with rows of an epoch that never comes; its successor's rows are kept."""
    kept = Mailbox()
    for block in range(mailbox.MAX_EARLY_FRAMES):
        assert kept.put(frame(Kind.DATA, epoch=2**32 - 1, block=block))
    assert not kept.put(frame(Kind.DATA, epoch=2**32 - 1, block=mailbox.MAX_EARLY_FRAMES - 1))  # the same twice
    assert not kept.put(frame(Kind.DATA, block=3))  # an older one was dropped for it
    assert kept.take_data(1, 0, 1, 3) is not None
    assert kept.take_data(1, 2**32 - 1, 1, 0) is None
    assert kept.take_data(1, 2**32 - 1, 1, 1) is not None


def test_rows_are_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest give way; one frame that is too large by itself is not kept; others' rows do not count."""
    monkeypatch.setattr(mailbox, "MAX_KEPT_BYTES", 10_000)
    kept = Mailbox()
    assert not kept.put(frame(Kind.DATA, num_bytes=10_001))
    assert kept.put(frame(Kind.DATA, block=0, num_bytes=4_000))
    assert kept.put(frame(Kind.DATA, block=1, num_bytes=4_000))
    assert kept.put(frame(Kind.DATA, sender=2, block=0, num_bytes=4_000))
    assert not kept.put(frame(Kind.DATA, block=2, num_bytes=4_000))
    assert [kept.take_data(1, 0, 1, block) is not None for block in (0, 1, 2)] == [False, True, True]
    for block in range(20):  # what was taken counts no more
        assert kept.put(frame(Kind.DATA, block=block, num_bytes=9_000))
        assert kept.take_data(1, 0, 1, block) is not None


def test_one_senders_orders_do_not_crowd_out_anothers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes of control frames are each sender's own, and so is their number; taken or outdated ones count no more."""
    monkeypatch.setattr(mailbox, "MAX_KEPT_BYTES", 10_000)
    kept = Mailbox()
    assert kept.put(frame(Kind.RESULT, num_bytes=9_000))
    assert not kept.put(frame(Kind.RESULT, num_bytes=9_000))
    assert kept.put(frame(Kind.REQUEST, sender=0, num_bytes=9_000))
    assert kept.advance(1) == 1  # the RESULT
    assert kept.put(frame(Kind.RESULT, epoch=1, num_bytes=9_000))
    assert kept.take_control({Kind.RESULT}, {1}, 1, 1) is not None
    assert kept.put(frame(Kind.RESULT, epoch=1, num_bytes=9_000))


def test_one_senders_many_orders_do_not_crowd_out_anothers() -> None:
    """The number of control frames is each sender's own."""
    kept = Mailbox()
    assert kept.put(frame(Kind.REQUEST, sender=0))
    for _ in range(mailbox.MAX_CONTROL_FRAMES):
        assert kept.put(frame(Kind.READY))
    assert not kept.put(frame(Kind.READY))
    assert kept.put(frame(Kind.READY, sender=2))
    taken = [kept.next_control() for _ in range(2)]
    assert [one.kind for one in taken if one] == [Kind.REQUEST, Kind.READY]
    assert kept.put(frame(Kind.READY))


def test_an_epoch_ends_waits_even_where_it_cannot_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a device whose mailbox is full would wait to the end of its deadline."""
    monkeypatch.setattr(mailbox, "MAX_CONTROL_FRAMES", 1)
    kept = Mailbox()
    assert kept.put(frame(Kind.LOAD, sender=0))
    assert not kept.put(frame(Kind.EPOCH, sender=0, epoch=7))
    assert kept.newest_epoch == 7
