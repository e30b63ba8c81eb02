"""A stream of requests from several threads to one engine: answers are compared with the local one, requests timed.

Requests wait in the engine's queue until devices are free. What a request *took* runs from when it was first given to
devices until it was answered, and what it *waited* before that; both are its trace's own words, which are held against
the caller's clock.
"""

from __future__ import annotations

import math
import random
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import transformers
from torch import Tensor

import edgeprism

NUM_PICTURES = 6
TOLERANCE = 1e-3  # of logits, where the codec is exact
LOSSY_TOLERANCE = 0.1  # of the smallest distance between the answers of two pictures, where it is not


class Way(NamedTuple):
    """How a request is run, and how many pictures it has."""

    plan: str
    codec: str
    batch: int

    def __str__(self) -> str:
        codec = f" {self.codec}" if self.plan == "sequence" else ""
        return f"{self.plan}{codec}, batch {self.batch}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """One request that was answered. Moments are those of ``time.monotonic``."""

    way: Way
    asked_s: float
    started_s: float
    ended_s: float
    took_s: float
    unaccounted_s: float
    """What the caller waited longer than the trace says."""
    devices: tuple[int, ...]
    failures: tuple[str, ...]
    difference: float
    is_right: bool


class Stream:
    """Requests drawn from ``ways`` by each of ``num_clients`` threads, from ``start`` to ``end``."""

    def __init__(
        self,
        engine: edgeprism.Engine,
        model: transformers.PreTrainedModel,
        ways: Sequence[Way],
        *,
        num_clients: int,
        seed: int,
    ) -> None:
        self.answered: list[Answered] = []
        self.lost: list[str] = []
        """Requests that ended in an exception: its text."""
        self._engine, self._ways = engine, tuple(ways)
        self._pictures = torch.randn(
            NUM_PICTURES, 3, model.config.image_size, model.config.image_size,
            generator=torch.Generator().manual_seed(seed),
        )  # fmt: skip
        with torch.no_grad():
            self._wanted = model(pixel_values=self._pictures).logits
        self.lossy_tolerance = LOSSY_TOLERANCE * smallest_distance(self._wanted)
        assert self.lossy_tolerance > 10 * TOLERANCE, "the answers are too much alike to tell one from another"
        self._choosing = threading.Lock()  # a plan is the engine's, until the request is submitted
        self._ended = threading.Event()
        self._asked_s: dict[int, float] = {}  # by client, since when it waits for its answer
        self._clients = [
            threading.Thread(target=self._ask_on, args=(client, random.Random(seed + client)), daemon=True)
            for client in range(num_clients)
        ]

    def start(self) -> None:
        """Begin to ask."""
        for client in self._clients:
            client.start()

    def end(self, timeout_s: float) -> int:
        """Ask no more; how many clients are without an answer when time is out."""
        self._ended.set()
        deadline = time.monotonic() + timeout_s
        for client in self._clients:
            client.join(max(0.0, deadline - time.monotonic()))
        return sum(client.is_alive() for client in self._clients)

    def longest_wait_s(self) -> float:
        """For how long the client that waits longest has been waiting for its answer."""
        return max((time.monotonic() - asked_s for asked_s in list(self._asked_s.values())), default=0.0)

    def used_after_s(self, device: int, since_s: float) -> float | None:
        """Seconds until the first answer in which a device took part, of the requests begun since then."""
        news = [answer for answer in self.answered[:] if answer.started_s >= since_s]
        return min((answer.ended_s - since_s for answer in news if device in answer.devices), default=None)

    def ask(self, way: Way, first: int) -> Answered:
        """One request with the pictures from ``first`` on."""
        chosen = [(first + index) % NUM_PICTURES for index in range(way.batch)]
        asked_s = time.monotonic()
        with self._choosing:
            self._engine.use(way.plan, way.codec)
            answer = self._engine.submit(pixel_values=self._pictures[chosen])
        output, trace, ended_s = answer.result(), answer.trace, time.monotonic()
        assert trace is not None
        difference = float((output.logits - self._wanted[chosen]).abs().max())
        tolerance = TOLERANCE if way.codec.endswith("exact") else self.lossy_tolerance
        return Answered(
            way=way,
            asked_s=asked_s,
            started_s=ended_s - trace.total_s,
            ended_s=ended_s,
            took_s=trace.total_s,
            unaccounted_s=ended_s - asked_s - trace.queued_s - trace.total_s,
            devices=tuple(device.device for device in trace.devices),
            failures=trace.failures,
            difference=difference,
            is_right=difference <= tolerance,  # a NaN is not
        )

    def _ask_on(self, client: int, drawn: random.Random) -> None:
        while not self._ended.is_set():
            way, first = drawn.choice(self._ways), drawn.randrange(NUM_PICTURES)
            self._asked_s[client] = time.monotonic()
            try:
                self.answered.append(self.ask(way, first))
            except Exception:  # whatever it is, the request is lost, and the campaign counts it
                self.lost.append(f"{way}: {traceback.format_exc()}")
            self._asked_s.pop(client)


def small_vit(smoke: bool = False) -> transformers.PreTrainedModel:
    """A ViT whose weights are drawn so wide that the answers of two pictures are far apart."""
    torch.manual_seed(0)
    width, num_layers = (96, 3) if smoke else (192, 6)
    config = transformers.ViTConfig(
        hidden_size=width, num_hidden_layers=num_layers, num_attention_heads=3, intermediate_size=4 * width,
        initializer_range=0.04 * math.sqrt(768 / width), num_labels=100,
    )  # fmt: skip
    return transformers.ViTForImageClassification(config).eval()


def smallest_distance(answers: Tensor) -> float:
    """Between the logits of any two pictures, by the largest difference."""
    distances = torch.cdist(answers, answers, p=math.inf)
    return float(distances.fill_diagonal_(math.inf).min())


def by_way(answers: Sequence[Answered]) -> dict[Way, list[Answered]]:
    """Sorted into the ways that they were run."""
    sorted_: defaultdict[Way, list[Answered]] = defaultdict(list)
    for answer in answers:
        sorted_[answer.way].append(answer)
    return dict(sorted_)
