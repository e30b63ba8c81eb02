"""Does anybody lose an answer, get a wrong one, or wait too long, while devices die, hang, come back and talk garbage?

Three boards with links of 200 Mbit/s serve four clients at once while 100 faults happen to them, drawn by a seed. A
fourth, whose key is listed, only sends garbage. Every answer is compared with the local one. No request may take longer
than a deadline of max(0.5 s, 3 x what such requests took lately when nobody failed), 0.25 s to find out who is left,
and what the coordinator takes alone (the slowest `local` request of the same batch in the same campaign). Boards share
two cores with the coordinator: times are those of a loaded machine, for all that is compared.
"""

from __future__ import annotations

import faulthandler
import random
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import edgeprism
from benchmarks.boards import Board, Boards, needed
from benchmarks.faults import ROGUE, STRANGER, Fault, Faults, Journal, start_rogue, to_json
from benchmarks.report import arguments, record
from benchmarks.stream import LOSSY_TOLERANCE, TOLERANCE, Answered, Stream, Way, by_way, small_vit

BOARDS = ("pi1", "pi2", "pi3")
RATE_MBIT = 200.0
WAYS = (
    Way("sequence", "exact", 1),
    Way("sequence", "exact", 4),
    Way("sequence", "kv:int8", 1),
    Way("sequence", "kv:int8", 4),
    Way("replica", "exact", 1),
    Way("replica", "exact", 4),
    Way("local", "exact", 1),
    Way("local", "exact", 4),
)
NUM_CLIENTS = 4
SEED = 0
FLOOR_S, FACTOR, RECOVER_S = 0.5, 3.0, 0.25
NEW_WEIGHT = 0.3  # of the newest undisturbed request in what the next one is expected to take
REACH_BACK_S = 10.0
GIVE_UP_BACK_S = 30.0
HUNG_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much of everything. ``faults``: how many of each kind."""

    num_boards: int
    num_calm: int
    num_requests: int
    faults: dict[str, int]
    hold_s: tuple[float, float]
    pause_s: tuple[float, float]


WHOLE = Size(
    num_boards=3,
    num_calm=120,
    num_requests=1000,
    faults={
        "killed": 18,
        "stopped": 20,
        "restarted": 14,
        "link pulled": 22,
        "garbage bytes": 7,
        "stranger": 6,
        "malformed frames": 7,
        "oversized frames": 6,
    },
    hold_s=(0.3, 6.0),
    pause_s=(0.5, 3.0),
)
SMOKE = Size(
    num_boards=2,
    num_calm=16,
    num_requests=40,
    faults=dict.fromkeys(WHOLE.faults, 1),
    hold_s=(0.3, 1.5),
    pause_s=(0.0, 0.2),
)


def main() -> None:
    """Runs it and writes benchmarks/results/campaign.json; exit 1 where something was not reached."""
    smoke = arguments(__doc__).parse_args().smoke
    size = SMOKE if smoke else WHOLE
    with needed("campaign", smoke=smoke):
        figures = run(size, smoke)
    settings = {
        "boards": "network namespaces of one machine, two cores for all",
        "rate_mbit": RATE_MBIT,
        "clients": NUM_CLIENTS,
        "seed": SEED,
        "model": "ViT, 197 tokens, " + ("96 wide, 3 blocks" if smoke else "192 wide, 6 blocks"),
        "tolerance": {"exact": TOLERANCE, "lossy, of the smallest distance between two answers": LOSSY_TOLERANCE},
        "hold_s": size.hold_s,
    }
    record("campaign", figures, settings, smoke)
    print(summary(figures))
    if not figures["met"] and not (smoke and figures["all_answered"]):  # a smoke run says nothing about times
        sys.exit(1)


def run(size: Size, smoke: bool) -> dict[str, Any]:
    """The whole campaign."""
    journal = Journal()
    names = BOARDS[: size.num_boards]
    with Boards([*names, ROGUE], rate_mbit=RATE_MBIT, others=[STRANGER]) as boards:
        rogue = start_rogue(boards)  # it starts while the others do
        boards.start(names)
        rogue.wait_until_it_listens()
        model = small_vit(smoke)
        model.save_pretrained(boards.folder / "vit")
        journal.begin()
        with (
            edgeprism.Cluster.from_file(boards.cluster_file, require_all=True) as cluster,
            edgeprism.load(str(boards.folder / "vit"), cluster=cluster) as engine,
        ):
            stream = Stream(engine, model, WAYS, num_clients=NUM_CLIENTS, seed=SEED)
            campaign = Campaign(boards, stream, journal, size)
            campaign.run()
            return campaign.figures()


class Campaign:
    """Faults by one thread a board, while the stream goes on."""

    def __init__(self, boards: Boards, stream: Stream, journal: Journal, size: Size) -> None:
        self._boards, self._stream, self._journal, self._size = boards, stream, journal, size
        self._faults = Faults(boards, random.Random(SEED), size.hold_s)
        self._kinds: dict[bool, list[str]] = {False: [], True: []}  # by whether it is the rogue that does it
        for kind, count in size.faults.items():
            self._kinds[kind.endswith("frames")] += [kind] * count
        for kinds in self._kinds.values():
            random.Random(SEED).shuffle(kinds)
        self._lock = threading.Lock()
        self._broken: list[str] = []  # what an injector could not do
        self._began_s = self._calm_until_s = self._ended_s = 0.0
        self._num_hung = 0

    def run(self) -> None:
        """Calm, then faults, then until enough was asked and everybody is back."""
        self._began_s = time.monotonic()
        self._stream.start()
        while len(self._stream.answered) < self._size.num_calm:
            self._check()
        self._calm_until_s = time.monotonic()
        injectors = [threading.Thread(target=self._inject, args=(board,), daemon=True) for board in self._boards.all]
        for injector in injectors:
            injector.start()
        while any(map(threading.Thread.is_alive, injectors)) or len(self._stream.answered) < self._size.num_requests:
            self._check()
        self._num_hung = self._stream.end(HUNG_S)
        self._ended_s = time.monotonic()

    def _check(self) -> None:
        """Ends everything when an answer does not come: there is nothing more to be learnt but where it hangs."""
        time.sleep(0.05)
        if self._stream.longest_wait_s() > HUNG_S:
            faulthandler.dump_traceback()
            print(*(line for _, line in self._journal.lines[-30:]), sep="\n", file=sys.stderr)
            sys.exit(f"campaign: hung: a request has had no answer for {HUNG_S:g} s")
        if len(self._stream.answered) % 50 == 0:
            print(f"\r{len(self._stream.answered)} requests, {len(self._faults.done)} faults", end="", file=sys.stderr)

    def _inject(self, board: Board) -> None:
        is_rogue = board.name == ROGUE
        drawn = random.Random(f"{SEED} {board.name}")
        while True:
            with self._lock:
                if not self._kinds[is_rogue]:
                    return
                kind = self._kinds[is_rogue].pop()
            time.sleep(drawn.uniform(*self._size.pause_s))
            try:
                fault = self._faults.do(kind, board)
            except Exception as exc:
                self._broken.append(f"{kind} {board.name}: {exc!r}")
                raise
            deadline = time.monotonic() + GIVE_UP_BACK_S
            while not is_rogue and fault.back_in_use_s is None and time.monotonic() < deadline:
                time.sleep(0.05)
                fault.back_in_use_s = self._stream.used_after_s(fault.device, fault.returned_s)

    def figures(self) -> dict[str, Any]:
        """What is quoted."""
        answered = sorted(self._stream.answered, key=lambda answer: answer.started_s)
        calm = [answer for answer in answered if answer.ended_s <= self._calm_until_s]
        rule = Rule(answered, calm)
        slowest = max(answered, key=lambda answer: answer.took_s - rule.allowed_s(answer))
        wrong = [f"{answer.way}: {answer.difference:.2e} off" for answer in answered if not answer.is_right]
        boards = [fault for fault in self._faults.done if fault.board != ROGUE]
        late = [fault for fault in boards if fault.back_in_use_s is None or fault.back_in_use_s > REACH_BACK_S]
        over = [answer for answer in answered if answer.took_s > rule.allowed_s(answer)]
        is_answered = not (self._stream.lost or wrong or self._num_hung or self._broken)
        return {
            "requests": len(answered) + len(self._stream.lost),
            "calm_requests": len(calm),
            "with_failures": sum(bool(answer.failures) for answer in answered),
            "alone_for_want_of_others": sum(a.devices == (0,) and a.way.plan == "sequence" for a in answered),
            "seconds": round(self._ended_s - self._began_s, 1),
            "num_faults": len(self._faults.done),
            "lost": self._stream.lost,
            "wrong": wrong,
            "hung": self._num_hung,
            "not_back_in_time": [f"{fault.kind} {fault.board}" for fault in late],
            "faults_that_could_not_be_done": self._broken,
            "closest_to_the_rule": self._told(slowest, rule),
            "over_the_rule": [self._told(answer, rule) for answer in over],
            "slowest": [self._told(answer, rule) for answer in sorted(answered, key=lambda a: -a.took_s)[:10]],
            "longest_wait_for_devices_s": round(max(a.started_s - a.asked_s for a in answered), 3),
            "largest_unaccounted_s": round(max(answer.unaccounted_s for answer in answered), 3),
            "largest_exact_difference": max(a.difference for a in answered if a.way.codec == "exact"),
            "largest_lossy_difference": max((a.difference for a in answered if a.way.codec != "exact"), default=0.0),
            "lossy_tolerance": round(self._stream.lossy_tolerance, 4),
            "slowest_back_in_use_s": max((fault.back_in_use_s or GIVE_UP_BACK_S for fault in boards), default=0.0),
            "by_way": {str(way): figures_of(mine, rule) for way, mine in by_way(answered).items()},
            "histogram": histogram(answered),
            "faults": [to_json(fault, self._began_s, self._observed(fault, answered)) for fault in self._faults.done],
            "all_answered": is_answered,
            "met": is_answered and not over and not late,
        }

    def _observed(self, fault: Fault, answered: Sequence[Answered]) -> list[str]:
        """What requests and the coordinator's log said about the device, from the fault until it was used again."""
        until_s = fault.returned_s + (fault.back_in_use_s or REACH_BACK_S)
        name = f"device {fault.device}"
        mine = [answer for answer in answered if answer.ended_s >= fault.begun_s and answer.started_s <= until_s]
        failures = [f"a request: {text}" for answer in mine for text in answer.failures if name in text]
        return list(dict.fromkeys(failures + self._journal.since(fault.begun_s, until_s, name)))

    def _told(self, answer: Answered, rule: Rule) -> dict[str, Any]:
        return {
            "way": str(answer.way),
            "at_s": round(answer.started_s - self._began_s, 2),
            "took_s": round(answer.took_s, 3),
            "allowed_s": round(rule.allowed_s(answer), 3),
            "expected_s": round(rule.expected_s(answer), 3),
            "failures": answer.failures,
        }


class Rule:
    """How long a request may take."""

    def __init__(self, answered: Sequence[Answered], calm: Sequence[Answered]) -> None:
        self._calm_s = {way: statistics.median(a.took_s for a in mine) for way, mine in by_way(calm).items()}
        with_others = [answer for answer in answered if answer.devices != (0,) or answer.way.plan == "local"]
        self._undisturbed = by_way([answer for answer in with_others if not answer.failures])
        self.alone_s: dict[int, float] = {}
        """The slowest `local` request, by batch."""
        for answer in answered:
            if answer.way.plan == "local":
                batch = answer.way.batch
                self.alone_s[batch] = max(answer.took_s, self.alone_s.get(batch, 0.0))

    def expected_s(self, answer: Answered) -> float:
        """What such requests took before this one, undisturbed; the last ones count most."""
        expected_s = self._calm_s.get(answer.way, 0.0)
        for before in self._undisturbed.get(answer.way, ()):
            if before.ended_s <= answer.started_s:
                expected_s += NEW_WEIGHT * (before.took_s - expected_s)
        return expected_s

    def allowed_s(self, answer: Answered) -> float:
        """The deadline, finding out who is left, and the coordinator's own time."""
        return max(FLOOR_S, FACTOR * self.expected_s(answer)) + RECOVER_S + self.alone_s.get(answer.way.batch, 0.0)


def figures_of(mine: Sequence[Answered], rule: Rule) -> dict[str, Any]:
    """Seconds of one way to run a request."""
    took_s = sorted(answer.took_s for answer in mine)
    return {
        "requests": len(mine),
        "median_s": round(statistics.median(took_s), 4),
        "p95_s": round(took_s[int(0.95 * (len(took_s) - 1))], 4),
        "slowest_s": round(took_s[-1], 4),
        "slowest_local_s": round(rule.alone_s.get(mine[0].way.batch, 0.0), 4),
    }


def histogram(answered: Sequence[Answered]) -> list[dict[str, Any]]:
    """How many requests took up to so many milliseconds; each bin is 1.41 times as wide as the one before."""
    edges_ms = [10 * 2 ** (step / 2) for step in range(24)]
    counts = [0] * len(edges_ms)
    for answer in answered:
        counts[next((i for i, edge in enumerate(edges_ms) if 1e3 * answer.took_s <= edge), len(edges_ms) - 1)] += 1
    last = max((index for index, count in enumerate(counts) if count), default=-1)
    bins = zip(edges_ms[: last + 1], counts[: last + 1], strict=True)
    return [{"up_to_ms": round(edge, 1), "requests": count} for edge, count in bins]


def summary(figures: dict[str, Any]) -> str:
    """For people."""
    lines = [
        f"{figures['requests']} requests in {figures['seconds']:.0f} s, {figures['num_faults']} faults: "
        f"{len(figures['lost'])} lost, {len(figures['wrong'])} wrong, {figures['hung']} hung",
        f"{figures['with_failures']} requests met a failure; {len(figures['over_the_rule'])} took longer than allowed; "
        f"every device back in use within {figures['slowest_back_in_use_s']:.1f} s (at most {REACH_BACK_S:g})",
    ]
    told_of = [("closest to the rule", figures["closest_to_the_rule"])]
    told_of += [("slowest", told) for told in figures["slowest"][:3]]
    told_of += [("longer than allowed", told) for told in figures["over_the_rule"][:5]]
    for title, told in told_of:
        took = f"{told['took_s']:.2f} s (expected {told['expected_s']:.2f}, allowed {told['allowed_s']:.2f})"
        lines.append(f"{title:>20}: {told['way']}, {took} {'; '.join(told['failures'])}")
    lines += [f"lost: {text}" for text in figures["lost"][:3]] + [f"wrong: {text}" for text in figures["wrong"][:3]]
    lines += [f"not back in time: {text}" for text in figures["not_back_in_time"]]
    lines += [f"could not be done: {text}" for text in figures["faults_that_could_not_be_done"]]
    for fault in figures["faults"]:
        back = "" if fault["back_in_use_s"] is None else f"; in use {fault['back_in_use_s']:.1f} s later"
        lines.append(f"{fault['begun_s']:7.1f} s  device {fault['device']} {fault['kind']:<17} {fault['note']}{back}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
