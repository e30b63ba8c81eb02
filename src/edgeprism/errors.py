"""Every error that edgeprism raises on purpose.

EdgeprismError
├── InputError (also a ValueError)      what the caller gave cannot be used: exit status 2
│   ├── UnsupportedModel                no family adaptor for this architecture
│   ├── ModelFilesError                 a model directory lacks something, or holds what is refused
│   ├── NoLab                           this machine, or this user, cannot have an emulated cluster
│   └── PlanError                       a plan, share, codec or device count that cannot be carried out
├── LabError                            an emulated cluster is not what it should be, or is gone: exit status 1
├── PeerError                           another device failed us: exit status 1
│   ├── PeerTimeout                     it sent nothing before the deadline
│   ├── PeerLost                        its process or its connection is gone
│   └── PeerFault                       it answered with an error of its own
├── QueueFull                           more requests wait than the caller allows; this one was dropped or refused
├── SourceEnded                         a camera or a stream stopped giving pictures: exit status 1
├── SensorError                         an energy sensor gives no reading, or none any more
├── RequestAborted                      the coordinator gave this request up; a worker only unwinds
└── FrameError                          bytes on the wire that break the frame format
    └── ForeignProtocol                 a frame of another protocol number

A message says what happened, what was needed and what to do. Our own mistakes are ``assert``, not one of these.
"""


class EdgeprismError(Exception):
    """Base of all errors that edgeprism raises on purpose."""


class InputError(EdgeprismError, ValueError):
    """What the caller gave cannot be used; the message says what would."""


class UnsupportedModel(InputError):
    """The architecture named in ``config.json`` has no family adaptor."""


class ModelFilesError(InputError):
    """A model directory lacks a file, or holds one that is refused (pickle weights)."""


class NoLab(InputError):
    """This machine, or this user, cannot have an emulated cluster; the message says what is missing."""


class PlanError(InputError):
    """A strategy, share, codec, dtype or number of devices that cannot be carried out."""


class LabError(EdgeprismError):
    """An emulated cluster is not what it should be: a rate or a speed is off, or a part of it has ended."""


class PeerError(EdgeprismError):
    """Another device failed; ``peers`` are the indices of the devices blamed."""

    def __init__(self, message: str, peers: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.peers = peers


class PeerTimeout(PeerError):
    """A device sent nothing before the deadline."""


class PeerLost(PeerError):
    """A device's process or connection is gone."""


class PeerFault(PeerError):
    """A device answered with an error of its own."""


class QueueFull(EdgeprismError):
    """More requests wait than ``max_pending`` allows, and this one was dropped or refused."""


class SourceEnded(EdgeprismError):
    """A camera or a stream, which has no end of its own, gives no more pictures."""


class SensorError(EdgeprismError):
    """An energy sensor gives no reading, or none any more; the message says why and, where there is one, what helps."""


class RequestAborted(EdgeprismError):
    """The coordinator has moved to a newer epoch; the worker drops what it was computing."""


class FrameError(EdgeprismError):
    """A message breaks the frame format; it is dropped and the connection goes on."""


class ForeignProtocol(FrameError):
    """A frame of an edgeprism that speaks another protocol; ``protocol`` is its number."""

    def __init__(self, message: str, protocol: int) -> None:
        super().__init__(message)
        self.protocol = protocol
