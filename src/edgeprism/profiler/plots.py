"""What a performance map says, drawn: from the file alone, with no device at hand. Needs matplotlib (extra `plots`).

Points are measured, lines predicted. `latency`: time against batch, every strategy; `bandwidth`: time against the rate
of the links, with the crossings of the best single device; `breakdown`: where the time goes; `regimes`: which plan wins
at each batch (or sequence length) and rate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median, mode
from typing import TYPE_CHECKING, Any

from edgeprism.errors import InputError, PlanError
from edgeprism.policy.choose import Policy
from edgeprism.policy.network import Network
from edgeprism.policy.predict import Prediction, predict
from edgeprism.specs.codec import EXACT, CodecSpec
from edgeprism.specs.model import element_bytes_of
from edgeprism.specs.performance_map import PerformanceMap
from edgeprism.specs.plan import Plan

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RATES_MBIT = (1.0, 2.0, 5.0, 10.0, 20.0, 35.0, 50.0, 75.0, 100.0, 150.0, 200.0, 300.0, 400.0, 600.0, 800.0, 1000.0)
BATCHES = (1, 2, 4, 8, 16, 32)
LENGTHS = (32, 64, 128, 256, 384, 512)
PARTS = (
    ("compute_s", "compute"),
    ("codec_s", "codec"),
    ("staging_s", "staging"),
    ("wire_s", "wire"),
    ("wait_s", "wait"),
)
SIZE = (7.2, 4.4)

Kept = Callable[[CodecSpec, int], float | None]
Winner = tuple[str, float]


def draw(found: PerformanceMap, folder: Path, *, points_lost: Kept, max_accuracy_drop: float | None) -> list[Path]:
    """PNG and SVG files in ``folder``. InputError without matplotlib, or where the folder cannot be written."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        raise InputError("plots need matplotlib, which is not installed; run: pip install 'edgeprism[plots]'") from None
    drawing = _Drawing(found, points_lost, max_accuracy_drop)
    charts: dict[str, Callable[[Axes], None]] = {"latency": drawing.latency, "breakdown": drawing.breakdown}
    if len(found.devices) > 1:
        charts |= {"bandwidth": drawing.bandwidth, "regimes": drawing.regimes}
        if found.model.fixed_tokens is None:
            charts["regimes_by_length"] = drawing.regimes_by_length
    written: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, chart in charts.items():
            figure, axes = pyplot.subplots(figsize=SIZE, layout="constrained")
            chart(axes)
            for ending in ("png", "svg"):
                written.append(folder / f"{name}.{ending}")
                figure.savefig(written[-1], dpi=150)
            pyplot.close(figure)
    except OSError as exc:
        raise InputError(f"{folder} cannot be written: {exc.strerror or exc}") from exc
    return written


class _Drawing:
    def __init__(self, found: PerformanceMap, points_lost: Kept, budget: float | None) -> None:
        self._map, self._element_bytes = found, element_bytes_of(found.dtype)
        self._points_lost, self._budget = points_lost, budget
        self._num_devices = len(found.devices)
        self._length = mode(one.num_tokens for one in found.requests)
        self._network = Network.measured(found.costs)

    @property
    def _heading(self) -> str:
        return f"{self._map.model.architecture}, {self._map.dtype}, {self._num_devices} devices"

    def latency(self, axes: Axes) -> None:
        for colour, (name, plan) in zip(_colours(), self._plans().items(), strict=False):
            predicted = [(batch, one) for batch in BATCHES if (one := self._total_s(plan, batch, self._network))]
            axes.plot(*_columns((batch, 1e3 * one) for batch, one in predicted), color=colour, label=name)
            measured = [(one.batch, 1e3 * median(one.total_s)) for one in self._measured(plan)]
            if measured:
                axes.plot(*_columns(measured), "o", color=colour, markersize=5)
        axes.set(xscale="log", yscale="log", xlabel="batch", ylabel="ms a request", title=self._heading)
        axes.set_xticks(BATCHES, [str(batch) for batch in BATCHES])
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize=8)

    def bandwidth(self, axes: Axes) -> None:
        local_s = self._total_s(Plan.local(), 1, self._network)
        assert local_s is not None
        axes.axhline(1e3 * local_s, color="black", linewidth=1, label="local")
        for colour, (name, plan) in zip(_colours(), self._plans().items(), strict=False):
            if plan.strategy != "sequence":
                continue
            times = [self._total_s(plan, 1, self._network.at(rate * 1e6 / 8)) for rate in RATES_MBIT]
            pairs = [(rate, 1e3 * one) for rate, one in zip(RATES_MBIT, times, strict=True) if one is not None]
            axes.plot(*_columns(pairs), color=colour, label=name)
            crossing = self._crossing(plan, local_s)
            if crossing is not None:
                axes.plot([crossing], [1e3 * local_s], "o", color=colour)
                axes.annotate(f"{crossing:.0f}", (crossing, 1e3 * local_s), xytext=(3, 4), textcoords="offset points")
        axes.set(xscale="log", ylim=(0, 3e3 * local_s), xlabel="Mbit/s of every link", ylabel="ms, batch 1")
        axes.set_title(f"{self._heading}; predicted")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)

    def breakdown(self, axes: Axes) -> None:
        """Of the slowest device of each measured point of batch 1."""
        rows = [one for one in self._map.requests if one.batch == 1 and one.num_tokens == self._length]
        labels = []
        for index, one in enumerate(rows):
            part = max(one.parts, key=lambda part: part.compute_s)
            left = 0.0
            for colour, (field, name) in zip(_colours(), PARTS, strict=False):
                width = 1e3 * getattr(part, field)
                axes.barh(index, width, left=left, color=colour, label=None if index else name)
                left += width
            shares = "/".join(f"{100 * share:.0f}" for share in one.plan.shares)
            labels.append(f"{one.plan.strategy} {one.plan.codec if one.plan.strategy == 'sequence' else ''} {shares}")
        axes.set_yticks(range(len(labels)), labels, fontsize=7)
        axes.invert_yaxis()
        axes.set(xlabel="ms of the busiest device, batch 1, measured", title=self._heading)
        axes.legend(fontsize=8)

    def regimes(self, axes: Axes) -> None:
        self._regimes(axes, BATCHES, "batch", lambda batch: (batch, self._length))

    def regimes_by_length(self, axes: Axes) -> None:
        lengths = [length for length in LENGTHS if length <= self._map.model.max_tokens]
        self._regimes(axes, lengths, "tokens", lambda length: (1, length))

    def _regimes(self, axes: Axes, rows: Sequence[int], what: str, request: Callable[[int], tuple[int, int]]) -> None:
        """Which plan is best in each cell, and its time over that of one device."""
        cells = [[self._winner(*request(row), rate) for rate in RATES_MBIT] for row in rows]
        names = sorted({name for line in cells for name, _ in line}, key=lambda name: (name != "local", name))
        colours = dict(zip(names, ["#dddddd" if names[0] == "local" else "#4477aa", *_colours()], strict=False))
        for y, line in enumerate(cells):
            for x, (name, ratio) in enumerate(line):
                axes.add_patch(_square(float(x), float(y), colours[name]))
                axes.text(x, y, f"{ratio:.2f}", ha="center", va="center", fontsize=6)
        axes.set(xlim=(-0.5, len(RATES_MBIT) - 0.5), ylim=(-0.5, len(rows) - 0.5), xlabel="Mbit/s", ylabel=what)
        axes.set_xticks(range(len(RATES_MBIT)), [f"{rate:g}" for rate in RATES_MBIT], fontsize=8)
        axes.set_yticks(range(len(rows)), [str(row) for row in rows])
        axes.set_title(f"{self._heading}: best plan, time over local; predicted", fontsize=10)
        handles = [_square(0.0, 0.0, colours[name], label=name) for name in names]
        axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3, fontsize=7)

    def _winner(self, batch: int, num_tokens: int, rate_mbit: float) -> Winner:
        policy = Policy(self._map, points_lost=self._points_lost, max_accuracy_drop=self._budget)
        decision = policy.decide(batch, num_tokens, self._network.at(rate_mbit * 1e6 / 8))
        plan = decision.chosen.plan
        name = f"sequence {plan.codec}" if plan.strategy == "sequence" else plan.strategy
        return name, decision.chosen.total_s / decision.local.total_s

    def _plans(self) -> dict[str, Plan]:
        plans = {"local": Plan.local()}
        known = self._map.costs.measured
        if len(known) > 1:
            plans["replica"] = Plan.among("replica", known, self._num_devices)
            names = dict.fromkeys((str(self._map.model.narrower(EXACT)), *self._map.codecs))
            plans |= {
                f"sequence {name}": Plan.among("sequence", known, self._num_devices, CodecSpec.parse(name))
                for name in names
                if name in self._map.codecs
            }
        return plans

    def _measured(self, plan: Plan) -> list[Any]:
        return [one for one in self._map.requests if one.plan == plan and one.num_tokens == self._length]

    def _total_s(self, plan: Plan, batch: int, network: Network) -> float | None:
        found = self._predict(plan, batch, network)
        return None if found is None else found.total_s

    def _predict(self, plan: Plan, batch: int, network: Network) -> Prediction | None:
        try:
            return predict(
                self._map.costs, self._map.model, plan, batch=batch, num_tokens=self._length,
                element_bytes=self._element_bytes, network=network,
            )  # fmt: skip
        except PlanError:
            return None

    def _crossing(self, plan: Plan, local_s: float) -> float | None:
        """The rate in Mbit/s from which on a plan is faster than one device; None where it never is, or always."""
        low, high = float(RATES_MBIT[0]), float(RATES_MBIT[-1])

        def is_faster(rate_mbit: float) -> bool:
            return (self._total_s(plan, 1, self._network.at(rate_mbit * 1e6 / 8)) or local_s) < local_s

        if is_faster(low) or not is_faster(high):
            return None
        for _ in range(20):
            middle = (low * high) ** 0.5
            low, high = (low, middle) if is_faster(middle) else (middle, high)
        return high


def _columns(pairs: Any) -> tuple[list[float], list[float]]:
    rows = list(pairs)
    return [float(x) for x, _ in rows], [float(y) for _, y in rows]


def _colours() -> tuple[str, ...]:
    """Told apart also by those who see few colours (Tol's bright scheme, and on)."""
    return (
        "#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bb9900", "#777777", "#332288", "#88ccaa",
    )  # fmt: skip


def _square(x: float, y: float, colour: str, label: str | None = None) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=colour, edgecolor="white", label=label)
