"""At least so many seconds are left, by the cut that was reached and the devices that are used up.

Each piece goes where it takes least, as in any such bound; but a device whose memory many pieces would want has a price
for every byte, which pieces pay there and which is given back for what its memory holds in all. No placement that fits
is made dearer by that, whatever the prices are (Lagrange), so prices only decide how close the bound is. What one more
stage costs before it computes (its transfer, and handling that) is paid for by the byte as well: a stage holds no more
bytes than fit, so it pays no more than it really does. In the end outputs go home.
"""

from __future__ import annotations

import numpy as np

from edgeprism.planner.pipeline import Pipeline
from edgeprism.planner.sets import Flags, Numbers, Seconds

_STEPS = 300
_ROUNDING = 1e-9  # of the whole: a bound must not be above what it bounds, and sums round


class Rest:
    """Of one pipeline; ``may`` are the stages that fit, by device, start and stop; ``transfer_s`` by sender, receiver
    and cut."""

    def __init__(self, pipeline: Pipeline, may: Flags, transfer_s: Seconds) -> None:
        self._devices = pipeline.num_devices
        self._weights = np.array(pipeline.weight_bytes, dtype=np.float64)
        self._room = _room(may, self._weights)
        self.arriving_s = np.array([_arriving_s(device, transfer_s) for device in range(self._devices)])
        """By device: the quickest transfer to it; so much of a bound is past once something has arrived there."""
        stage_s = self.arriving_s + np.array([_handling_s(pipeline, device) for device in range(self._devices)])
        per_byte = np.divide(stage_s, self._room, out=np.zeros_like(stage_s), where=self._room > 0)
        paid_s = np.where(self._weights > 0, per_byte[:, None] * self._weights, 0.0)
        self._piece_s = np.where(_can_hold(may), np.array(pipeline.piece_s) + paid_s, np.inf)
        self._home_s = transfer_s[:, pipeline.home, -1]
        self._prices = self._good_prices()

    def of(self, used: Numbers) -> Seconds:
        """By set of devices that are used up (at least one), and cut; infinite where pieces are left and no device
        is."""
        plain = self._bound(used, np.zeros(self._devices))
        return np.maximum(plain, self._bound(used, self._prices)) if self._prices.any() else plain

    def _bound(self, used: Numbers, prices: Seconds) -> Seconds:
        least_s = np.full((len(used), len(self._weights)), np.inf)
        back_s, home_s = np.zeros(len(used)), np.full(len(used), np.inf)
        for device, price in enumerate(prices):
            is_left = (used >> device & 1) == 0
            np.minimum(least_s, self._piece_s[device] + price * self._weights, out=least_s, where=is_left[:, None])
            np.minimum(home_s, self._home_s[device], out=home_s, where=is_left)
            back_s += np.where(is_left, price * self._room[device], 0.0)
        bound = np.zeros((len(used), len(self._weights) + 1))
        bound[:, :-1] = np.cumsum(least_s[:, ::-1], axis=1)[:, ::-1] + home_s[:, None]
        bound *= 1 - _ROUNDING
        return np.maximum(bound - back_s[:, None] * (1 + _ROUNDING), 0.0)

    def _good_prices(self) -> Seconds:
        """By steps along what is wanted of each memory beyond what it has, smaller and smaller; the best of all."""
        prices = best = np.zeros(self._devices)
        total = self._weights.sum()
        usable = self._piece_s[np.isfinite(self._piece_s)]
        if not usable.size or not total:
            return best
        scale, best_s = usable.mean() / self._weights.mean(), -np.inf
        for step in range(1, _STEPS + 1):
            priced_s = self._piece_s + prices[:, None] * self._weights
            bound_s = priced_s.min(axis=0).sum() - prices @ self._room
            if bound_s > best_s:
                best, best_s = prices, bound_s
            wanted = np.bincount(priced_s.argmin(axis=0), weights=self._weights, minlength=self._devices)
            if (wanted <= self._room).all() and not prices.any():
                break
            prices = np.maximum(prices + scale / step**0.5 * (wanted - self._room) / total, 0.0)
        return best


def _room(may: Flags, weights: Seconds) -> Seconds:
    """The most weights that a stage of each device holds."""
    before = np.concatenate([[0.0], np.cumsum(weights)])
    held: Seconds = np.where(may, before[None, None, :] - before[None, :, None], 0.0).max(axis=(1, 2))
    return held


def _can_hold(may: Flags) -> Flags:
    """Whether a device has any stage that fits with a piece in it, by device and piece."""
    wider = np.logical_or.accumulate(may[:, :, ::-1], axis=2)[:, :, ::-1]  # that ends there or later
    wider = np.logical_or.accumulate(wider, axis=1)  # and begins there or earlier
    pieces = np.arange(may.shape[1] - 1)
    found: Flags = wider[:, pieces, pieces + 1]
    return found


def _arriving_s(device: int, transfer_s: Seconds) -> float:
    """Of the quickest transfer to it, from any other and at any cut where pieces are left."""
    others = [other for other in range(len(transfer_s)) if other != device]
    return float(transfer_s[others, device, :-1].min()) if others else 0.0


def _handling_s(pipeline: Pipeline, device: int) -> float:
    """Of its computing, for what its stage takes and gives, at least."""
    cuts = range(pipeline.num_pieces)
    taken_s = min(pipeline.taken_s(device, cut) for cut in cuts)
    return taken_s + min(pipeline.given_s(device, cut + 1) for cut in cuts)
