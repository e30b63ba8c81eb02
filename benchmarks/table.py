"""The README's one table, made from the JSON files in `results/` and nothing else; misses are shown like the rest.

`--check README.md` exits with 1 where the table between `<!-- table -->` and `<!-- /table -->` is another one,
`--write` replaces it. A figure whose file is not there yet reads "not measured".
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.report import RESULTS
from benchmarks.rows.adaptive import adaptive
from benchmarks.rows.pipeline import pipeline, planner
from benchmarks.rows.row import Row

TABLE = "table"
HEADING = ("what", "reach", "measured", "met")

REACH_ACCURACY = 0.92
WAYS = {
    "local_every_row": "`local` against transformers' own forward, every row read, one core",
    "local": "`local` against transformers' own forward, classification on CLS, one core",
}
"""Ways that are compared with transformers instead of `local`."""


def main() -> int:
    """Prints, checks or writes the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--check", type=Path, metavar="README", help="exit with 1 where the table there is another one")
    action.add_argument("--write", type=Path, metavar="README", help="replace the table there")
    args = parser.parse_args()
    table = markdown(RESULTS)
    if args.check or args.write:
        return put(args.check or args.write, table, write=args.write is not None)
    print(table, end="")
    return 0


def put(page: Path, table: str, *, write: bool, name: str = TABLE) -> int:
    """Compares or replaces what stands between the markers ``name`` of ``page``; the exit status."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    between = re.compile(f"^{begin}\n.*?^{end}$", re.DOTALL | re.MULTILINE)
    text = page.read_text(encoding="utf-8")
    if len(between.findall(text)) != 1:
        print(f"table: {page} needs one pair of lines {begin} and {end}", file=sys.stderr)
        return 1
    wanted = between.sub(lambda _: f"{begin}\n\n{table}\n{end}", text)
    if text == wanted:
        return 0
    if not write:
        print(f"table: {page} differs; run python -m benchmarks.table --write {page}", file=sys.stderr)
        return 1
    partial = page.with_name(f".{page.name}.partial")
    partial.write_text(wanted, encoding="utf-8")
    os.replace(partial, page)
    return 0


def markdown(results: Path) -> str:
    """The whole table, with a newline at its end."""
    lines = [_line(HEADING), _line(["---"] * len(HEADING))]
    for row in rows(results):
        met = "" if row.met is None else "yes" if row.met else "**no**"
        lines.append(_line((row.what, row.reach, row.measured, met)))
    return "\n".join(lines) + "\n"


def rows(results: Path) -> list[Row]:
    """Every line, in the order of the files; a file that is not there gives one line that says so."""
    found: list[Row] = []
    for name, make in SECTIONS.items():
        path = results / f"{name}.json"
        if path.exists():
            found += make(json.loads(path.read_text()))
        else:
            found.append(Row(what=f"`{name}`", reach="", measured="not measured", met=None))
    return found


def accuracy(document: dict[str, Any]) -> list[Row]:
    """The demo model on its test pictures."""
    low, high = document["interval_95"]
    score = document["accuracy"]
    measured = f"{score:.3f} (95 % interval {low:.3f} to {high:.3f}, {document['num_inputs']} pictures)"
    what = "demo model, accuracy on 500 CIFAR-10 test pictures"
    return [Row(what=what, reach=f"≥ {REACH_ACCURACY}", measured=measured, met=score >= REACH_ACCURACY)]


def first_law(document: dict[str, Any]) -> list[Row]:
    """Ours against transformers' own outputs."""
    figures = document["figures"]
    single, half = figures["float32"], figures["bfloat16"]
    what = f"largest difference to transformers, `exact`, float32, {figures['num_models']} models, 1 to 5 devices"
    return [
        Row(
            what=what,
            reach=f"≤ {single['at_most']:.0e}".replace("e-0", "e-"),
            measured=f"{single['largest_difference']:.1e}".replace("e-0", "e-"),
            met=single["met"],
        ),
        Row(
            what="the same, bfloat16: our RMS error over transformers' own, both to float32",
            reach=f"≤ {half['at_most']}",
            measured=f"{half['largest_rms_ratio']:.3f}",
            met=half["met"],
        ),
    ]


def counts(document: dict[str, Any]) -> list[Row]:
    """GFLOP and fractions saved, as the published formula gives them."""
    found = []
    for row in document["figures"]["rows"]:
        names = row["reach"].keys()
        found.append(
            Row(
                what=f"counts, {row['model']}, {row['what']}",
                reach=", ".join(_count(name, row["reach"][name]) for name in names),
                measured=", ".join(_count(name, row["counted"][name]) for name in names) + _printed(row),
                met=row["met"],
            )
        )
    return found


def latency(document: dict[str, Any]) -> list[Row]:
    """The ratios that were to be reached, then the same in bfloat16, for which nothing was stated."""
    figures = document["figures"]
    found = []
    for row in figures["reach"]:
        what, reach = f"{_ratio(row)}, {row['dtype']}", f"≤ {row['at_most']:.2f}"
        measured = f"{row['measured']:.3f}{_milliseconds(figures, row, row['dtype'])}"
        found.append(Row(what=what, reach=reach, measured=measured, met=row["met"]))
    for row in figures["reach"]:
        ratio = figures["bfloat16"][str(row["batch"])][row["way"]][f"of_{row['compared_with']}"]
        measured = f"{ratio:.3f}{_milliseconds(figures, row, 'bfloat16')}"
        found.append(Row(what=f"{_ratio(row)}, bfloat16", reach="reported", measured=measured, met=None))
    return found


def _ratio(row: dict[str, Any]) -> str:
    """What is compared with what."""
    if row["compared_with"].startswith("transformers"):
        return WAYS[row["way"]]
    return f"ViT-B/16, 2 processes, batch {row['batch']}, `{row['way']}` / `local`"


def _milliseconds(figures: dict[str, Any], row: dict[str, Any], dtype: str) -> str:
    """The medians beside a ratio; the ratio itself is the median of pairwise ones."""
    way, base = (figures[dtype][str(row["batch"])][name]["median"] for name in (row["way"], row["compared_with"]))
    return f" ({1e3 * way:.1f} / {1e3 * base:.1f} ms)"


def startup(document: dict[str, Any]) -> list[Row]:
    """How soon the command line and the demo are done."""
    found = []
    for name, row in document["figures"].items():
        if name == "make demo":
            measured = f"{row['first_s']:.1f} s; again {row['again_s']:.1f} s"
            what = "`make demo` after set-up"
        else:
            measured = f"{row['median']:.2f} s, torch {'imported' if row['torch_imported'] else 'not imported'}"
            what = f"`{name}`"
        found.append(Row(what=what, reach=f"< {row['at_most_s']:g} s", measured=measured, met=row["met"]))
    return found


def frames(document: dict[str, Any]) -> list[Row]:
    """A stream of single pictures over two devices."""
    figures = document["figures"]
    rate, first = figures["reach"], figures["first_after_warmup_of_median"]
    two, one = (figures["frames_per_s"][plan]["median"] for plan in ("replica", "local"))
    return [
        Row(
            what="ViT-B/16, a stream of single pictures, `replica` on 2 processes / `local`, frames per second",
            reach=f"≥ {rate['at_least']}",
            measured=f"{rate['measured']:.2f} ({two:.2f} / {one:.2f})",
            met=rate["met"],
        ),
        Row(
            what="the first request after `warmup` / the median of those after it",
            reach=f"≤ {first['at_most']}",
            measured=f"{first['measured']:.2f}",
            met=first["met"],
        ),
    ]


def campaign(document: dict[str, Any]) -> list[Row]:
    """Faults under load."""
    figures = document["figures"]
    measured = (
        f"{len(figures['lost'])} lost, {len(figures['wrong'])} wrong, {figures['hung']} hung, "
        f"{len(figures['over_the_rule'])} over the deadline rule; "
        f"{len(figures['not_back_in_time'])} devices not back within 10 s"
    )
    what = f"{figures['requests']} requests while {figures['num_faults']} faults happen to three boards in namespaces"
    return [Row(what=what, reach="0 of each", measured=measured, met=figures["met"])]


def fuzz(document: dict[str, Any]) -> list[Row]:
    """Frames that nobody should send."""
    figures = document["figures"]
    num_frames, growth_mb = figures["decoder"]["frames"], figures["socket"]["rss_peak_growth_mb"]
    return [
        Row(
            what=f"fuzzed frames: {num_frames:,} into the decoder, {figures['socket']['messages']:,} into a worker",
            reach="no crash, memory bounded",
            measured=f"no crash; the worker grew by {growth_mb:.0f} MB at most",
            met=all(met for part in figures.values() for met in part["met"].values()),
        )
    ]


def steady_memory(document: dict[str, Any]) -> list[Row]:
    """Resident memory of both devices."""
    figures = document["figures"]
    change = max(figures[device]["resident"]["largest_change"] for device in ("coordinator", "worker"))
    what = "resident memory over 10,000 requests"
    return [Row(what=what, reach="flat within 2 %", measured=f"within {change:.2%}", met=figures["met"])]


def weights(document: dict[str, Any]) -> list[Row]:
    """Weights over a shaped link."""
    whole, broken = document["figures"]["whole"], document["figures"]["broken_once"]
    megabytes = whole["weights_bytes"] / 1e6
    return [
        Row(
            what=f"{megabytes:.0f} MB of weights at 200 Mbit/s / the wire's own time",
            reach=f"≤ {whole['at_most']:.2f}",
            measured=f"{whole['of_wire']:.3f} ({whole['streaming_s']:.1f} / {whole['wire_s']:.1f} s; "
            f"held {whole['held_s']:.1f} s after the order)",
            met=whole["met"],
        ),
        Row(
            what="the same, the link broken once: bytes sent",
            reach=f"≤ {broken['at_most_bytes'] / 1e6:.0f} MB",
            measured=f"{broken['sent_bytes'] / 1e6:.0f} MB",
            met=broken["met"],
        ),
    ]


def evaluation(document: dict[str, Any]) -> list[Row]:
    """`edgeprism evaluate`: what it predicts, and how long it takes."""
    figures, settings = document["figures"], document["settings"]
    same, seconds = figures["same_predictions"], figures["command_s"]
    return [
        Row(
            what="`edgeprism evaluate` in one process against two worker processes: same predictions",
            reach=f"{same['needed']} of {same['needed']}",
            measured=f"{same['measured']} (logits within {figures['largest_logit_difference']:.1e})",
            met=same["met"],
        ),
        Row(
            what=f"`edgeprism evaluate`, {settings['pictures_timed']} pictures, one codec, demo model, 2 cores",
            reach=f"≤ {seconds['at_most']:.0f} s",
            measured=f"{seconds['measured']:.0f} s",
            met=seconds["met"],
        ),
    ]


CHOSEN = {8: "delta+rot+int4", 16: "delta+pq:4", 32: "delta+pq:8", 64: "delta+pq:16"}
"""By how many times fewer bytes; chosen on training pictures, before the test sets were scored."""
CHOSEN_FOR_TEXT = "kv:rot+int4"
POINTS = {8: 0.5, 16: 0.7, 32: 2.0, 64: 4.0}
POINTS_FINETUNED = 0.6
REACH_AGREEMENT, REACH_PERPLEXITY = 0.985, 0.03
DATA = {"cifar10": "CIFAR-10 test, demo ViT", "sst2": "SST-2 dev, MiniLM"}


def codecs(document: dict[str, Any]) -> list[Row]:
    """What the chosen codecs cost on two devices, with plain means of about the same bytes beside them."""
    made: list[Row] = []
    for name, words in DATA.items():
        of = {row["codec"]: row for row in _plain_rows(document, name)}
        for times, codec in CHOSEN.items():
            if codec not in of:
                continue
            row, means = of[codec], of.get(f"means:{times}")
            lost = 100 * (row["exact"] - row["value"])
            agrees = times > 8 or row["agreement"] >= REACH_AGREEMENT
            beside = "" if means is None else f"; `means:{times}` {100 * (means['exact'] - means['value']):.1f}"
            made.append(
                Row(
                    what=f"{words}: points lost at 1/{times} of the bytes, 2 devices, `{codec}`",
                    reach=f"≤ {POINTS[times]}" + (", same answer ≥ 98.5 %" if times == 8 else ""),
                    measured=f"{lost:.1f} (same answer {row['agreement']:.1%}, {row['num_inputs']} inputs{beside})",
                    met=lost <= POINTS[times] + 1e-9 and agrees and row["relative_bytes"] <= 1 / times + 1e-9,
                )
            )
    for row in _plain_rows(document, "cifar10"):
        if row["codec"] == "means:9.9":
            made.append(
                Row(
                    what="CIFAR-10 test, demo ViT: points lost by `means:9.9`, not fine-tuned (published: 2.37)",
                    reach="reported",
                    measured=f"{100 * (row['exact'] - row['value']):.1f} ({row['num_inputs']} inputs)",
                    met=None,
                )
            )
    for row, before in zip(_plain_rows(document, "cifar10-finetuned"), _plain_rows(document, "cifar10"), strict=False):
        lost = 100 * (before["exact"] - row["value"])
        made.append(
            Row(
                what="the same after fine-tuning, against the model before it on one device (published: 0.58)",
                reach=f"≤ {POINTS_FINETUNED}",
                measured=f"{lost:.1f} ({row['num_inputs']} inputs)",
                met=lost <= POINTS_FINETUNED + 1e-9,
            )
        )
    for row in _plain_rows(document, "wikitext2"):
        if row["codec"] == CHOSEN_FOR_TEXT:
            up = row["value"] / row["exact"] - 1
            made.append(
                Row(
                    what=f"WikiText-2, SmolLM2-135M, 512 tokens: perplexity up at 1/8 of the bytes, `{row['codec']}`",
                    reach=f"≤ {REACH_PERPLEXITY:.0%}",
                    measured=f"{up:.1%} ({row['exact']:.2f} to {row['value']:.2f}, {row['num_inputs']} windows; "
                    f"bytes 1/{1 / row['relative_bytes']:.1f})",
                    met=up <= REACH_PERPLEXITY and row["relative_bytes"] <= 1 / 8,
                )
            )
    return made


def _plain_rows(document: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """Those of two devices in float32."""
    rows = document["figures"].get(name, [])
    return [row for row in rows if row["devices"] == 2 and row["dtype"] == "float32"]


def codec_time(document: dict[str, Any]) -> list[Row]:
    """What encoding and decoding take of a block."""
    best = document["figures"]["best_at_an_eighth"]
    return [
        Row(
            what=f"ViT-B/16, batch 1: encoding and decoding `{best['codec']}` / a block's computation",
            reach=f"≤ {best['at_most']:.0%}",
            measured=f"{best['measured']:.1%}",
            met=best["met"],
        )
    ]


SECTIONS: dict[str, Callable[[dict[str, Any]], list[Row]]] = {
    "demo_accuracy": accuracy,
    "first_law": first_law,
    "counts": counts,
    "latency": latency,
    "startup": startup,
    "frames": frames,
    "campaign": campaign,
    "fuzz": fuzz,
    "steady_memory": steady_memory,
    "weights": weights,
    "evaluation": evaluation,
    "accuracy": codecs,
    "codec_time": codec_time,
    "adaptive": adaptive,
    "planner": planner,
    "pipeline": pipeline,
}


def _printed(row: dict[str, Any]) -> str:
    """What the paper prints, where the formula that it gives says something else."""
    formula, printed = row["reach"].get("gflop"), row["published"].get("gflop")
    return "" if formula == printed else f" (by the paper's formula; it prints {printed})"


def _count(name: str, value: float) -> str:
    if name == "gflop":
        return f"{value:.2f} GFLOP"
    return f"{100 * value:.2f} % {name.removesuffix('_saved')} saved"


def _line(cells: list[str] | tuple[str, ...]) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    sys.exit(main())
