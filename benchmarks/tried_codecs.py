"""Do exact rows among means, segments by content or bits mixed by row earn a place? Sketches against what is shipped.

The demo's ViT on two devices, 250 training pictures that nothing was made from: the divergence of the answers from the
exact ones tells more than the few answers that change. A sketch computes what receivers would see and counts the bytes
that would travel, side information included; nothing is packed. docs/explanation/codecs.md says what came of it.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm
from transformers import PreTrainedModel

from benchmarks.evaluation import small
from benchmarks.report import arguments, record
from demo.build import build
from edgeprism.codecs.calibration import Calibration
from edgeprism.codecs.codec import Codec, PartitionCodec, Parts, make_codec
from edgeprism.codecs.pack import Layout, Pack
from edgeprism.codecs.predict import Difference
from edgeprism.codecs.quantise import STEPS
from edgeprism.codecs.rotation import Rotation
from edgeprism.codecs.segments import segment_bounds
from edgeprism.codecs.size import payload_bytes
from edgeprism.evaluate import partitioned
from edgeprism.evaluate.calibrate import calibrate
from edgeprism.evaluate.classify import image_of
from edgeprism.evaluate.datasets.registry import load_dataset
from edgeprism.evaluate.trainable import with_codec
from edgeprism.models.load import load_pretrained
from edgeprism.models.registry import adapt
from edgeprism.specs.codec import CodecSpec
from edgeprism.tasks.inputs import Batch, prepare_pictures_with

NUM_CALIBRATION, NUM_PICTURES, BATCH = 100, 250, 25
RATES = (8, 16)
SHIPPED = (
    "means:2+rot+int4",
    "means:4+rot+int4",
    "means:2+rot+int2",
    "rot+int4",
    "rot+int2",
    "delta+rot+int4",
    "delta+rot+int2",
)
PREDICTION = "delta+int4"
"""Whose tables predict rows as they come, as a sketch does; those of delta+rot predict rotated values."""
Rows = tuple[Tensor, Tensor | None]
Reduce = Callable[[Tensor], Rows]
"""Rows (batch, tokens, width) to fewer rows and how many tokens each stands for."""


class Sketch(Codec):
    """Whatever ``reduce`` makes of rows."""

    def __init__(self, reduce: Reduce) -> None:
        self._reduce = reduce

    def encode(self, rows: Tensor, block: int) -> Parts:
        return (rows,)

    def decode(self, parts: Parts, block: int) -> Rows:
        return self._reduce(parts[0])

    def reduced(self, rows: Tensor) -> Tensor:
        raise NotImplementedError("a sketch is not trained")

    def layout(self, batch: int) -> tuple[Layout, ...]:
        raise NotImplementedError("a sketch does not travel")

    def positions(self, start: int) -> Tensor:
        raise NotImplementedError("a ViT adds positions before the first block")

    mean_positions = positions  # type: ignore[assignment]


def exact_among_means(rows: Tensor, num_rows: int, num_exact: int) -> Rows:
    """The rows farthest from the mean of their segment stay exact; the others are averaged without them."""
    bounds = segment_bounds(rows.shape[1], num_rows - num_exact)
    membership = torch.zeros(len(bounds), rows.shape[1])
    for index, (start, stop) in enumerate(bounds):
        membership[index, start:stop] = 1
    means = membership / membership.sum(1, keepdim=True) @ rows
    far = (rows - membership.T @ means).square().sum(-1).topk(num_exact).indices
    chosen = torch.zeros(rows.shape[:2]).scatter_(1, far, 1.0)
    weights = membership * (1 - chosen)[:, None]
    counts = weights.sum(-1)
    exact = rows.gather(1, far[..., None].expand(-1, -1, rows.shape[2]))
    rest = weights / counts.clamp(min=1)[..., None] @ rows
    return torch.cat([exact, rest], 1), torch.cat([torch.ones_like(far, dtype=counts.dtype), counts], 1)


def clusters(rows: Tensor, num_rows: int, rounds: int = 8) -> Rows:
    """Rows that are alike, wherever they stand, become one: k-means, begun with rows at equal distances."""
    places = torch.linspace(0, rows.shape[1] - 1, num_rows).round().long()
    centres = rows[:, places]
    for _ in range(rounds):
        owner = torch.cdist(rows, centres).argmin(-1)
        membership = F.one_hot(owner, num_rows).mT.to(rows.dtype)
        counts = membership.sum(-1)
        centres = torch.where(counts[..., None] > 0, membership @ rows / counts.clamp(min=1)[..., None], centres)
    return centres, counts


def best_cuts(rows: Tensor, num_rows: int) -> Rows:
    """Contiguous segments whose borders make the sum of squares within them least (dynamic programming)."""
    batch, num_tokens, _ = rows.shape
    sums = F.pad(rows.double().cumsum(1), (0, 0, 1, 0))
    squares = F.pad(rows.double().square().sum(-1).cumsum(1), (1, 0))
    inner = (sums[:, None] - sums[:, :, None]).square().sum(-1)  # [start, stop]
    length = (torch.arange(num_tokens + 1)[None] - torch.arange(num_tokens + 1)[:, None]).double()
    within = (squares[:, None] - squares[:, :, None]) - inner / length.clamp(min=1)
    within = within.masked_fill(length <= 0, float("inf"))
    best, cuts = within[:, 0], []
    for _ in range(num_rows - 1):
        best, start = (best[:, :, None] + within).min(1)
        cuts.append(start)
    stop = torch.full((batch, 1), num_tokens)
    bounds = [stop]
    for start in reversed(cuts):
        stop = start.gather(1, stop)
        bounds.append(stop)
    edges = torch.cat([torch.zeros(batch, 1, dtype=torch.long), *reversed(bounds)], 1)
    counts = edges.diff(dim=1)
    totals = sums.gather(1, edges[..., None].expand(-1, -1, rows.shape[2])).diff(dim=1)
    return (totals / counts[..., None]).to(rows.dtype), counts.to(rows.dtype)


class MixedBits(Pack):
    """After a rotation each row gets the bits that its spread deserves, ``bits`` on average: for each halving of the
    spread one bit less (reverse water-filling). The spread of each row travels in 16 bits, and tells the bits."""

    def __init__(self, width: int, bits: int) -> None:
        self._rotation, self._bits = Rotation(width, torch.device("cpu")), bits

    def pack(self, rows: Tensor, block: int) -> tuple[Tensor, ...]:
        rotated = self._rotation.apply(rows)
        spread = rotated.square().mean(-1, keepdim=True).sqrt().clamp(min=1e-9)
        wanted = spread.log2() - spread.log2().mean(1, keepdim=True) + self._bits
        bits = _rounded(wanted, self._bits)
        decoded = torch.zeros_like(rotated)
        for each in (1, 2, 3, 4):
            step, half = STEPS[each] * spread, 2**each // 2
            levels = (rotated / step).floor().clamp(-half, half - 1) + 0.5
            decoded = torch.where(bits == each, levels * step, decoded)
        return (self._rotation.undo(decoded),)

    def unpack(self, parts: tuple[Tensor, ...], block: int) -> Tensor:
        return parts[0].clone()  # what is unpacked belongs to whoever asked

    def layout(self, batch: int, num_rows: int) -> tuple[Layout, ...]:
        raise NotImplementedError("a sketch does not travel")


def _rounded(wanted: Tensor, average: int) -> Tensor:
    """Whole numbers from 0 to 4 near ``wanted`` (batch, rows, 1) whose mean is at most ``average``."""
    low, high = torch.full_like(wanted[:, :1], -4.0), torch.full_like(wanted[:, :1], 4.0)
    for _ in range(20):
        middle = (low + high) / 2
        too_many = (wanted + middle).round().clamp(0, 4).mean(1, keepdim=True) > average
        low, high = torch.where(too_many, low, middle), torch.where(too_many, middle, high)
    return (wanted + low).round().clamp(0, 4)


@contextmanager
def instead(make: Callable[..., Codec]) -> Iterator[None]:
    """The devices' codecs are those that ``make`` gives."""
    original = partitioned.make_codec
    partitioned.make_codec = make
    try:
        yield
    finally:
        partitioned.make_codec = original


def sketches(
    calibrations: dict[str, Calibration], rates: Sequence[int]
) -> dict[str, tuple[Callable[..., Codec], Callable[[int, int], float]]]:
    """By name: how a partition's codec is made, and the bytes of a partition of (tokens, width)."""

    def reducing(reduce: Callable[[Tensor, int], Rows], rate: int) -> Callable[..., Codec]:
        return lambda spec, *, num_tokens, **_: Sketch(lambda rows: reduce(rows, round(num_tokens / rate)))

    def mixed(spec: CodecSpec, *, num_tokens: int, width: int, dtype: torch.dtype, **_: Any) -> Codec:
        return PartitionCodec(None, MixedBits(width, 2), num_tokens, None)

    def mixed_differences(spec: CodecSpec, *, num_tokens: int, width: int, dtype: torch.dtype, **_: Any) -> Codec:
        tables = calibrations[PREDICTION].ready
        inner = MixedBits(width, 2)
        pack = Difference(inner, gains=tables["gain"], offsets=tables["offset"], dtype=dtype)
        return PartitionCodec(None, pack, num_tokens, None)

    made: dict[str, tuple[Callable[..., Codec], Callable[[int, int], float]]] = {}
    for rate in rates:
        for share in (0.25, 0.5):

            def exact(rows: Tensor, num_rows: int, share: float = share) -> Rows:
                return exact_among_means(rows, num_rows, round(share * num_rows))

            made[f"means:{rate}, {share:.0%} of the rows exact"] = (
                reducing(exact, rate),
                lambda tokens, width, rate=rate, share=share: round(tokens / rate) * (4 * width + share),  # type: ignore[misc]
            )
        reduces = {"best cuts": best_cuts, "clusters": clusters}
        for name, reduce in reduces.items():
            made[f"means:{rate}, {name}"] = (
                reducing(reduce, rate),
                lambda tokens, width, rate=rate: round(tokens / rate) * (4 * width + 1),  # type: ignore[misc]
            )
    made["rot, 2 bits on average, by row"] = (mixed, lambda tokens, width: tokens * (width / 4 + 2))
    made["delta+rot, 2 bits on average, by row"] = (mixed_differences, lambda tokens, width: tokens * (width / 4 + 2))
    return made


def main() -> int:
    """Measures, and writes benchmarks/results/tried_codecs.json."""
    smoke = arguments(__doc__).parse_args().smoke
    with tempfile.TemporaryDirectory(prefix="edgeprism-tried-") as folder:
        directory, data = small(Path(folder)) if smoke else (build(), None)
        figures = run(directory, data, 8, 8, (2, 4)) if smoke else run(directory, data)
    settings = {"model": directory.name, "devices": 2, "dtype": "float32", "calibration inputs": NUM_CALIBRATION}
    record("tried_codecs", figures, settings, smoke)
    return 0


def run(
    directory: Path,
    data: Path | None,
    num_calibration: int = NUM_CALIBRATION,
    num_pictures: int = NUM_PICTURES,
    rates: Sequence[int] = RATES,
) -> dict[str, Any]:
    """Figures by name. The first training pictures make tables, the last ones (of the 500 that the demo's training kept
    out) are answered."""
    dataset, prepare = load_dataset("cifar10", split="train", data=data), prepare_pictures_with(directory)
    pictures = [image_of(picture) for picture in dataset.inputs]
    batches = [prepare(pictures[i : i + BATCH]) for i in range(0, num_calibration, BATCH)]
    specs = [CodecSpec.parse(text) for text in (*(f"means:{rate}" for rate in rates), *SHIPPED)]
    model = load_pretrained(str(directory), dtype=torch.float32)
    need = [spec for spec in (*specs, CodecSpec.parse(PREDICTION)) if spec.needs_calibration]
    tables = calibrate(adapt(model), batches, need, (0.5, 0.5), num_samples=num_calibration)
    calibrations = {str(one.codec): one for one in tables}
    pictures, labels = pictures[-num_pictures:], torch.from_numpy(dataset.targets[-num_pictures:])
    inputs = [prepare(pictures[i : i + BATCH]) for i in range(0, num_pictures, BATCH)]
    exact = answers(model, inputs)
    tokens, width = adapt(model).num_tokens(inputs[0]) // 2, model.config.hidden_size
    figures: dict[str, Any] = {"one device": {"accuracy": accuracy(exact, labels), "inputs": num_pictures}}
    ways: dict[str, tuple[CodecSpec, Callable[..., Codec], float]] = {}
    for spec in specs:
        size = payload_bytes(spec, num_tokens=tokens, width=width, batch=1, element_bytes=4)
        ways[str(spec)] = (spec, make_codec, size)
    for name, (make, size_of) in sketches(calibrations, rates).items():
        ways[name] = (CodecSpec.parse("means:2"), make, size_of(tokens, width))
    for name, (spec, make, size) in ways.items():
        with_codec(model, spec, 2, calibration=calibrations.get(str(spec)))
        with instead(make):
            given = answers(model, inputs)
        figures[name] = {
            "of_float32": 4 * tokens * width / size,
            "divergence": float(F.kl_div(given, exact, reduction="batchmean", log_target=True)),
            "same_answer": float((given.argmax(1) == exact.argmax(1)).float().mean()),
            "accuracy": accuracy(given, labels),
        }
        print(f"{name:42} 1/{figures[name]['of_float32']:4.1f}  divergence {figures[name]['divergence']:.4f}")
    return figures


def answers(model: PreTrainedModel, inputs: Sequence[Batch]) -> Tensor:
    """Logarithms of the probabilities (inputs, classes)."""
    with torch.inference_mode():
        return torch.cat([model(**some).logits for some in tqdm(inputs, leave=False)]).log_softmax(-1)


def accuracy(given: Tensor, labels: Tensor) -> float:
    """Share of right answers."""
    return float((given.argmax(1) == labels).float().mean())


if __name__ == "__main__":
    sys.exit(main())
