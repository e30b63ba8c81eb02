"""One device: sequence parallelism with a single partition, which sends nothing and waits for nobody."""

from __future__ import annotations

from edgeprism.models.model import Model, Tokens
from edgeprism.models.reads import HeadInput
from edgeprism.specs.codec import EXACT
from edgeprism.strategies.meter import Meter
from edgeprism.strategies.sequence.forward import SequenceForward, Work
from edgeprism.strategies.staging import Staging
from edgeprism.wire.memory import MemoryTransport


def local_forward(model: Model, tokens: Tokens, *, keeps_cache: bool = False) -> SequenceForward:
    """The request on this device alone; call ``run`` on it."""
    work = Work(
        devices=(0,),
        bounds=((0, tokens.num_tokens),),
        index=0,
        codec=EXACT,
        calibration=None,
        features=tokens.features,
        mask=tokens.mask,
        reads=tokens.reads,
        positions=tokens.positions,
        epoch=0,
        request=0,
    )
    alone = MemoryTransport.mesh(1)[0]
    staging = Staging(model.device)
    return SequenceForward(model, work, alone, staging, deadline=float("inf"), meter=Meter(), keeps_cache=keeps_cache)


def run_local(model: Model, tokens: Tokens) -> HeadInput:
    """What the head reads, computed here."""
    return tokens.reads.join([local_forward(model, tokens).run()], [(0, tokens.num_tokens)])
