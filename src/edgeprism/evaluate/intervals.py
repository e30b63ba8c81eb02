"""How sure a difference is: 95 % intervals of codec minus one device, on the same inputs.

Shares of right answers have an interval in closed form: Bonett and Price, "Adjusted Wald confidence interval for a
difference of binomial proportions based on paired data", Journal of Educational and Behavioral Statistics 37 (2012).
It counts one more of each kind of change than was seen, so it does not shrink to nothing where nothing changed. Shares
that agree have Wilson's (1927). Everything else has the percentile bootstrap over inputs (Efron and Tibshirani, 1993):
both metrics on the same 2,000 resamples, which are drawn with a fixed seed.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from edgeprism.evaluate.metrics import Floats, Metric

Z95 = 1.959963984540054
NUM_DRAWS = 2000
SEED = 0
_CHUNK_VALUES = 2**22  # of weights at a time: 32 MB

Interval = tuple[float, float]


def paired_shares(before: npt.NDArray[np.bool_], after: npt.NDArray[np.bool_]) -> Interval:
    """Of mean(after) - mean(before): what was right, input by input.

    Of 100 inputs 8 get worse and 2 better: (3 - 9) / 102 = -0.0588 and 1.96 sqrt((12/102 - 0.0588^2) / 102) = 0.0656.

    >>> before = np.arange(100) < 90
    >>> after = (np.arange(100) < 82) | (np.arange(100) >= 98)
    >>> [round(end, 4) for end in paired_shares(before, after)]
    [-0.1244, 0.0068]
    """
    count = len(before)
    better = (int((after & ~before).sum()) + 1) / (count + 2)
    worse = (int((before & ~after).sum()) + 1) / (count + 2)
    difference = better - worse
    half = Z95 * math.sqrt((better + worse - difference**2) / (count + 2))
    return max(-1.0, difference - half), min(1.0, difference + half)


def wilson(num_yes: int, count: int) -> Interval:
    """Of a share.

    >>> [round(end, 4) for end in wilson(0, 10)]
    [0.0, 0.2775]
    """
    share = num_yes / count
    centre = share + Z95**2 / (2 * count)
    half = Z95 * math.sqrt(share * (1 - share) / count + Z95**2 / (4 * count**2))
    scale = 1 + Z95**2 / count
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def bootstrap(before: Metric, after: Metric, num_inputs: int, *, num_draws: int = NUM_DRAWS) -> Interval:
    """Of after - before, over resamples of the inputs."""
    generator = np.random.default_rng(SEED)
    each = max(1, _CHUNK_VALUES // num_inputs)
    differences: list[Floats] = []
    for start in range(0, num_draws, each):
        weights = _draw(generator, min(each, num_draws - start), num_inputs)
        differences.append(after(weights) - before(weights))
    low, high = np.percentile(np.concatenate(differences), (2.5, 97.5))
    return float(low), float(high)


def _draw(generator: np.random.Generator, num_draws: int, num_inputs: int) -> Floats:
    """How often each input is in each resample (draws, inputs)."""
    drawn = generator.integers(num_inputs, size=(num_draws, num_inputs))
    drawn += np.arange(num_draws)[:, None] * num_inputs
    counts = np.bincount(drawn.ravel(), minlength=num_draws * num_inputs)
    return counts.reshape(num_draws, num_inputs).astype(np.float64)
