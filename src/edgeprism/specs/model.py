"""The geometry of a model, from its config.json alone: what counting work and bytes needs, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from edgeprism.errors import ModelFilesError, PlanError
from edgeprism.specs.codec import EXACT, EXACT_KEYS_VALUES, CodecSpec
from edgeprism.specs.config_json import FAMILY_OF, is_count, read_fields, unsupported

SCHEMA_VERSION = 1

SUPPORTED_ARCHITECTURES = tuple(sorted(FAMILY_OF))
"""Class names of transformers, as config.json gives them under "architectures"."""

_READ_FIRST = frozenset(
    f"{family}For{task}Classification"
    for family, task in (
        ("ViT", "Image"), ("DeiT", "Image"), ("Bert", "Sequence"), ("Roberta", "Sequence"), ("DistilBert", "Sequence"),
    )
) | {"DeiTForImageClassificationWithTeacher"}  # fmt: skip

TEXT_TOKENS = 128
DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "float64": 8}
"""Bytes of one element, by the name of the dtype that a model computes in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """What a model costs, in integers. Made by ``from_config`` or ``from_directory``.

    ``special_tokens``, ``patch_size_px`` and ``num_channels`` are 0 for text models; ``vocab_size`` is 0 for vision
    models; ``num_labels`` is 0 where there is no classification head.
    """

    architecture: str
    model_type: str
    num_layers: int
    hidden_size: int
    """The papers' D."""
    num_heads: int
    key_value_width: int
    """Width of a token's keys (and of its values): hidden_size, or less where heads of queries share one of keys."""
    intermediate_size: int
    mlp_matrices: int
    """Two (up, down), or three in a gated MLP (DINOv2 giant's SwiGLU, Llama)."""
    is_causal: bool
    max_tokens: int
    """Vision: patches and special tokens of an image of the size in config.json. Text: usable positions."""
    fixed_tokens: int | None
    """Tokens of every image; None for text, whose length is the request's."""
    special_tokens: int = 0
    """Tokens of an image that are no patch: CLS, and DeiT's distillation token."""
    patch_size_px: tuple[int, int] = (0, 0)
    num_channels: int = 0
    resizes_images: bool = False
    """Whether the family interpolates its positions to the image it is given (DINOv2), so that tokens may vary."""
    vocab_size: int = 0
    num_labels: int = 0
    dtype: str = "float32"
    """The dtype that the weights are stored in, by its name in torch."""

    def __post_init__(self) -> None:
        if self.architecture not in FAMILY_OF:
            raise unsupported(self.architecture)
        sizes = ("num_layers", "hidden_size", "num_heads", "key_value_width", "intermediate_size", "max_tokens")
        for name in sizes:
            value = getattr(self, name)
            if not is_count(value) or value < 1:
                raise ModelFilesError(f"config.json of {self.architecture}: {name} must be at least 1, not {value!r}")
        if self.hidden_size % self.num_heads:
            raise ModelFilesError(
                f"config.json of {self.architecture}: hidden_size {self.hidden_size} is no multiple of "
                f"the {self.num_heads} attention heads"
            )
        if self.dtype not in DTYPE_BYTES:
            raise ModelFilesError(f"config.json of {self.architecture}: dtype {self.dtype!r} is none of {_names()}")

    def narrower(self, codec: CodecSpec) -> CodecSpec:
        """For ``exact`` the form that sends fewer bytes: ``kv:exact`` where heads share so many keys and values that
        both are narrower than a row. The answers are the same. Any other codec is left as it is."""
        return EXACT_KEYS_VALUES if codec == EXACT and 2 * self.key_value_width < self.hidden_size else codec

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ModelSpec:
        """Read the dict of a config.json. UnsupportedModel names the architectures that would be accepted."""
        return cls(**read_fields(config))

    @classmethod
    def from_directory(cls, path: str | Path) -> ModelSpec:
        """Read config.json in a model directory; the weights are not opened. ModelFilesError without a usable one."""
        file = Path(path) / "config.json"
        try:
            config = json.loads(file.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            where = "is no directory" if not Path(path).is_dir() else "has no config.json"
            raise ModelFilesError(f"{path} {where}; give a directory in Hugging Face format") from None
        except OSError as exc:
            raise ModelFilesError(f"{file} cannot be read: {exc.strerror or exc}") from None
        except (ValueError, RecursionError) as exc:  # ValueError: bad JSON or bad UTF-8
            raise ModelFilesError(f"{file} is not JSON: {exc}") from None
        if not isinstance(config, dict):
            raise ModelFilesError(f"{file} does not hold a JSON object")
        return cls.from_config(config)

    @property
    def generates(self) -> bool:
        """Whether its head predicts the next token of a text."""
        return self.architecture.endswith(("LMHeadModel", "ForCausalLM"))

    @property
    def head_reads(self) -> Literal["first", "last", "all"]:
        """Which rows of the last block its head needs: the first (CLS), the last token's, or every one."""
        if self.architecture in _READ_FIRST:
            return "first"
        return "last" if self.is_causal and self.architecture.endswith("ForSequenceClassification") else "all"

    @property
    def num_rows_read(self) -> int:
        """How many, where these are not all: DeiT with a teacher reads its distillation token beside CLS."""
        return 2 if self.architecture == "DeiTForImageClassificationWithTeacher" else 1

    @property
    def head_averages(self) -> bool:
        """Whether its head reads the mean of the patches, so that of all these rows one sum travels (DINOv2)."""
        return self.architecture == "Dinov2ForImageClassification"

    @property
    def is_vision(self) -> bool:
        """Whether the input is an image."""
        return self.fixed_tokens is not None

    @property
    def usual_tokens(self) -> int:
        """What is assumed of a request of which nothing is known: a whole picture, or a short text."""
        return self.fixed_tokens or min(TEXT_TOKENS, self.max_tokens)

    @property
    def patch_embedding_macs(self) -> int:
        """Multiply-accumulates that embed one image of the size in config.json; 0 for text, which only looks up."""
        return self.embedding_macs(self.fixed_tokens or 0)

    def embedding_macs(self, num_tokens: int) -> int:
        """Multiply-accumulates that embed one sample of ``num_tokens`` tokens: one convolution over its patches."""
        if not self.is_vision:
            return 0
        return (num_tokens - self.special_tokens) * self.values_per_patch * self.hidden_size

    def input_values(self, num_tokens: int) -> int:
        """Raw values of one sample: the pixels of an image, or the ids of a text."""
        if not self.is_vision:
            return num_tokens
        return (num_tokens - self.special_tokens) * self.values_per_patch

    @property
    def values_per_patch(self) -> int:
        """Pixel values of one patch; 0 for text."""
        height_px, width_px = self.patch_size_px
        return height_px * width_px * self.num_channels

    def check_num_tokens(self, num_tokens: int) -> None:
        """PlanError unless the model takes samples of this many tokens."""
        if self.fixed_tokens is None:
            if not 1 <= num_tokens <= self.max_tokens:
                raise PlanError(f"{self.architecture} takes 1 to {self.max_tokens} tokens, not {num_tokens}")
        elif self.resizes_images:
            if not self.special_tokens < num_tokens < 2**31:
                raise PlanError(f"{self.architecture} makes {self.special_tokens + 1} tokens or more, not {num_tokens}")
        elif num_tokens != self.fixed_tokens:
            raise PlanError(f"{self.architecture} makes {self.fixed_tokens} tokens of every image, not {num_tokens}")

    def to_json(self) -> dict[str, Any]:
        """A dict of plain JSON values that ``from_json`` reads back."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {"schema_version": SCHEMA_VERSION, **values, "patch_size_px": list(self.patch_size_px)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> ModelSpec:
        """Read what ``to_json`` wrote; ModelFilesError on another version or unknown fields."""
        values = dict(document)
        version = values.pop("schema_version", None)
        if version != SCHEMA_VERSION:
            raise ModelFilesError(f"model with schema_version {version!r}; this edgeprism reads {SCHEMA_VERSION}")
        try:
            return cls(**{**values, "patch_size_px": tuple(values.get("patch_size_px", (0, 0)))})
        except TypeError as exc:
            raise ModelFilesError(f"model description with wrong fields: {exc}") from None


def element_bytes_of(dtype: str) -> int:
    """Bytes of one element of a dtype by name; PlanError names those that a model can compute in."""
    if dtype not in DTYPE_BYTES:
        raise PlanError(f"unknown dtype {dtype!r}; use one of {_names()}")
    return DTYPE_BYTES[dtype]


def _names() -> str:
    return ", ".join(DTYPE_BYTES)
