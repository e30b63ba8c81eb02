"""What is done, in plain words, when one board of three is killed, one hangs and one falls off the network?

The boards are network namespaces, each set up by the README's commands. They serve a stream of requests, every answer
compared with the local one, while one is killed and started again, one is stopped and continued, and one has its link
pulled and plugged in, one after the other. Printed is the coordinator's log, and between its lines what was done to the
boards.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import edgeprism
from benchmarks.boards import Boards, needed
from benchmarks.faults import Fault, Faults, Journal
from benchmarks.report import arguments, record
from benchmarks.stream import TOLERANCE, Stream, Way, small_vit

BOARDS = ("pi1", "pi2", "pi3")
RATE_MBIT = 200.0
WAYS = (Way("sequence", "exact", 1), Way("replica", "exact", 4))
NUM_CLIENTS = 2
SEED = 0
FAULTS = (("killed", "pi1"), ("stopped", "pi2"), ("link pulled", "pi3"))
HOLD_S = 4.0  # heartbeats give a peer up after 3 s
SMOKE_HOLD_S = 0.8
CALM_S = 2.0
BACK_S = 30.0  # at most waited for
REACH_BACK_S = 10.0

Event = tuple[float, str, str]  # when, who says it, what


def main() -> None:
    """Runs it, prints the log, and writes benchmarks/results/failing.json; exit 1 where an answer was not right."""
    smoke = arguments(__doc__).parse_args().smoke
    with needed("failing", smoke=smoke):
        figures = run(smoke)
    settings = {
        "boards": "network namespaces of one machine, two cores for all",
        "rate_mbit": RATE_MBIT,
        "clients": NUM_CLIENTS,
        "ways": [str(way) for way in WAYS],
        "hold_s": SMOKE_HOLD_S if smoke else HOLD_S,
        "tolerance": TOLERANCE,
        "model": "ViT, 197 tokens, " + ("96 wide, 3 blocks" if smoke else "192 wide, 6 blocks"),
    }
    record("failing", figures, settings, smoke)
    if not figures["met"]:
        sys.exit(1)


def run(smoke: bool) -> dict[str, Any]:
    """The whole story."""
    journal, hold_s = Journal(), SMOKE_HOLD_S if smoke else HOLD_S
    with Boards(BOARDS, rate_mbit=RATE_MBIT, quietly=False) as boards:
        boards.start()
        model = small_vit(smoke)
        model.save_pretrained(boards.folder / "vit")
        journal.begin()
        with (
            edgeprism.Cluster.from_file(boards.cluster_file, require_all=True) as cluster,
            edgeprism.load(str(boards.folder / "vit"), cluster=cluster) as engine,
        ):
            stream = Stream(engine, model, WAYS, num_clients=NUM_CLIENTS, seed=SEED)
            faults = Faults(boards, random.Random(SEED), (hold_s, hold_s))
            began_s = time.monotonic()
            stream.start()
            time.sleep(CALM_S)
            for kind, name in FAULTS:
                fault = faults.do(kind, boards.by_name[name])
                fault.back_in_use_s = wait_until_used(stream, fault)
                time.sleep(0.0 if smoke else CALM_S)
            num_hung = stream.end(BACK_S)
    events = sorted([*told(faults.done), *((at_s, "log", text) for at_s, text in journal.lines if at_s > began_s)])
    for at_s, who, text in events:
        print(f"{at_s - began_s:7.2f} s  {who:<5}  {text}")
    return figures_of(stream, faults.done, num_hung, began_s, events)


def wait_until_used(stream: Stream, fault: Fault) -> float | None:
    """Seconds from its return until a request used the device."""
    deadline = time.monotonic() + BACK_S
    while time.monotonic() < deadline:
        if (seconds := stream.used_after_s(fault.device, fault.returned_s)) is not None:
            return seconds
        time.sleep(0.02)
    return None


def told(faults: Sequence[Fault]) -> Iterator[Event]:
    """What was done to the boards, as lines between those of the log."""
    for fault in faults:
        yield fault.begun_s, "FAULT", f"{fault.board} (device {fault.device}) is {WORDS[fault.kind][0]}"
        yield fault.returned_s, "FAULT", f"{fault.board} (device {fault.device}) is {WORDS[fault.kind][1]}"


WORDS = {
    "killed": ("killed (SIGKILL)", "started again, and listens"),
    "stopped": ("stopped (SIGSTOP): it hangs", "continued (SIGCONT)"),
    "link pulled": ("cut off: its link is down", "on the network again: its link is up"),
}


def figures_of(
    stream: Stream, faults: Sequence[Fault], num_hung: int, began_s: float, events: Sequence[Event]
) -> dict[str, Any]:
    """What is quoted; printed as well."""
    answered = stream.answered
    wrong = [answer for answer in answered if not answer.is_right]
    slowest = max(answered, key=lambda answer: answer.took_s)
    figures: dict[str, Any] = {
        "requests": len(answered) + len(stream.lost),
        "lost": stream.lost,
        "wrong": len(wrong),
        "hung": num_hung,
        "largest_difference": max(answer.difference for answer in answered),
        "median_s": round(statistics.median(answer.took_s for answer in answered), 4),
        "slowest_s": round(slowest.took_s, 3),
        "slowest_failures": slowest.failures,
        "with_failures": sum(bool(answer.failures) for answer in answered),
        "faults": [
            {
                "kind": fault.kind,
                "board": fault.board,
                "device": fault.device,
                "away_s": round(fault.returned_s - fault.begun_s, 2),
                "back_in_use_s": None if fault.back_in_use_s is None else round(fault.back_in_use_s, 2),
            }
            for fault in faults
        ],
        "timeline": [f"{at_s - began_s:.2f} s {who}: {text}" for at_s, who, text in events],
    }
    is_answered = not (stream.lost or wrong or num_hung)
    are_back = all(fault.back_in_use_s is not None and fault.back_in_use_s <= REACH_BACK_S for fault in faults)
    figures["met"] = is_answered and are_back
    print(
        f"{figures['requests']} requests: {len(stream.lost)} lost, {len(wrong)} wrong, {num_hung} hung; "
        f"median {1e3 * figures['median_s']:.0f} ms, slowest {slowest.took_s:.2f} s"
        + "".join(f" ({text})" for text in slowest.failures[:1])
    )
    for fault in figures["faults"]:
        print(f"  {fault['board']}: {fault['kind']}; in use again {fault['back_in_use_s']} s after its return")
    return figures


if __name__ == "__main__":
    main()
