"""Who holds which pieces, where no device need hold a whole model: what each one loads, now and after a failure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from edgeprism.errors import ModelFilesError
from edgeprism.models.load import directory_of
from edgeprism.models.model import Model
from edgeprism.models.partial import load_adapted
from edgeprism.runtime.machine import memory_available_bytes
from edgeprism.runtime.messages import LoadOrder
from edgeprism.specs.model import ModelSpec, element_bytes_of
from edgeprism.specs.plan import Plan, Stage
from edgeprism.strategies.pipeline.partition import check, even, num_pieces, stage_weight_bytes
from edgeprism.wire.transport import COORDINATOR

OrderOf = Callable[[tuple[int, int]], LoadOrder]


class Holders:
    """For the thread that owns the transport. ``source``: a directory or hub id."""

    def __init__(
        self, source: str, plan: str | Plan, dtype: torch.dtype | None, device: torch.device, devices: Sequence[int]
    ) -> None:
        self._source, self._dtype, self._device = source, dtype, device
        self.spec = ModelSpec.from_directory(directory_of(source))
        if isinstance(plan, Plan):
            check(self.spec, plan)
            self.stages: tuple[Stage, ...] = plan.stages
        else:  # equal work; fewer devices where there are fewer pieces
            used = devices[: num_pieces(self.spec)]
            self.stages = even(self.spec, self.spec.usual_tokens, used)
        self._planned = self.stages

    def own(self) -> Model:
        """What this device holds of the model. ModelFilesError where its memory is too small for that."""
        return load_within_memory(self._source, self._dtype, self._device, self.pieces_of(COORDINATOR))

    def orders(self, order_of: OrderOf) -> Mapping[int, LoadOrder]:
        """What every other device that has a stage is to load."""
        return {
            stage.device: order_of((stage.start, stage.stop)) for stage in self.stages if stage.device != COORDINATOR
        }

    def fits(self, plan: str | Plan) -> bool:
        """Whether a plan has the stages that were planned, whoever may have failed since."""
        return isinstance(plan, Plan) and plan.stages == self._planned

    def pieces_of(self, device: int) -> tuple[int, int]:
        """Those of its stage; none where it has no stage."""
        return next(((stage.start, stage.stop) for stage in self.stages if stage.device == device), (0, 0))


def load_within_memory(
    source: str, dtype: torch.dtype | None, device: torch.device, pieces: tuple[int, int] | None = None
) -> Model:
    """The model of a directory or hub id, or these pieces of it. ModelFilesError as of ``check_memory``."""
    check_memory(ModelSpec.from_directory(directory_of(source)), dtype, device, pieces)
    return load_adapted(source, dtype=dtype, device=device, pieces=pieces)


def check_memory(
    spec: ModelSpec, dtype: torch.dtype | None, device: torch.device, pieces: tuple[int, int] | None = None
) -> None:
    """ModelFilesError where this machine has less memory free than the weights of a model, or of these pieces of it,
    take: to be killed by the kernel in the middle would say less."""
    element_bytes = element_bytes_of(spec.dtype if dtype is None else str(dtype).removeprefix("torch."))
    start, stop = (0, num_pieces(spec)) if pieces is None else pieces
    needed, there = stage_weight_bytes(spec, start, stop, element_bytes), memory_available_bytes()
    if device.type == "cpu" and there is not None and needed > there:
        help_ = "split it over devices (--plan pipeline)" if pieces is None else "add a device, or give it fewer pieces"
        what = f"{spec.architecture} has" if pieces is None else f"pieces {start} to {stop} of {spec.architecture} have"
        raise ModelFilesError(
            f"{(needed - there) / 1e6:.0f} MB of memory are missing: {what} {needed / 1e6:.0f} MB of weights, and "
            f"{there / 1e6:.0f} MB are free; {help_}"
        )
