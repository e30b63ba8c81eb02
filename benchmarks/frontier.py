"""The page on codecs, from results/accuracy.json: its tables, and a picture of accuracy against bytes."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.report import RESULTS
from benchmarks.table import put

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "explanation"
PAGE, PICTURE = FOLDER / "codecs.md", FOLDER / "frontier.png"
KINDS = {
    "delta+pq": ("tab:blue", "o"),
    "delta+rot": ("tab:cyan", "s"),
    "pq": ("tab:green", "v"),
    "rot": ("tab:olive", "D"),
    "int": ("tab:gray", "P"),
    "means": ("tab:red", "X"),
    "kv:rot": ("tab:purple", "*"),
    "kv:int": ("tab:pink", "<"),
}
PUBLISHED = {
    ("cifar10", "means:3.3"): -0.95,
    ("cifar10", "means:4.95"): -1.17,
    ("cifar10", "means:9.9"): -2.37,
    ("cifar10-finetuned", "means:9.9"): -0.58,
}
"""Points of PRISM with ViT-B on CIFAR-10, two devices, against 98.01 on one (arXiv 2507.12145)."""
TITLES = {
    "cifar10": "demo ViT-S/14, CIFAR-10 test, 500",
    "cifar10-finetuned": "demo ViT-S/14 fine-tuned for means:9.9, CIFAR-10 test, 500",
    "sst2": "MiniLM, SST-2 dev, 872",
    "wikitext2": "SmolLM2-135M, WikiText-2, 512 tokens",
    "novels": "GPT-2 of 14 million, Persuasion, 64 tokens",
    "novels-finetuned": "the same GPT-2, fine-tuned for `means:8`",
    "cloze-ne": "SmolLM2-135M, cloze questions on names",
    "cloze-cn": "SmolLM2-135M, cloze questions on nouns",
}
NOT_DRAWN = ("cifar10-finetuned", "novels-finetuned", "cloze-ne", "cloze-cn")  # one codec, or few questions


def main() -> int:
    """Writes the picture; 1 where there is nothing to draw it from or with."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ModuleNotFoundError:
        print("frontier: the plot needs matplotlib; install it with: pip install matplotlib", file=sys.stderr)
        return 1
    figures = _figures("accuracy")
    names = [name for name in TITLES if name in figures]
    put(PAGE, "\n" + "\n".join(table(name, figures[name]) for name in names) + "\n", write=True)
    drawn = [name for name in names if name not in NOT_DRAWN]
    put(PAGE, times(_figures("codec_time")), write=True, name="codec_time")
    put(PAGE, tried(_figures("tried_codecs")), write=True, name="tried")
    picture, axes = pyplot.subplots(-(-len(drawn) // 2), 2, figsize=(11, 4.2 * -(-len(drawn) // 2)), squeeze=False)
    for axis in axes.flat[len(drawn) :]:
        axis.set_visible(False)
    for axis, name in zip(axes.flat, drawn, strict=False):
        draw(axis, name, figures[name])
    handles = {label: handle for axis in axes.flat for handle, label in zip(*axis.get_legend_handles_labels())}  # noqa: B905
    axes[0][0].legend(handles.values(), handles.keys(), fontsize=8, loc="upper right")
    picture.tight_layout()
    picture.savefig(PICTURE, dpi=110)
    print(PICTURE)
    return 0


def table(name: str, rows: list[dict[str, Any]]) -> str:
    """All codecs of one model, the fewest bytes last."""
    is_perplexity = rows[0]["metric"] == "perplexity"
    unit = "perplexity" if is_perplexity else "accuracy, %"
    lines = [
        f"**{TITLES[name]}**; one device: "
        + ", ".join(sorted({f"{_shown(row['exact'], is_perplexity)} ({row['dtype']})" for row in rows})),
        "",
        f"| devices | dtype | codec | bytes | {unit} | difference | 95 % interval | same answer | inputs | published |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: (row["devices"], row["dtype"] != "float32", -row["relative_bytes"])):
        factor = 1 if is_perplexity else 100
        lines.append(
            f"| {row['devices']} | {row['dtype']} | `{row['codec']}` | 1/{1 / row['relative_bytes']:.1f} "
            f"| {_shown(row['value'], is_perplexity)} | {factor * (row['value'] - row['exact']):+.2f} "
            f"| {factor * row['low']:+.2f} to {factor * row['high']:+.2f} | {row['agreement']:.1%} "
            f"| {row['num_inputs']}{' (' + str(row['num_alone']) + ' too short)' if row['num_alone'] else ''} "
            f"| {_published(name, row)} |"
        )
    return "\n".join(lines) + "\n"


def _published(name: str, row: dict[str, Any]) -> str:
    points = PUBLISHED.get((name, row["codec"])) if (row["devices"], row["dtype"]) == (2, "float32") else None
    return "" if points is None else f"{points:+.2f}"


def _shown(value: float, is_perplexity: bool) -> str:
    return f"{value:.2f}" if is_perplexity else f"{100 * value:.1f}"


def times(figures: dict[str, Any]) -> str:
    """What encoding and decoding take."""
    codecs = [name for name, row in figures.items() if "of_block" in row]
    return "\n".join(
        [
            "| " + " | ".join(f"`{codec}`" for codec in codecs) + " |",
            "|---" * len(codecs) + "|",
            "| " + " | ".join(f"{figures[codec]['of_block']:.1%}" for codec in codecs) + " |\n",
        ]
    )


def tried(figures: dict[str, Any]) -> str:
    """Sketches beside what is shipped, the fewest bytes last."""
    lines = ["| codec | bytes | divergence | same answer |", "|---|---|---|---|"]
    rows = {name: row for name, row in figures.items() if "divergence" in row}
    for name, row in sorted(rows.items(), key=lambda item: item[1]["of_float32"]):
        shown = name if "," in name else f"`{name}`"
        size, divergence, same = row["of_float32"], row["divergence"], row["same_answer"]
        lines.append(f"| {shown} | 1/{size:.1f} | {divergence:.4f} | {same:.1%} |")
    return "\n".join(lines) + "\n"


def _figures(name: str) -> dict[str, Any]:
    figures: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())["figures"]
    return figures


def draw(axis: Any, name: str, rows: list[dict[str, Any]]) -> None:
    """One model: what codecs lose, two devices, float32."""
    shown = [row for row in rows if row["devices"] == 2 and row["dtype"] == "float32"]
    for kind, (colour, marker) in KINDS.items():
        points = sorted((row["relative_bytes"], lost(row)) for row in shown if kind_of(row["codec"]) == kind)
        if points:
            axis.plot(*zip(*points, strict=True), color=colour, marker=marker, label=kind, linewidth=1)
    axis.set_xscale("log", base=2)
    axis.set_xticks([1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4], ["1/64", "1/32", "1/16", "1/8", "1/4"])
    axis.set_xlabel("bytes against float32 rows")
    is_perplexity = shown[0]["metric"] == "perplexity"
    axis.set_ylabel("perplexity up, %" if is_perplexity else "points lost")
    if max(map(lost, shown)) > 20:
        axis.set_yscale("symlog", linthresh=5)
        axis.set_ylim(bottom=-2)
    axis.axhline(0, color="black", linewidth=0.5)
    axis.set_title(TITLES[name], fontsize=10)
    axis.grid(alpha=0.3)


def kind_of(codec: str) -> str:
    """The family of a codec, the bits aside."""
    return next(kind for kind in KINDS if codec.startswith(kind))


def lost(row: dict[str, Any]) -> float:
    """Points of accuracy, or per cent of perplexity."""
    if row["metric"] == "perplexity":
        return 100 * (float(row["value"]) / float(row["exact"]) - 1)
    return 100 * (float(row["exact"]) - float(row["value"]))


if __name__ == "__main__":
    sys.exit(main())
