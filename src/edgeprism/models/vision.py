"""ViT, DeiT and DINOv2: patches and one or two special tokens, the norm before each half of a block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.models.deit.modeling_deit import DeiTForImageClassificationWithTeacherOutput
from transformers.utils import ModelOutput

from edgeprism.errors import InputError
from edgeprism.models.block import Layer, PreNormBlock, Rows
from edgeprism.models.linear import joined, linear, scaled_linear
from edgeprism.models.mlp import GatedUp, Up
from edgeprism.models.model import Model, Picture, Tokens, only
from edgeprism.models.reads import HeadInput, Reads

MAX_VALUES, MAX_TOKENS = 2**28, 2**17
"""Of a batch of pictures of which strips travel, and of one of its pictures: a device takes memory for all of it."""


class VisionModel(Model):
    """The common part. A subclass names its head, which says which rows it reads."""

    def __init__(self, base: Any, block: Callable[[Any], PreNormBlock]) -> None:
        super().__init__(base)
        self.blocks = [block(layer) for layer in _layers(base)]
        self._embeddings = base.embeddings
        self._norm: Layer = base.layernorm
        self._interpolates = self.config.model_type == "dinov2"
        self._fitting: tuple[tuple[int, ...], bool] | None = None  # the last pictures that did: their shape, and option

    @property
    def input_names(self) -> tuple[str, ...]:
        # DINOv2 always interpolates its positions.
        return ("pixel_values",) if self._interpolates else ("pixel_values", "interpolate_pos_encoding")

    def tokens(self, inputs: dict[str, Any]) -> Tokens:
        given = only(inputs, *self.input_names)
        pixels = given.pop("pixel_values")
        if pixels.ndim != 4 or not pixels.shape[0]:
            raise InputError(f"pixel_values must be (batch, channels, height, width), not {tuple(pixels.shape)}")
        pixels = pixels.to(self.dtype)
        interpolates = bool(given.get("interpolate_pos_encoding"))
        if (kind := (tuple(pixels.shape[1:]), interpolates)) != self._fitting:
            self._embedded(pixels[:0], **given)  # says what does not fit, before anything is handed out
            self._fitting = kind
        num_tokens = self._tokens_of(*pixels.shape[-2:])
        reads = self._reads(num_tokens)
        if pixels.numel() > MAX_VALUES or num_tokens > MAX_TOKENS:
            return Tokens(features={"rows": self._embedded(pixels, **given)}, mask=None, reads=reads)
        picture = Picture(
            pixels=pixels,
            num_tokens=num_tokens,
            special_tokens=self.spec.special_tokens,
            patch_size_px=self.spec.patch_size_px,
            interpolates=interpolates,
        )
        return Tokens(features=picture.strip(0, num_tokens), mask=None, reads=reads, picture=picture)

    def num_tokens(self, inputs: dict[str, Any]) -> int:
        return self._tokens_of(*inputs["pixel_values"].shape[-2:])

    def _tokens_of(self, height: int, width: int) -> int:
        patch_height, patch_width = self.spec.patch_size_px
        return int((height // patch_height) * (width // patch_width) + self.spec.special_tokens)

    def embed(self, features: dict[str, Tensor]) -> Rows:
        """Of a strip: embedded as part of a picture that is blank elsewhere, so that positions are those of the whole.
        InputError for one that is no part of a picture of this model."""
        if "rows" in features:
            return features["rows"]
        strip, place = features["pixel_values"], features["place"].tolist()
        if strip.ndim != 4 or len(place) != 5:
            raise InputError(f"a strip of shape {tuple(strip.shape)} has no place in a picture: {place}")
        (batch, channels, strip_height, width), (top, height, start, stop, interpolates) = strip.shape, place
        fits = 0 <= top < top + strip_height <= height and channels == self.spec.num_channels
        if not fits or batch * channels * height * width > MAX_VALUES:
            raise InputError(f"a strip of shape {tuple(strip.shape)} does not fit at row {top} of {height}")
        if not 0 <= start < stop <= self._tokens_of(height, width) <= MAX_TOKENS:
            raise InputError(f"a picture of {height} x {width} pixels has no tokens {start} to {stop}")
        pixels = strip
        if strip_height < height:
            pixels = strip.new_zeros(batch, channels, height, width)
            pixels[:, :, top : top + strip_height] = strip
        given = {"interpolate_pos_encoding": True} if interpolates and not self._interpolates else {}
        return self._embedded(pixels, **given)[:, start:stop]

    def _embedded(self, pixels: Tensor, **given: Any) -> Rows:
        try:
            rows: Tensor = self._embeddings(pixels.to(self.device, self.dtype), **given)
        except (ValueError, RuntimeError) as exc:  # transformers' and torch's own words for a wrong size
            raise InputError(f"pixel_values of shape {tuple(pixels.shape)} do not fit this model: {exc}") from exc
        return rows

    def finish(self, x: Rows) -> Rows:
        return self._norm(x)

    def _reads(self, num_tokens: int) -> Reads:
        """The rows that the head reads."""
        raise AssertionError("each head says which rows it reads")


class BareVision(VisionModel):
    """ViTModel, DeiTModel, Dinov2Model: every row, and what the model pools."""

    output = BaseModelOutputWithPooling

    def __init__(self, model: Any, block: Callable[[Any], PreNormBlock]) -> None:
        super().__init__(model, block)
        self._pooler: Any = getattr(model, "pooler", None)

    def _reads(self, num_tokens: int) -> Reads:
        return Reads(every_row=True)

    def head(self, joined: HeadInput) -> ModelOutput:
        assert joined.rows is not None
        if self.config.model_type == "dinov2":
            return self.output(last_hidden_state=joined.rows, pooler_output=joined.rows[:, 0])
        pooled = self._pooler(joined.rows) if self._pooler is not None else None
        return self.output(last_hidden_state=joined.rows, pooler_output=pooled)


class ClsClassifier(VisionModel):
    """ViTForImageClassification and DeiTForImageClassification: a linear layer on CLS."""

    output = ImageClassifierOutput

    def __init__(self, model: Any, block: Callable[[Any], PreNormBlock]) -> None:
        super().__init__(getattr(model, model.base_model_prefix), block)
        self._classifier = model.classifier

    def _reads(self, num_tokens: int) -> Reads:
        return Reads(rows=((0,),))

    def head(self, joined: HeadInput) -> ModelOutput:
        assert joined.rows is not None
        return self.output(logits=self._classifier(joined.rows[:, 0]))


class TeacherClassifier(VisionModel):
    """DeiTForImageClassificationWithTeacher: the mean of a classifier on CLS and one on the distillation token."""

    output = DeiTForImageClassificationWithTeacherOutput

    def __init__(self, model: Any, block: Callable[[Any], PreNormBlock]) -> None:
        super().__init__(model.deit, block)
        self._cls, self._distillation = model.cls_classifier, model.distillation_classifier

    def _reads(self, num_tokens: int) -> Reads:
        return Reads(rows=((0, 1),))

    def head(self, joined: HeadInput) -> ModelOutput:
        assert joined.rows is not None
        cls, distillation = self._cls(joined.rows[:, 0]), self._distillation(joined.rows[:, 1])
        return self.output(logits=(cls + distillation) / 2, cls_logits=cls, distillation_logits=distillation)


class MeanClassifier(VisionModel):
    """Dinov2ForImageClassification: a linear layer on CLS beside the mean of the patches."""

    output = ImageClassifierOutput

    def __init__(self, model: Any, block: Callable[[Any], PreNormBlock]) -> None:
        super().__init__(model.dinov2, block)
        self._classifier = model.classifier

    def _reads(self, num_tokens: int) -> Reads:
        return Reads(rows=((0,),), mean_range=(1, num_tokens))

    def head(self, joined: HeadInput) -> ModelOutput:
        assert joined.rows is not None and joined.mean is not None
        features = torch.cat([joined.rows[:, 0], joined.mean.to(joined.rows.dtype)], dim=1)
        return self.output(logits=self._classifier(features))


def vit_block(layer: Any) -> PreNormBlock:
    """A block of ViT or DeiT."""
    attention = layer.attention
    return PreNormBlock(
        num_heads=attention.num_attention_heads,
        scale=attention.scaling,
        query=linear(attention.q_proj),
        key_value=joined(attention.k_proj, attention.v_proj),
        output=linear(attention.o_proj),
        attention_norm=layer.layernorm_before,
        mlp_norm=layer.layernorm_after,
        up=Up(linear(layer.mlp.fc1), layer.mlp.activation_fn),
        down=linear(layer.mlp.fc2),
    )


def dinov2_block(layer: Any) -> PreNormBlock:
    """A block of DINOv2: each half scaled per channel before the residual; the giant model has a gated MLP."""
    attention, mlp = layer.attention, layer.mlp
    gated = hasattr(mlp, "gate_proj")
    up = (
        GatedUp(linear(mlp.gate_proj), linear(mlp.up_proj), F.silu) if gated else Up(linear(mlp.fc1), mlp.activation_fn)
    )
    return PreNormBlock(
        num_heads=attention.num_attention_heads,
        scale=attention.scaling,
        query=linear(attention.q_proj),
        key_value=joined(attention.k_proj, attention.v_proj),
        output=scaled_linear(attention.o_proj, layer.layer_scale1.lambda1),
        attention_norm=layer.norm1,
        mlp_norm=layer.norm2,
        up=up,
        down=scaled_linear(mlp.down_proj if gated else mlp.fc2, layer.layer_scale2.lambda1),
    )


def _layers(base: Any) -> nn.ModuleList:
    """The blocks of a base model: ViT and DeiT hold them, DINOv2 has an encoder that does."""
    return base.layers if hasattr(base, "layers") else base.encoder.layer  # type: ignore[no-any-return]
