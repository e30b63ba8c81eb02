"""A transformers model whose forward is what P devices would compute with a codec, with gradients: to train it so.

    model = with_codec(AutoModelForImageClassification.from_pretrained(...), "means:9.9", num_devices=2)
    loss = model(pixel_values=..., labels=...).loss      # any training loop
    without_codec(model).save_pretrained(...)            # the same model, an ordinary one again

Nothing of transformers' code changes. A hook in front of every attention module puts the rows that others would receive
behind the module's own ones (N rows become N + M), so the module computes their keys and values as the devices do; an
attention function, registered under the name "edgeprism", lets each row attend to what its device has
(`partitioned`); a hook behind the module drops what it computed for the M rows. Under a `kv:` codec the attention
function codes the keys and values instead. A family is covered when its attention goes through transformers'
AttentionInterface and its class says which modules those are.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import bidirectional_mask_function, causal_mask_function

from edgeprism.codecs.calibration import Calibration
from edgeprism.errors import InputError, UnsupportedModel
from edgeprism.evaluate.partitioned import Counts, Partitioned
from edgeprism.models.block import merge_heads, split_heads
from edgeprism.specs.codec import CodecSpec
from edgeprism.specs.plan import Plan

IMPLEMENTATION = "edgeprism"
"""What a wrapped model's config calls its attention; transformers does not write it into config.json."""

_ATTRIBUTE = "_edgeprism_wrapping"
AnyModel = TypeVar("AnyModel", bound=PreTrainedModel)


def with_codec(
    model: AnyModel,
    codec: CodecSpec | str,
    num_devices: int,
    shares: Sequence[float] | None = None,
    calibration: Calibration | None = None,
) -> AnyModel:
    """Makes ``model`` compute as ``num_devices`` devices under `sequence` with ``codec``; returns the same object.

    ``shares`` are their fractions of the tokens (even by default); ``calibration`` has the tables of a codec that needs
    some, which training leaves as they are. Inputs of any length and padding work, generation
    with a cache does not. A model that is wrapped already is wrapped anew. PlanError for a codec or shares that do not
    exist, UnsupportedModel for a model whose attention cannot be reached.
    """
    spec = codec if isinstance(codec, CodecSpec) else CodecSpec.parse(codec)
    plan = Plan.even("sequence", num_devices, spec)
    if shares is not None:
        plan = Plan(strategy="sequence", shares=tuple(shares), codec=spec)
    if len(plan.shares) != num_devices:
        raise InputError(f"{len(plan.shares)} shares for {num_devices} devices; give one for each")
    if spec.is_delta and any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        raise InputError(f"codec {spec} predicts from block to block, which gradient checkpointing would run backwards")
    without_codec(model)
    modules = _attention_modules(model)
    wrapping = _Wrapping(spec, plan.shares, calibration, model.config._attn_implementation, _rotary_of(model))
    for block, module in enumerate(modules):
        hooks = _AttentionHooks(wrapping, block, inspect.signature(module.forward), is_causal=bool(module.is_causal))
        wrapping.handles += [
            module.register_forward_pre_hook(hooks.before, with_kwargs=True),
            module.register_forward_hook(hooks.after, with_kwargs=True),
        ]
    model.set_attn_implementation(IMPLEMENTATION)
    assert model.config._attn_implementation == IMPLEMENTATION, "transformers refused, with a warning"
    setattr(model, _ATTRIBUTE, wrapping)
    return model


def without_codec(model: AnyModel) -> AnyModel:
    """Undoes ``with_codec``; the weights stay as they are now. A model that is not wrapped is left alone."""
    wrapping: _Wrapping | None = getattr(model, _ATTRIBUTE, None)
    if wrapping is not None:
        for handle in wrapping.handles:
            handle.remove()
        model.set_attn_implementation(wrapping.former_attention)
        delattr(model, _ATTRIBUTE)
    return model


@dataclass(slots=True)
class _Wrapping:
    """What the hooks of one model share."""

    spec: CodecSpec
    shares: tuple[float, ...]
    calibration: Calibration | None
    former_attention: str
    rotary: nn.Module | None
    handles: list[RemovableHandle] = field(default_factory=list)
    last: tuple[tuple[object, ...], Tensor | None, Partitioned] | None = None

    def tables_on(self, device: torch.device) -> Calibration | None:
        """The model may be moved after it was wrapped."""
        if self.calibration is not None and self.calibration.device != device:
            self.calibration = self.calibration.to(device)
        return self.calibration

    def partitioned(self, rows: Tensor, mask: Tensor | None, is_causal: bool) -> Partitioned:
        """Made once for all blocks of a forward: they are given the same mask."""
        # Tensors made in inference mode cannot take part in training later.
        key = (rows.shape[1], rows.device, is_causal, torch.is_inference_mode_enabled())
        if self.last is None or self.last[0] != key or self.last[1] is not mask:
            made = Partitioned(
                self.spec,
                self.shares,
                self.tables_on(rows.device),
                num_tokens=rows.shape[1],
                mask=mask,
                is_causal=is_causal,
                device=rows.device,
            )
            self.last = (key, mask, made)
        return self.last[2]


@dataclass(frozen=True, slots=True)
class _Call:
    """One call of one attention module, on its way to ``_attend``. ``counts`` are None where it has yet to code."""

    partitioned: Partitioned
    block: int
    counts: Counts | None


class _AttentionHooks:
    """Before and after one attention module."""

    def __init__(self, wrapping: _Wrapping, block: int, signature: inspect.Signature, *, is_causal: bool) -> None:
        self._wrapping, self._block = wrapping, block
        self._signature, self._is_causal = signature, is_causal

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        given = self._named(args, kwargs)
        rows: Tensor = given["hidden_states"]
        mask = given.pop("attention_mask", None)
        _check(rows, mask, given.pop("past_key_values", None))
        partitioned = self._wrapping.partitioned(rows, mask, self._is_causal)
        counts = None
        if self._wrapping.spec.travels == "rows":
            received, counts = partitioned.received(rows, self._block)
            if given.get("position_embeddings") is not None:
                given["position_embeddings"] = self._rotations(partitioned, rows, given.get("position_ids"))
            given["hidden_states"] = torch.cat([rows, received.to(rows.dtype)], dim=1)
        return (), {**given, "attention_mask": None, "edgeprism_call": _Call(partitioned, self._block, counts)}

    def after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        num_tokens = kwargs["edgeprism_call"].partitioned.num_tokens
        return (output[0][:, :num_tokens], *output[1:])

    def _named(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Every argument by its name, however the block gave it."""
        named = dict(self._signature.bind(*args, **kwargs).arguments)
        for name, parameter in self._signature.parameters.items():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                named.update(named.pop(name, {}))
        return named

    def _rotations(self, partitioned: Partitioned, rows: Tensor, position_ids: Tensor | None) -> Any:
        """Cosines and sines of the tokens' positions and, behind them, of the mean positions of the received rows."""
        if self._wrapping.rotary is None:
            raise UnsupportedModel("the attention takes rotary positions, and the model has no module that makes them")
        if position_ids is None:
            position_ids = torch.arange(rows.shape[1], device=rows.device)[None]
        means = _between(position_ids.float(), partitioned.positions(rows))
        own = position_ids.float().expand(means.shape[0], -1)
        return self._wrapping.rotary(rows, position_ids=torch.cat([own, means], dim=1))


def _between(position_ids: Tensor, index: Tensor) -> Tensor:
    """The position ids (1 or batch, N) at fractional token indices (1 or batch, M), linearly between neighbours."""
    batch = max(position_ids.shape[0], index.shape[0])
    position_ids, index = position_ids.expand(batch, -1), index.expand(batch, -1)
    below, above = (position_ids.gather(1, side.long()) for side in (index.floor(), index.ceil()))
    return torch.lerp(below, above, index.frac())


def _check(rows: Tensor, mask: Tensor | None, cache: Any) -> None:
    if mask is not None and mask.ndim != 2:
        raise InputError("a model with a codec takes attention masks of the form (batch, tokens) only")
    if cache is not None and rows.shape[1] == 1:
        raise InputError("a model with a codec has no cache: call it on whole inputs, or generate with use_cache=False")


def _padding_mask(*, mask_function: Any, attention_mask: Tensor | None = None, **_: Any) -> Tensor | None:
    """Hands the mask of the real tokens (batch, tokens) through to the hooks, in place of one for each pair."""
    if mask_function not in (causal_mask_function, bidirectional_mask_function):
        raise InputError("a model with a codec takes one text a row; packed texts and sliding windows do not work")
    return None if attention_mask is None else attention_mask.to(torch.bool, copy=True)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float | int = 0.0,
    edgeprism_call: _Call | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function: queries (batch, heads, rows, width) to context (batch, rows, heads, width)."""
    if edgeprism_call is None:
        raise InputError(f"attention {IMPLEMENTATION!r} works in a model that with_codec() wrapped, and nowhere else")
    partitioned, counts = edgeprism_call.partitioned, edgeprism_call.counts
    if counts is None:
        received, counts = partitioned.received(
            torch.cat([merge_heads(key), merge_heads(value)], dim=-1), edgeprism_call.block
        )
        received_keys, received_values = received.to(key.dtype).chunk(2, dim=-1)
        key = torch.cat([key, split_heads(received_keys, key.shape[1])], dim=2)
        value = torch.cat([value, split_heads(received_values, value.shape[1])], dim=2)
    num_groups = query.shape[1] // key.shape[1]
    if num_groups > 1:
        key, value = (x.repeat_interleave(num_groups, dim=1) for x in (key, value))
    bias = partitioned.bias(counts, query.dtype)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    context = _softmax_attention(query[:, :, : partitioned.num_tokens], key, value, bias, scale, dropout)
    num_unused = query.shape[2] - partitioned.num_tokens  # queries of received rows
    return F.pad(context.transpose(1, 2), (0, 0, 0, 0, 0, num_unused)), None


def _softmax_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float, dropout: float | int) -> Tensor:
    if q.device.type != "cpu" or not q.requires_grad:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout, scale=scale)
    # On a CPU the backward pass of the fused kernel takes up to twice as long as this, in bfloat16.
    weights = ((q * scale) @ k.transpose(2, 3) + bias).softmax(-1)
    return F.dropout(weights, dropout).to(v.dtype) @ v


AttentionInterface.register(IMPLEMENTATION, _attend)
AttentionMaskInterface.register(IMPLEMENTATION, _padding_mask)


def _attention_modules(model: PreTrainedModel) -> list[Any]:
    """The self-attention of every block, as the model's class names it for recording attentions."""
    config, name = model.config, type(model).__name__
    if getattr(config, "is_encoder_decoder", False) or getattr(config, "add_cross_attention", False):
        raise UnsupportedModel(f"{name} has cross-attention; a codec works in encoders or decoders alone")
    if set(getattr(config, "layer_types", None) or ["full_attention"]) != {"full_attention"}:
        raise UnsupportedModel(f"{name} has layers without full attention (config.layer_types); they cannot be divided")
    recorded = (getattr(type(model), "_can_record_outputs", None) or {}).get("attentions")
    kind = getattr(recorded, "target_class", recorded)
    modules = [m for m in model.modules() if kind is not None and isinstance(m, kind)]
    if not modules or not all(hasattr(module, "is_causal") for module in modules):
        raise UnsupportedModel(f"the attention of {name} does not go through transformers' AttentionInterface")
    return modules


def _rotary_of(model: PreTrainedModel) -> nn.Module | None:
    return next((module for module in model.modules() if hasattr(module, "inv_freq")), None)
