"""`edgeprism lab`: a cluster of emulated devices on one Linux machine. Root only."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from edgeprism.cli import lab_options
from edgeprism.errors import InputError, LabError

if TYPE_CHECKING:
    from edgeprism.lab.check import Report
    from edgeprism.lab.lab import Lab
    from edgeprism.lab.state import State

START_TIMEOUT_S, STOP_TIMEOUT_S = 300.0, 30.0
CLUSTER_VARIABLE = "EDGEPRISM_CLUSTER"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command's arguments."""
    parser = subparsers.add_parser(
        "lab",
        help="emulate a cluster on this machine (root only)",
        description="Devices that are network namespaces of this machine, with links of a set rate and delay, and "
        "parts of its cores. Nothing of it is left when it is down. Root only.",
    )
    actions = parser.add_subparsers(title="actions", dest="action", metavar="ACTION", required=True)
    up = actions.add_parser("up", help="start one, which stays up until `lab down`")
    lab_options.add_arguments(up)
    up.add_argument("--foreground", action="store_true", help="stay in the foreground, until Ctrl-C")
    run = actions.add_parser("run", help="start one with workers, run COMMAND on device 0, and take it down")
    lab_options.add_arguments(run)
    run.add_argument(
        "argv",
        nargs="+",
        metavar="COMMAND",
        help=f"after --; {{cluster}} in it, and {CLUSTER_VARIABLE} in its environment, is the cluster file",
    )
    change = actions.add_parser("set", help="change rate or delay while it is up")
    change.add_argument("--rate", metavar="MBIT", help="Mbit/s of frames, or none")
    change.add_argument("--delay", type=float, metavar="MS", help="of what the device sends")
    change.add_argument("--device", type=int, metavar="N", help="of this device only (default: all)")
    link = actions.add_parser("link", help="pull a device's cable, or plug it in")
    link.add_argument("state", choices=("up", "down"))
    link.add_argument("--device", type=int, required=True, metavar="N", help="whose")
    replay = actions.add_parser("replay", help="change rates and delays as a trace says; returns after its last step")
    replay.add_argument("trace", type=Path, metavar="FILE", help="CSV or JSON: seconds, Mbit/s[, ms]")
    for name, text in (("check", "measure rates, delays and speeds"), ("status", "what is up")):
        action = actions.add_parser(name, help=text)
        action.add_argument("--json", action="store_true", help="print one JSON document")
    actions.add_parser("down", help="take it down")


def execute(args: argparse.Namespace) -> int:
    """Do what the action says."""
    from edgeprism.lab.device import choose_frames
    from edgeprism.lab.namespaces import require_root

    if args.action in ("up", "run"):
        choose_frames(lab_options.devices_of(args), args.frames_at_once)  # a wrong command line is said first
        lab_options.staging_of(args.staging)
    require_root()
    actions = {
        "up": _up,
        "run": _run,
        "set": _set,
        "link": _link,
        "replay": _replay,
        "check": _check,
        "status": _status,
        "down": _down,
    }
    return actions[args.action](args)


def _lab_of(args: argparse.Namespace) -> Lab:
    from edgeprism.lab.lab import Lab

    return Lab(
        lab_options.devices_of(args),
        is_shared=args.shared,
        share_cores=args.share_cores,
        staging=lab_options.staging_of(args.staging),
        frames_at_once=args.frames_at_once,
    )


def _up(args: argparse.Namespace) -> int:
    from edgeprism.lab.lab import remove_leftovers
    from edgeprism.lab.state import State, state_files

    remove_leftovers()
    if files := state_files():
        raise InputError(f"a lab is up already ({files[0]}); take it down first: edgeprism lab down")
    if args.foreground:
        return _keep(args)
    _lab_of(args)  # refuses here what the other process would refuse
    command = [sys.executable, "-m", "edgeprism", *sys.argv[1:], "--foreground"]
    with tempfile.TemporaryFile() as words:
        keeper = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=words, stderr=words, start_new_session=True, env=_environment()
        )
        try:
            _wait_until_it_is_up(keeper)
        except BaseException:
            if keeper.poll() is None:
                keeper.terminate()
                keeper.wait()
            raise
        finally:
            words.seek(0)
            sys.stderr.buffer.write(words.read())
    if keeper.poll() is not None:
        return keeper.returncode
    keeper.returncode = 0  # it goes on without us
    print(_describe(State.read(state_files()[0])))
    return 0


def _wait_until_it_is_up(keeper: subprocess.Popen[bytes]) -> None:
    from edgeprism.lab.state import directory_of

    deadline = time.monotonic() + START_TIMEOUT_S
    while keeper.poll() is None and not (directory_of(keeper.pid) / "checked").exists():
        if time.monotonic() > deadline:
            raise LabError("the lab does not come up")
        time.sleep(0.02)


def _keep(args: argparse.Namespace) -> int:
    """A lab until SIGTERM or Ctrl-C."""
    with _lab_of(args) as lab:
        if not args.no_check:
            _checked(lab)
        (lab.directory / "checked").touch()
        while True:
            signal.pause()


def _checked(lab: Lab) -> Report:
    """What was measured; LabError where something is off."""
    report = lab.check()
    try:
        report.require()
    except LabError as exc:
        raise LabError(f"{exc} --no-check starts it all the same") from None
    return report


def _run(args: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="edgeprism-lab-") as folder, _lab_of(args) as lab:
        if not args.no_check:
            _say(_summary(_checked(lab)))
        directory = Path(folder)
        cluster = lab.write_cluster(directory)
        lab.start_workers(directory)
        _say(_describe(lab.state))
        argv = [word.replace("{cluster}", str(cluster)) for word in args.argv]
        environment = {**_environment(), CLUSTER_VARIABLE: str(cluster)}
        process = lab.popen(0, argv, env=environment)
        while True:
            try:
                status: int = process.wait()
                break
            except KeyboardInterrupt:  # it has got it as well, and ends as it likes
                continue
        for device in lab.devices[1:]:
            words = (directory / f"{device.name}.log").read_text(errors="replace")
            if status and words:
                _say(f"{device.name}: {words.strip()}")
    return status if status >= 0 else 128 - status


def _set(args: argparse.Namespace) -> int:
    if args.rate is None and args.delay is None:
        raise InputError("give --rate, --delay, or both")
    rate = None if args.rate is None else lab_options.number("--rate", args.rate)
    lab = _attached()
    if args.rate is not None:
        lab.set_rate(args.device, rate)
        warn_of_bursts(lab.state, rate)
    if args.delay is not None:
        lab.set_delay(args.device, args.delay)
    return 0


def _link(args: argparse.Namespace) -> int:
    _attached().set_link(args.device, up=args.state == "up")
    return 0


def _replay(args: argparse.Namespace) -> int:
    from edgeprism.lab.trace import read_trace

    trace = read_trace(args.trace)
    lab = _attached()
    warn_of_bursts(lab.state, min(step[1] for step in trace))
    lab.replay(trace).join()
    return 0


def warn_of_bursts(state: State, rate_mbit: float | None) -> None:
    """Where messages after a pause will be earlier than a link of that rate would let them be."""
    from edgeprism.lab.buckets import FRAME_BYTES, frames_at_once

    frames, fitting = state.frames_at_once, frames_at_once(rate_mbit)
    if rate_mbit is not None and fitting < frames and not state.is_relayed:
        _say(
            f"links send {frames} frames at once, since the lab started with higher rates, and at {rate_mbit:g} Mbit/s "
            f"a message after a pause is {8e-3 * FRAME_BYTES * (frames - fitting) / rate_mbit:.1f} ms early; for "
            f"such rates start it with --frames-at-once {fitting}"
        )


def _check(args: argparse.Namespace) -> int:
    report = _attached().check()
    if args.json:
        print(json.dumps(report.to_json(), indent=2))
    else:
        for each in report.all:
            print(f"{'OFF ' if each in report.off else 'ok  '} {each}")
        print(_summary(report))
    report.require()
    return 0


def _status(args: argparse.Namespace) -> int:
    lab = _attached()
    if args.json:
        print(json.dumps({**lab.state.to_json(), "relay_cpu_s": lab.relay_cpu_s()}, indent=2))
        return 0
    print(_describe(lab.state))
    if lab.state.relay is not None:
        print(f"the relay has taken {lab.relay_cpu_s():.2f} s of processor time")
    return 0


def _down(args: argparse.Namespace) -> int:
    from edgeprism.lab.lab import remove_leftovers
    from edgeprism.lab.namespaces import is_running
    from edgeprism.lab.state import State, find

    remove_leftovers()
    owner = State.read(find()).owner
    os.kill(owner, signal.SIGTERM)
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while is_running(owner):
        if time.monotonic() > deadline:
            raise LabError(f"process {owner}, which made the lab, does not end")
        time.sleep(0.02)
    return 0


def _attached() -> Lab:
    from edgeprism.lab.lab import Lab

    return Lab.attach()


def _environment() -> dict[str, str]:
    """The same edgeprism as here."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _describe(state: State) -> str:
    lines = []
    for index, (device, core) in enumerate(zip(state.devices, state.cores, strict=True)):
        rate = "no limit" if device.rate_mbit is None else f"{device.rate_mbit:g} Mbit/s"
        parts = [rate + (" (shared)" if state.is_shared else ""), f"{device.delay_ms:g} ms"]
        parts.append(f"speed {device.speed:g} of core {core}")
        parts += [] if device.memory_mb is None else [f"{device.memory_mb} MB"]
        parts += ["link down"] if index in state.down else []
        lines.append(f"{device.name}  {', '.join(parts)}")
    if state.frames_at_once > 1 and not state.is_relayed:
        lines.append(f"links send up to {state.frames_at_once} frames at once")
    if state.staging:
        fixed_s, bytes_per_s = map(float, state.staging.split(","))
        lines.append(f"staging is emulated: {1e3 * fixed_s:.3g} ms + bytes / {bytes_per_s / 1e6:.3g} MB/s a call")
    return "\n".join(lines)


def _summary(report: Report) -> str:
    own_ms = [1e3 * transfer.own_s for transfer in report.transfers]
    text = f"checked {len(report.transfers)} transfers and {len(report.speeds)} speeds, {len(report.off)} off"
    if report.frames_at_once > 1:
        text += f"; links send up to {report.frames_at_once} frames at once"
    if own_ms:
        text += f"; a message of a few bytes takes {min(own_ms):.2f} to {max(own_ms):.2f} ms besides the delay"
    if report.relay_cpu_s:
        text += f"; the relay took {report.relay_cpu_s:.2f} s of processor time in {report.seconds:.1f} s"
    return text
