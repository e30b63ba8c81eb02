"""How long do 350 MB of weights take to a worker that lacks them, over a link of 200 Mbit/s, and after a break?

The time of the streaming, from its first byte to its last, is compared with the least that TCP needs for so many bytes
on such a link (``lab.buckets.wire_s``); beside it stands the time from the order (`edgeprism.load`, all that it does
included) until the worker holds the model, which also hashes, loads and measures. Then once more to a board
whose link is pulled at 30 % for longer than the heartbeats wait, and plugged in again. Bytes are those that the board
has received, headers included.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

import edgeprism
from benchmarks.boards import Boards, needed
from benchmarks.report import arguments, record
from edgeprism.lab.buckets import FRAME_BYTES, SEGMENT_BYTES, wire_s
from edgeprism.models.load import load_pretrained
from edgeprism.models.manifest import fingerprint
from edgeprism.runtime.weights import CHUNK_BYTES, WINDOW, WeightFiles

RATE_MBIT = 200.0
REACH = 1.10  # of the wire's time
REPEATS = 3  # the median is quoted
BREAK_AT, BREAK_S = 0.3, 5.0  # heartbeats give a peer up after 3 s
MORE_CHUNKS = 2 * WINDOW  # what a break may cost: those that were asked for, and as many that were under way again
HOLD_TIMEOUT_S = 120.0
SMOKE = {"hidden_size": 144, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 576}
WIRE = FRAME_BYTES / SEGMENT_BYTES
MOMENT_BYTES = 65536  # heartbeats and greetings are less


def main() -> None:
    """Measures both and writes benchmarks/results/weights.json."""
    smoke = arguments(__doc__).parse_args().smoke
    with needed("weights", smoke=smoke), tempfile.TemporaryDirectory(prefix="edgeprism-") as folder:
        directory = Path(folder, "vit")
        save_model(directory, smoke)
        wholes = [stream(directory, breaks=False) for _ in range(1 if smoke else REPEATS)]
        whole = sorted(wholes, key=lambda one: one["held_s"])[len(wholes) // 2]
        broken = stream(directory, breaks=True)
        figures = {"whole": whole, "all_held_s": [one["held_s"] for one in wholes], "broken_once": broken}
        figures["alone"] = alone(directory)
    settings = {"model": "3 MB" if smoke else "ViT-B/16, float32, random", "rate_mbit": RATE_MBIT, "break_s": BREAK_S}
    settings |= {"chunk_bytes": CHUNK_BYTES, "window_chunks": WINDOW, "bytes_a_byte_of_weights": WIRE}
    settings |= {"boards": "network namespaces of one machine, one core each"}
    record("weights", figures, settings, smoke)
    print(report(figures))
    if not smoke and not (whole["met"] and broken["met"]):
        sys.exit(1)


def save_model(directory: Path, smoke: bool) -> None:
    """Random weights: the time to send them does not depend on them."""
    torch.manual_seed(0)
    config = transformers.ViTConfig(num_labels=1000, **(SMOKE if smoke else {}))
    transformers.ViTForImageClassification(config).save_pretrained(directory)


def stream(directory: Path, *, breaks: bool) -> dict[str, Any]:
    """Sends the model to a board that has never seen it."""
    num_bytes = WeightFiles(directory).num_bytes
    with Boards(["pi1"], rate_mbit=RATE_MBIT) as boards:
        boards.start()
        with edgeprism.Cluster.from_file(boards.cluster_file, require_all=True) as cluster:
            watch = Watch(boards, num_bytes, breaks)
            watch.start()
            began = time.monotonic()
            with edgeprism.load(str(directory), cluster=cluster, plan="sequence") as engine:
                while engine.devices != (0, 1):
                    if time.monotonic() - began > HOLD_TIMEOUT_S:
                        sys.exit(f"weights: the worker does not hold the model; it said: {boards.all[0].said()}")
                held_s = time.monotonic() - began
            watch.end()
    return watch.figures(began, held_s, breaks)


class Watch(threading.Thread):
    """Reads the wire's counter every 10 ms, and breaks the link once where it should."""

    def __init__(self, boards: Boards, num_bytes: int, breaks: bool) -> None:
        super().__init__(daemon=True)
        self._boards, self._num_bytes, self._breaks = boards, num_bytes, breaks
        self._ended = threading.Event()
        self._samples: list[tuple[float, int]] = []

    def run(self) -> None:
        """Until ``end``."""
        (board,) = self._boards.all
        before = board.bytes_to()
        while not self._ended.wait(0.01):
            sent = board.bytes_to() - before
            self._samples.append((time.monotonic(), sent))
            if self._breaks and sent >= BREAK_AT * WIRE * self._num_bytes:
                self._breaks = False
                board.set_link(up=False)
                time.sleep(BREAK_S)
                board.set_link(up=True)

    def end(self) -> None:
        """No more."""
        self._ended.set()
        self.join()

    def figures(self, began: float, held_s: float, breaks: bool) -> dict[str, Any]:
        """What is quoted: seconds since ``began``, and bytes."""
        sent = self._samples[-1][1]
        first = next(at for at, count in self._samples if count > MOMENT_BYTES)
        last = next(at for at, count in self._samples if count > sent - MOMENT_BYTES)
        bound_s = wire_s(self._num_bytes, RATE_MBIT)
        common = {
            "weights_bytes": self._num_bytes,
            "sent_bytes": sent,
            "least_bytes": round(WIRE * self._num_bytes),
            "wire_s": round(bound_s, 3),
            "held_s": round(held_s, 3),
            "before_the_first_byte_s": round(first - began, 3),
            "streaming_s": round(last - first, 3),
            "after_the_last_byte_s": round(began + held_s - last, 3),
        }
        if breaks:
            at_most = round(WIRE * (self._num_bytes + MORE_CHUNKS * CHUNK_BYTES))
            return {**common, "at_most_bytes": at_most, "met": sent <= at_most}
        of_wire = {"of_wire": round((last - first) / bound_s, 4), "held_of_wire": round(held_s / bound_s, 4)}
        return {**common, **of_wire, "at_most": REACH, "met": last - first <= REACH * bound_s}


def alone(directory: Path) -> dict[str, float]:
    """Seconds of what happens before and after the streaming, on one core that has nothing else to do."""
    parts: dict[str, Callable[[], object]] = {
        "hash_s": lambda: fingerprint(directory),
        "load_s": lambda: load_pretrained(str(directory)),
    }
    seconds = {}
    for name, part in parts.items():
        began = time.monotonic()
        part()
        seconds[name] = round(time.monotonic() - began, 3)
    return seconds


def report(figures: dict[str, Any]) -> str:
    """For people."""
    whole, broken, parts = figures["whole"], figures["broken_once"], figures["alone"]
    return "\n".join(
        (
            f"{whole['weights_bytes'] / 1e6:.1f} MB at {RATE_MBIT:g} Mbit/s: {whole['of_wire']:.3f} of the wire's "
            f"{whole['wire_s']:.2f} s (at most {REACH:.2f}); held after {whole['held_s']:.2f} s",
            f"  {whole['before_the_first_byte_s']:.2f} s before the first byte, {whole['streaming_s']:.2f} s of bytes, "
            f"{whole['after_the_last_byte_s']:.2f} s after the last one",
            f"  alone, hashing takes {parts['hash_s']:.2f} s and loading {parts['load_s']:.2f} s",
            f"broken once for {BREAK_S:g} s: held after {broken['held_s']:.2f} s, {broken['sent_bytes'] / 1e6:.1f} MB "
            f"sent, of {broken['least_bytes'] / 1e6:.1f} MB that it takes unbroken "
            f"(at most {broken['at_most_bytes'] / 1e6:.1f})",
        )
    )


if __name__ == "__main__":
    main()
