"""From a model's own rows to the tables of a codec: what `edgeprism calibrate` computes.

Block by block, as they will be used: the prediction is fitted to what was decoded of the block before, the packing to
the differences that the prediction leaves.

The basis of product quantisation. A decoded row is only ever turned into keys and values, so the error e of a row y is
worth |e M^(1/2)|, with M = Wk Wk^T / |Wk|^2 + Wv Wv^T / |Wv|^2 (``metrics``), rather than |e|. Rows times M^(1/2) are
decorrelated by their principal components, which are dealt to the runs so that the product of spreads is alike in each
(the parametric solution of Ge et al., 2013). On the models measured this lost half as much as a fixed rotation.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from edgeprism.codecs.pack import Pack
from edgeprism.codecs.product import NUM_CODEWORDS, VECTORS_AT_ONCE, ProductQuantised, in_runs, nearest
from edgeprism.codecs.quantise import Quantised
from edgeprism.codecs.rotated_difference import quantised, rotated
from edgeprism.errors import InputError
from edgeprism.specs.codec import CodecSpec

MAX_VECTORS = 8192  # for codebooks: 32 a codeword
NUM_ROUNDS = 10
RUNS_AT_ONCE = 8
LEAST_WEIGHT = 1e-3  # of the largest: directions that keys and values ignore are kept invertible
_SEED = 20

Tables = dict[str, Tensor]


def fit_tables(
    spec: CodecSpec,
    rows: Iterable[Float[Tensor, "vectors width"]],
    metrics: Sequence[Float[Tensor, "groups group_width group_width"]],
) -> Tables:
    """The tables of ``spec``, from the rows of each block (the same tokens in each) and the worth of their errors.

    InputError when there are fewer rows than a codebook needs.
    """
    blocks: list[Tables] = []
    previous: Tensor | None = None
    for block_rows, metric in zip(rows, metrics, strict=True):
        block_rows = block_rows.float()
        if spec.group is not None and len(block_rows) < NUM_CODEWORDS:
            raise InputError(
                f"{len(block_rows)} rows are too few for codebooks of {NUM_CODEWORDS}; calibrate with more inputs"
            )
        if spec.is_rotated:
            block_rows = rotated(block_rows)
        tables = _prediction(block_rows, previous) if spec.is_delta else {}
        predicted = tables["offset"] + tables["gain"] * (0 if previous is None else previous) if spec.is_delta else 0
        tables |= _packing(spec, block_rows - predicted, metric)
        if spec.is_delta:
            previous = predicted + _decoded(spec, block_rows - predicted, tables)
        blocks.append(tables)
    return {name: torch.stack([tables[name] for tables in blocks]) for name in blocks[0]}


def _prediction(rows: Tensor, previous: Tensor | None) -> Tables:
    """Least squares, value by value: gain and offset."""
    mean = rows.mean(0)
    if previous is None:
        return {"gain": torch.zeros_like(mean), "offset": mean}
    mean_before = previous.mean(0)
    centred = previous - mean_before
    gain = ((rows - mean) * centred).mean(0) / centred.square().mean(0).clamp(min=1e-9)
    return {"gain": gain, "offset": mean - gain * mean_before}


def _packing(spec: CodecSpec, rows: Tensor, metric: Tensor) -> Tables:
    groups = rows.unflatten(-1, (metric.shape[0], -1)).transpose(0, 1)  # (groups, vectors, group_width)
    if spec.group is not None:
        basis = torch.stack(
            [_basis(part, worth, spec.group) for part, worth in zip(groups, metric, strict=True)]
        ).half()
        books = torch.stack([_codebooks(part, spec.group) for part in groups @ basis.float()])
        return {"basis": basis, "codebooks": books.half()}
    if spec.is_rotated:
        return {"spread": rows.square().mean(0, keepdim=True).sqrt().clamp(min=1e-9)}
    return {}


def _decoded(spec: CodecSpec, differences: Float[Tensor, "vectors width"], tables: Tables) -> Tensor:
    """What receivers will make of a block's differences."""
    if spec.is_rotated:
        return quantised(differences, tables["spread"], spec.bits)
    width = differences.shape[1]
    pack: Pack
    if spec.group is None:
        pack = Quantised(bits=spec.bits, num_groups=1, width=width, dtype=torch.float32)
    else:
        basis = tables["basis"][None].float()
        books, inverse = tables["codebooks"][None].float(), torch.linalg.inv(basis)
        pack = ProductQuantised(width=width, dtype=torch.float32, basis=basis, inverse=inverse, codebooks=books)
    decoded: Tensor = pack.unpack(pack.pack(differences[None], 0), 0)[0]
    return decoded


def _basis(rows: Float[Tensor, "vectors width"], metric: Float[Tensor, "width width"], group: int) -> Tensor:
    """(width, width): rows times it are decorrelated, weighed by what their errors do, and dealt to the runs."""
    weights, directions = torch.linalg.eigh(metric.double())
    weights = weights.clamp(min=float(weights.max()) * LEAST_WEIGHT)
    root = (directions * weights.sqrt()) @ directions.T
    weighed = rows.double() @ root
    centred = weighed - weighed.mean(0)
    spreads, components = torch.linalg.eigh(centred.T @ centred / len(rows))
    order = _dealt(spreads.flip(0).clamp(min=1e-12).tolist(), group)
    basis: Tensor = root @ components.flip(1)[:, order]
    return basis.float()


def _dealt(spreads: Sequence[float], group: int) -> list[int]:
    """Components (largest first) in the order of the runs that they are dealt to: always to the run with the smallest
    product so far that has room."""
    num_runs = -(-len(spreads) // group)
    runs: list[list[int]] = [[] for _ in range(num_runs)]
    products, room = [0.0] * num_runs, [group] * num_runs
    room[-1] -= num_runs * group - len(spreads)
    lift = -math.log(min(spreads)) + 1.0  # every logarithm above zero: a component always makes a product larger
    for index, spread in enumerate(spreads):
        run = min((run for run in range(num_runs) if room[run]), key=lambda run: products[run])
        runs[run].append(index)
        products[run] += math.log(spread) + lift
        room[run] -= 1
    return [index for run in runs for index in run]


def _codebooks(vectors: Float[Tensor, "vectors width"], group: int) -> Float[Tensor, "runs codewords group"]:
    """k-means for each run, several at once."""
    generator = torch.Generator().manual_seed(_SEED)
    picked = torch.randperm(len(vectors), generator=generator)[:MAX_VECTORS].to(vectors.device)
    runs = in_runs(vectors[picked][None], group)[0]
    return torch.cat([_k_means(some, generator) for some in runs.split(RUNS_AT_ONCE)])


def _k_means(runs: Float[Tensor, "runs vectors group"], generator: torch.Generator) -> Tensor:
    """Codewords (runs, 256, group), from a random choice of vectors on; one that nobody is nearest to starts anew."""
    num_runs, num_vectors, group = runs.shape
    chosen = torch.randperm(num_vectors, generator=generator)[:NUM_CODEWORDS].to(runs.device)
    books = runs[:, chosen].clone()
    offsets = torch.arange(num_runs, device=runs.device)[:, None] * NUM_CODEWORDS
    for _ in range(NUM_ROUNDS):
        found = [nearest(some, books) for some in runs.split(VECTORS_AT_ONCE, dim=1)]
        codes = (torch.cat(found, dim=1) + offsets).flatten()
        sums = runs.new_zeros(num_runs * NUM_CODEWORDS, group).index_add_(0, codes, runs.flatten(0, 1))
        counts = torch.bincount(codes, minlength=num_runs * NUM_CODEWORDS)[:, None]
        fresh = runs[:, torch.randint(num_vectors, (NUM_CODEWORDS,), generator=generator).to(runs.device)]
        books = torch.where(counts > 0, sums / counts.clamp(min=1), fresh.flatten(0, 1)).view_as(books)
    return books
