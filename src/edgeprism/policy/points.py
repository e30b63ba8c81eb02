"""What codecs cost in accuracy, for the policy: by the accuracy file that `edgeprism evaluate` wrote."""

from __future__ import annotations

from collections.abc import Mapping

from edgeprism.policy.choose import PointsLost
from edgeprism.specs.accuracy import AccuracyFile
from edgeprism.specs.codec import CodecSpec
from edgeprism.specs.performance_map import PerformanceMap

MAX_UNCERTAINTY = 5.0
"""Points: what is known less well, as of a handful of inputs, is not relied on."""


def points_lost(accuracy: AccuracyFile, found: PerformanceMap, digests: Mapping[str, str] | None = None) -> PointsLost:
    """For the model and dtype of a map. ``digests``: of the tables that codecs would use, by name; a codec whose tables
    are not those that were measured is unknown. None: those that it was timed with."""
    used = found.calibrations if digests is None else digests

    def lost(codec: CodecSpec, num_devices: int) -> float | None:
        if codec.needs_calibration and str(codec) not in used:
            return None
        return accuracy.points_lost(
            model=found.fingerprint, codec=codec, num_devices=num_devices, dtype=found.dtype,
            calibration=used.get(str(codec)) if codec.needs_calibration else None, max_uncertainty=MAX_UNCERTAINTY,
        )  # fmt: skip

    return lost
