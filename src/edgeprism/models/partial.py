"""A model of which only some pieces are held: only their weights are read, the rest takes no memory.

The whole model is made on torch's meta device, where tensors have shapes and no values; transformers' own loader then
fills in what the pieces need, under the names that the checkpoint has. What is left without values is never used.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    convert_and_load_state_dict_in_model,
    rename_source_key,
)
from transformers.modeling_utils import LoadStateDictConfig

from edgeprism.errors import ModelFilesError
from edgeprism.models.load import architecture_of, directory_of, load_pretrained, named_architecture, no_progress_bar
from edgeprism.models.manifest import weight_files
from edgeprism.models.model import Model
from edgeprism.models.registry import adapt
from edgeprism.specs.plan import PIECES_A_BLOCK

_LAYERS = ("layers", "layer", "h")
"""What families call the list of their blocks."""
_PARTS: tuple[tuple[str, ...], ...] = (
    # attention, with the norm before it where it comes first
    (
        "attention.q_proj", "attention.k_proj", "attention.v_proj", "self_attn.q_proj", "self_attn.k_proj",
        "self_attn.v_proj", "attention.self", "attention.q_lin", "attention.k_lin", "attention.v_lin", "attn.c_attn",
        "layernorm_before", "norm1", "ln_1", "input_layernorm",
    ),
    # its output layer, with the norm after it where that comes last
    (
        "attention.o_proj", "self_attn.o_proj", "attention.output", "attention.out_lin", "attn.c_proj", "sa_layer_norm",
        "layer_scale1",
    ),
    # the wide half of the MLP
    (
        "mlp.fc1", "mlp.weights_in", "mlp.gate_proj", "mlp.up_proj", "intermediate", "ffn.lin1", "mlp.c_fc",
        "layernorm_after", "norm2", "ln_2", "post_attention_layernorm",
    ),
    # the narrow half
    (
        "mlp.fc2", "mlp.weights_out", "mlp.down_proj", "output", "ffn.lin2", "mlp.c_proj", "output_layer_norm",
        "layer_scale2",
    ),
)  # fmt: skip
"""Parameters of a block by piece, as their names begin."""


@dataclass(frozen=True, slots=True)
class Held:
    """The pieces [start, stop) of a model with ``num_pieces``."""

    start: int
    stop: int
    num_pieces: int

    def needs(self, name: str) -> bool:
        """Whether a parameter of that name is used by them: those of their blocks; what embeds, by the first piece; the
        last norm and the head, by the last one."""
        piece = piece_of(name)
        if piece is not None:
            return self.start <= piece < self.stop
        if self.start == self.stop:
            return False
        is_embedding = any(part in name.split(".") for part in ("embeddings", "embed_tokens", "wte", "wpe"))
        return self.start == 0 if is_embedding else self.stop == self.num_pieces

    def reads(self, name: str, there: Set[str], ties: Mapping[str, str]) -> bool:
        """Whether they need a tensor of the checkpoint: for itself, or since another parameter is tied to it and not
        ``there``. A head that is there keeps its own values, whatever the configuration says of ties."""
        pairs = [*ties.items(), *((source, target) for target, source in ties.items())]
        tied = [other for one, other in pairs if one == name and other not in there]
        return self.needs(name) or any(self.needs(other) for other in tied)


def piece_of(name: str) -> int | None:
    """Of a parameter of a block, by its name in the model; None for any other. ModelFilesError for one of a block that
    belongs to no piece that is known."""
    parts = name.split(".")
    at = next((i for i, part in enumerate(parts[:-1]) if part in _LAYERS and parts[i + 1].isdigit()), None)
    if at is None:
        return None
    rest = ".".join(parts[at + 2 :])
    for piece, beginnings in enumerate(_PARTS):
        if any(rest.startswith(f"{one}.") for one in beginnings):
            return PIECES_A_BLOCK * int(parts[at + 1]) + piece
    raise ModelFilesError(f"{name} belongs to no piece of a block that a pipeline knows")


def load_partial(directory: Path, start: int, stop: int, *, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """The transformers model of a directory with values for the pieces [start, stop) only, in evaluation mode.
    ModelFilesError for what is missing or broken."""
    architecture = architecture_of(directory)
    model, mapping, held, ties = _outline(directory, architecture, start, stop, dtype)
    dtype = model.dtype
    names = _names(model)
    with ExitStack() as files, no_progress_bar():
        found: dict[str, Any] = {}
        try:
            opened = [files.enter_context(safe_open(path, framework="pt")) for path in weight_files(directory)]
            renamed = {key: _renamed(key, model, mapping) for file in opened for key in file.keys()}  # noqa: SIM118
            there = names & {*renamed.values()}
            for file in opened:
                for key in file.keys():  # noqa: SIM118 - it is no dictionary
                    if renamed[key] in there and held.reads(renamed[key], there, ties):
                        found[key] = file.get_slice(key)
            convert_and_load_state_dict_in_model(
                model, found, LoadStateDictConfig(dtype=dtype, weight_mapping=mapping)
            )  # fmt: skip
        except (OSError, ValueError, KeyError, SafetensorError) as exc:
            raise ModelFilesError(f"{directory} cannot be loaded as {architecture}: {exc}") from exc
    _tie(model, ties, there)
    _fill_buffers(model)
    missing = [
        name
        for name, value in model.named_parameters(remove_duplicate=False)
        if value.is_meta and held.needs(name) and not name.startswith("pooler.")
    ]
    if missing:
        raise ModelFilesError(
            f"{directory} lacks {len(missing)} tensors of {architecture}: {', '.join(missing[:3])}, ..."
        )
    pooler: Any = getattr(model, "pooler", None)
    if pooler is not None and any(value.is_meta for value in pooler.parameters()):
        model.pooler = None  # type: ignore[assignment]  # never saved, or not of these pieces
    return model


def needed_tensors(directory: Path, names: Iterable[str], start: int, stop: int) -> set[str]:
    """Those of a checkpoint's tensors that the pieces [start, stop) need, from config.json alone. ModelFilesError."""
    architecture = named_architecture(directory)
    model, mapping, held, ties = _outline(directory, architecture, start, stop, None)
    renamed = {name: _renamed(name, model, mapping) for name in names}
    there = _names(model) & {*renamed.values()}
    return {name for name, own in renamed.items() if own in there and held.reads(own, there, ties)}


def _outline(
    directory: Path, architecture: str, start: int, stop: int, dtype: torch.dtype | None
) -> tuple[PreTrainedModel, list[Any], Held, dict[str, str]]:
    """A model without values, how a checkpoint's names become its own, what is held of it, and which parameters are
    tied to which, by the configuration."""
    config = transformers.AutoConfig.from_pretrained(directory, local_files_only=True)
    with torch.device("meta"):
        model = getattr(transformers, architecture)(config)
    model = model.to(dtype or config.dtype or torch.float32).eval()
    held = Held(start, stop, PIECES_A_BLOCK * config.num_hidden_layers)
    ties = dict(model.get_expanded_tied_weights_keys(all_submodels=True))
    return model, get_model_conversion_mapping(model), held, ties


def _names(model: nn.Module) -> set[str]:
    """Of parameters and buffers, those that are tied to others included."""
    parameters = model.named_parameters(remove_duplicate=False)
    return {name for name, _ in (*parameters, *model.named_buffers(remove_duplicate=False))}


def _tie(model: PreTrainedModel, ties: Mapping[str, str], there: Set[str]) -> None:
    """Gives a parameter that the checkpoint lacks the values of the one that it is tied to."""
    for target, source in ties.items():
        if (target in there) == (source in there):
            continue
        lacks, has = (source, target) if target in there else (target, source)
        parent, _, name = lacks.rpartition(".")
        setattr(model.get_submodule(parent), name, model.get_parameter(has))


def adapt_partial(model: PreTrainedModel, device: torch.device, start: int, stop: int) -> Model:
    """The adaptor of what ``load_partial`` gave, on ``device``."""
    for module in model.modules():
        for name, value in list(module._parameters.items()):
            if value is not None and not value.is_meta:
                module._parameters[name] = nn.Parameter(value.detach().to(device), requires_grad=False)
        for name, buffer in list(module._buffers.items()):
            if buffer is not None and not buffer.is_meta:
                module._buffers[name] = buffer.to(device)
    head: Any = model.get_output_embeddings()
    is_last = stop == PIECES_A_BLOCK * model.config.num_hidden_layers
    if head is not None and not is_last:  # tied to the words, and of no use here
        head.weight = nn.Parameter(head.weight.detach().to("meta"), requires_grad=False)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if name in _LAYERS and isinstance(child, nn.ModuleList):
                setattr(parent, name, _Releasing(child))
    adapted = adapt(model)
    if is_last and start and head is not None:  # the head has them, laid out its own way
        words: Any = model.get_input_embeddings()
        words.weight = nn.Parameter(words.weight.detach().to("meta"), requires_grad=False)
    adapted.device, adapted.held = device, (start, stop)
    return adapted


def load_adapted(
    source: str, *, dtype: torch.dtype | None, device: torch.device, pieces: tuple[int, int] | None = None
) -> Model:
    """The model of a directory or hub id, ready to compute on ``device``; of only these pieces, if any are named."""
    if pieces is None:
        return adapt(load_pretrained(source, dtype=dtype).to(device))  # type: ignore[arg-type]
    return adapt_partial(load_partial(directory_of(source), *pieces, dtype=dtype), device, *pieces)


class _Releasing(nn.ModuleList):
    """Layers that let go of their matrices once they were gone through: blocks hold them laid out their own way, and
    two copies of all would be twice the memory."""

    def __iter__(self) -> Iterator[nn.Module]:
        for layer in super().__iter__():
            yield layer
            for module in layer.modules():
                for name, value in module._parameters.items():
                    if value is not None and value.ndim > 1 and not value.is_meta:
                        module._parameters[name] = nn.Parameter(value.detach().to("meta"), requires_grad=False)


def _renamed(key: str, model: PreTrainedModel, mapping: list[Any]) -> str:
    """What a tensor of the checkpoint is called in the model."""
    renamings = [one for one in mapping if isinstance(one, WeightRenaming)]
    converters = [one for one in mapping if isinstance(one, WeightConverter)]
    values = model.state_dict()
    name, _ = rename_source_key(key, renamings, converters, model.base_model_prefix, values)
    if name not in values and key in values:
        name, _ = rename_source_key(key, [], [], model.base_model_prefix, values)
    return str(name)


def _fill_buffers(model: nn.Module) -> None:
    """What a module works out from the configuration alone (rotary angles) is made anew, with values."""
    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            own = dict(module.named_buffers(recurse=False))
            if any(value.is_meta for value in own.values()) and not list(module.parameters()) and "inv_freq" in own:
                setattr(parent, name, type(module)(config=module.config))
