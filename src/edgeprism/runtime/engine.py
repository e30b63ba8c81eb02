"""What a user holds: a model on a cluster, called like the transformers model it was made from."""

from __future__ import annotations

import threading
import time
import warnings
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from edgeprism.codecs.calibration import Calibration
from edgeprism.errors import InputError, PlanError
from edgeprism.models.load import directory_of
from edgeprism.models.model import DTYPES
from edgeprism.models.text import CausalLM, check_ids
from edgeprism.runtime.answers import Answer, RequestQueue, WhenFull
from edgeprism.runtime.auto import AutoPlans, AutoSettings
from edgeprism.runtime.auto_stages import Split, split_by_layers
from edgeprism.runtime.calibrations import find
from edgeprism.runtime.cluster import Cluster
from edgeprism.runtime.generation import Generation, greedy_settings, inferred_mask
from edgeprism.runtime.given import adapted, device_of, dtype_of, load_order
from edgeprism.runtime.holders import Holders
from edgeprism.runtime.scheduler import NOT_OURS, Scheduler
from edgeprism.runtime.trace import Trace
from edgeprism.specs.codec import EXACT, CodecSpec
from edgeprism.specs.model import ModelSpec
from edgeprism.specs.plan import STRATEGIES, Plan
from edgeprism.strategies.pipeline.partition import check as check_stages
from edgeprism.wire.transport import Transport

MIN_WARMUPS, MAX_WARMUPS, SETTLED = 3, 10, 1.1

_Given = TypeVar("_Given")


def load(
    model: str | PreTrainedModel,
    *,
    cluster: Cluster | None = None,
    plan: str | Plan = "auto",
    codec: str | CodecSpec = "exact",
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    calibrations: Sequence[str | Path | Calibration] = (),
    auto: AutoSettings | None = None,
    max_pending: int = 64,
    when_full: WhenFull = "block",
    keep_order: bool = False,
) -> Engine:
    """A model, ready to be called. ``model`` is a hub id, a directory in Hugging Face format, or a loaded model.

    ``plan``: "auto", "local", "replica", "sequence", or a ``Plan``. ``codec``: what travels under `sequence`, such as
    "exact", "means:9.9", "kv:int8". ``device``: CUDA by default if a kernel runs there, else the CPU. ``dtype``: of all
    devices, the checkpoint's by default. ``calibrations``: those of all codecs that will be used and need one; by
    default the one of ``codec`` that `edgeprism calibrate` made. ``auto``: how plan "auto" chooses; it needs what
    `edgeprism profile` measured, and without that runs on one device. For ``Engine.submit``: ``max_pending``
    requests may wait, ``when_full`` says what happens to more ("block", "drop_oldest", "reject"), and with
    ``keep_order`` they are answered in the order in which they came. Raises InputError, one line that says what cannot
    be used and what can.
    """
    return Engine(
        model,
        cluster=cluster,
        plan=plan,
        codec=codec,
        device=device,
        dtype=dtype,
        calibrations=calibrations,
        auto=auto,
        max_pending=max_pending,
        when_full=when_full,
        keep_order=keep_order,
    )


class Engine:
    """See ``load``. For any number of threads; the work is done by a thread of the cluster's, and the callers' are left
    as they are."""

    def __init__(
        self,
        model: str | PreTrainedModel,
        *,
        cluster: Cluster | None = None,
        plan: str | Plan = "auto",
        codec: str | CodecSpec = "exact",
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        calibrations: Sequence[str | Path | Calibration] = (),
        auto: AutoSettings | None = None,
        max_pending: int = 64,
        when_full: WhenFull = "block",
        keep_order: bool = False,
    ) -> None:
        self._cluster = Cluster.alone() if cluster is None else cluster
        self._owns_cluster = cluster is None
        self.last_trace: Trace | None = None
        """What the last call did. Of a request that was submitted: the ``trace`` of its future."""
        codec = CodecSpec.parse(codec) if isinstance(codec, str) else codec
        used = plan.codec if isinstance(plan, Plan) else codec
        self._calibrations = find(model, [used], calibrations)
        self._auto = AutoPlans(model, self._cluster, None if dtype is None else str(dtype_of(dtype)))
        self._thread, wake = self._cluster.thread, self._cluster.transport.wake
        self._split: Split | None = None
        if plan == "auto":
            settings = auto or AutoSettings()
            self._split = self._split_of(model, settings, device_of(model, device), dtype_of(dtype))
            if self._split is None:
                self._calibrations = {**self._auto.tables(settings), **self._calibrations}
        self._check_plan(plan, codec)
        self._queue = RequestQueue(max_pending, when_full, keep_order=keep_order, wake=wake)
        try:
            self._thread.call(lambda: self._set_up(model, plan, device_of(model, device), dtype_of(dtype)))
            self.use(plan, codec, auto=auto)
        except BaseException:
            self._queue.close(NOT_OURS)
            if self._owns_cluster:
                self._cluster.close()
            raise
        if self._owns_cluster:
            weakref.finalize(self, self._cluster.close)

    @property
    def is_closed(self) -> bool:
        """Whether it was closed, or its cluster was, or was given to a newer engine."""
        return self._queue.is_closed

    def use(self, plan: str | Plan, codec: str | CodecSpec = "exact", *, auto: AutoSettings | None = None) -> None:
        """Takes another plan for the requests from now on. ``auto``: how "auto" chooses, by default as before; what it
        learnt under the same settings it still knows."""
        plan, codec = self._check_plan(plan, codec)
        note = ""
        if plan == "auto" and self._split is not None:
            plan, codec, note = self._split.plan, EXACT, self._split.note
        if isinstance(plan, Plan) and plan.strategy == "pipeline":
            check_stages(self.spec, plan)
        if self._holders is not None and plan != "pipeline" and not self._holders.fits(plan):
            raise PlanError("devices hold the pieces of their own stages only; make a new engine for another plan")
        self._plan, self._codec, self._note = plan, codec, note
        if plan == "auto":
            self._thread.call(
                lambda: self._scheduler.choose_by(self._auto.adaptive(auto, self._calibrations, self.computes_on))
            )

    def _check_plan(self, plan: str | Plan, codec: str | CodecSpec) -> tuple[str | Plan, CodecSpec]:
        """What can be used of them."""
        codec = CodecSpec.parse(codec) if isinstance(codec, str) else codec
        if isinstance(plan, str) and plan not in ("auto", *STRATEGIES):
            Plan(strategy=plan, shares=(1.0,))  # says which there are
        if isinstance(plan, Plan):
            if plan.num_devices > self._cluster.num_devices:
                raise PlanError(f"the plan has {plan.num_devices} devices, the cluster {self._cluster.num_devices}")
            if codec not in (EXACT, plan.codec):
                raise PlanError(f"the Plan holds codec {plan.codec}, and codec {codec} was given as well; give one")
            codec = plan.codec
        strategy = plan.strategy if isinstance(plan, Plan) else plan
        if codec.needs_calibration and str(codec) not in self._calibrations:
            raise PlanError(
                f"codec {codec} has tables that devices get when they load the model; make a new engine for it"
            )
        if strategy not in ("sequence", "pipeline") and codec != EXACT:
            warnings.warn(f"codec {codec} has no effect under plan {strategy}: nothing is encoded", stacklevel=3)
        return plan, codec

    @property
    def spec(self) -> ModelSpec:
        """The model's geometry."""
        return self._model.spec

    @property
    def plan(self) -> str | Plan:
        """What requests run by: a plan, or the name of a strategy."""
        return self._plan

    @property
    def dtype(self) -> str:
        """What it computes in, by torch's name."""
        return str(self._model.dtype).removeprefix("torch.")

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels of the images that the configuration names."""
        size = self.config.image_size
        return (size, size) if isinstance(size, int) else (size[0], size[1])

    def on_device_thread(self, work: Callable[[Transport], _Given]) -> _Given:
        """What ``work`` gives for the cluster's transport, between requests: for measuring links."""
        return self._thread.call(lambda: work(self._cluster.transport))

    def accepts(self, name: str) -> bool:
        """Whether a call takes an input of that name: tokenizers give more than some models want."""
        return name in self._model.input_names

    @property
    def num_dropped(self) -> int:
        """Requests that were dropped because newer ones came."""
        return self._queue.num_dropped

    @property
    def num_rejected(self) -> int:
        """Requests that were refused because too many waited."""
        return self._queue.num_rejected

    @property
    def config(self) -> Any:
        """The transformers config of the model."""
        return self._model.config

    @property
    def computes_on(self) -> str:
        """The kind of hardware that the coordinator computes on: "cpu" or "cuda"."""
        return self._model.device.type

    @property
    def devices(self) -> tuple[int, ...]:
        """The devices that the next request would use, this process first."""
        self._check_open()
        return self._thread.call(self._scheduler.coordinator.ready)

    def __call__(self, **inputs: Any) -> ModelOutput:
        """One forward pass on the keyword arguments that the transformers model takes; its ModelOutput.

        A device that fails in the middle is named in ``last_trace``, and the output is right all the same.
        """
        self._check_thread()
        answer = self._put(inputs, can_be_dropped=False)
        output = answer.result()
        self.last_trace = answer.trace
        return output

    def submit(self, **inputs: Any) -> Answer:
        """The future of such a call: several may be under way, and under plan `replica` requests of one sample run on
        all devices at once, each on the one expected to finish it first.

        When ``max_pending`` wait already, this waits too, or an older one is dropped, or QueueFull is raised, as
        ``when_full`` says.
        """
        self._check_thread()
        return self._put(inputs, can_be_dropped=True)

    def warmup(self, **inputs: Any) -> Trace:
        """Runs requests like ``inputs`` (without any, one sample of the usual size) until they take no longer than
        before, so that the next one is as fast as any; the trace of the last. Under `replica` several at once, so that
        every device has some."""
        given = inputs or self._example()
        at_once = 2 * self._cluster.num_devices if self._plan == "replica" else 1
        times: list[float] = []
        while len(times) < MIN_WARMUPS or (len(times) < MAX_WARMUPS and times[-1] > SETTLED * min(times)):
            began = time.perf_counter()
            for answer in [self._put(given, can_be_dropped=False) for _ in range(at_once)]:
                answer.result()
                self.last_trace = answer.trace
            times.append(time.perf_counter() - began)
        assert self.last_trace is not None
        return self.last_trace

    def generate(
        self,
        input_ids: Tensor,
        *,
        max_new_tokens: int = 20,
        attention_mask: Tensor | None = None,
        eos_token_id: int | Sequence[int] | None = None,
        pad_token_id: int | None = None,
    ) -> Tensor:
        """Greedy continuation (batch, prompt + new tokens), token for token what transformers' ``generate`` gives.

        The prompt is prefilled over all devices; the last partition's device decodes. With a lossy codec new tokens see
        the last partition and each other as they are, earlier partitions as the codec made them. When a device fails,
        the rest is decoded here, from all tokens as they are, and ``last_trace.failures`` says so.
        """
        if not isinstance(self._model, CausalLM):
            raise InputError(f"{self._model.spec.architecture} does not generate; a causal language model does")
        strategy = self._plan.strategy if isinstance(self._plan, Plan) else self._plan
        if strategy == "replica":
            raise PlanError("plan replica does not generate yet; use local, sequence or pipeline")
        check_ids(input_ids, self._model.vocab_size)
        model = self._model
        settings = greedy_settings(model, max_new_tokens, eos_token_id, pad_token_id)
        mask = inferred_mask(model, input_ids, settings) if attention_mask is None else attention_mask
        self._check_thread()
        abandoned = threading.Event()
        text = Generation(self._scheduler, model, input_ids, mask, settings, abandoned)
        in_stages = strategy == "pipeline" and self._cluster.num_devices > 1

        def run() -> Tensor:
            self._check_open()
            ids, self.last_trace = (text.in_stages if in_stages else text.decode)(self._plan, self._codec, self._note)
            return ids

        try:
            return self._thread.call(run)
        except KeyboardInterrupt:
            abandoned.set()
            raise

    def close(self) -> None:
        """Ends the engine, and its cluster if the engine made it. Closing twice is fine."""
        if self._owns_cluster:
            self._cluster.close()
        else:
            self._queue.close(NOT_OURS)
            self._thread.end_serving(self._scheduler.close)  # the workers live on for the cluster's next engine

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _set_up(
        self, model: str | PreTrainedModel, plan: str | Plan, device: torch.device, dtype: torch.dtype | None
    ) -> None:
        """On device 0's thread: the model, the devices, and the order to load it."""
        cluster = self._cluster
        self._holders = self._holders_of(model, plan if self._split is None else self._split.plan, device, dtype)
        self._model = adapted(model, device, dtype) if self._holders is None else self._holders.own()
        self._scheduler = Scheduler(
            cluster.transport, self._model, self._queue, cluster.introductions, cluster.cores, self._calibrations
        )
        self._thread.serve(self._scheduler.step, self._scheduler.close)
        try:
            order, weights = load_order(model, self._model, cluster, self._scheduler.at_end)
            if self._holders is None:
                self._scheduler.coordinator.load_workers(order, weights)
            else:
                self._scheduler.share_out(self._holders, lambda pieces: replace(order, pieces=pieces), weights)
        except BaseException:
            self._thread.end_serving(self._scheduler.close)
            raise

    def _split_of(
        self, model: str | PreTrainedModel, settings: AutoSettings, device: torch.device, dtype: torch.dtype | None
    ) -> Split | None:
        """How `auto` splits a model among devices with memories of their own, where it has to, or where that pays."""
        cluster = self._cluster
        if not isinstance(model, str) or not cluster.introductions or device.type != "cpu":
            return None
        spec = ModelSpec.from_directory(directory_of(model))
        kind, introductions = DTYPES[spec.dtype] if dtype is None else dtype, cluster.introductions
        return self._thread.call(
            lambda: split_by_layers(cluster.transport, introductions, spec, kind, settings.objective)
        )

    def _holders_of(
        self, model: str | PreTrainedModel, plan: str | Plan, device: torch.device, dtype: torch.dtype | None
    ) -> Holders | None:
        """Who holds what under plan pipeline, where devices read their weights themselves; None: everyone the whole
        model."""
        strategy = plan.strategy if isinstance(plan, Plan) else plan
        if strategy != "pipeline" or not isinstance(model, str) or self._cluster.shared_models is not None:
            return None
        return Holders(model, plan, dtype, device, (0, *sorted(self._cluster.transport.connected())))

    def _check_open(self) -> None:
        if self.is_closed:
            raise InputError(NOT_OURS)

    def _check_thread(self) -> None:
        if self._thread.is_here:
            raise InputError("a callback of a future cannot use the engine; hand over to a thread of your own")

    def _put(self, inputs: dict[str, Any], *, can_be_dropped: bool) -> Answer:
        given = {name: value for name, value in inputs.items() if value is not None}
        answer = Answer(given, self._plan, self._codec, can_be_dropped=can_be_dropped, note=self._note)
        self._queue.put(answer)
        return answer

    def _example(self) -> dict[str, Tensor]:
        """One sample of the size that the configuration names."""
        spec = self.spec
        if not spec.is_vision:
            return {"input_ids": torch.zeros(1, spec.usual_tokens, dtype=torch.int64)}
        return {"pixel_values": torch.zeros(1, spec.num_channels, *self.image_size)}
