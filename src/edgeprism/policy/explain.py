"""A decision in words and numbers: every candidate, the parts of its prediction, what was left out and why."""

from __future__ import annotations

from typing import Any

from edgeprism.policy.choose import Candidate, Decision, describe

MAX_SHOWN = 12
_COLUMNS = ("plan", "predicted", "of local", "compute", "codec", "staging", "wire", "wait", "sent", "joules")


def as_document(decision: Decision) -> dict[str, Any]:
    """Plain JSON values; milliseconds would be for people, these are seconds."""
    return {
        "objective": decision.objective,
        "max_accuracy_drop": decision.max_accuracy_drop,
        "chosen": decision.chosen.plan.to_json(),
        "reason": decision.reason,
        "kept": decision.kept,
        "candidates": [_candidate(one, decision.local) for one in decision.candidates],
        "left_out": list(decision.left_out),
    }


def as_text(decision: Decision) -> str:
    """One screen: a row for each candidate, the chosen one marked; the parts are those of the busiest device."""
    shown = list(decision.candidates[:MAX_SHOWN])
    shown += [one for one in (decision.local, decision.chosen) if one not in shown]
    rows = [_row(one, decision) for one in shown]
    widths = [max(map(len, column)) for column in zip(_COLUMNS, *rows, strict=True)]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in (_COLUMNS, *rows)
    ]
    num_hidden = len(decision.candidates) - MAX_SHOWN
    if num_hidden > 0:
        lines.append(f"and {num_hidden} more that are slower")
    lines += ["", decision.reason]
    if decision.kept:
        lines.append("another is slightly better, but not by enough to leave the plan in use")
    return "\n".join(lines + [f"left out: {one}" for one in decision.left_out])


def _candidate(one: Candidate, local: Candidate) -> dict[str, Any]:
    return {
        "plan": one.plan.to_json(),
        "total_s": one.total_s,
        "of_local": one.total_s / local.total_s,
        "score": one.score,
        "correction": one.correction,
        "bytes_sent": one.prediction.bytes_sent,
        "joules": one.prediction.joules,
        "joules_over_idle": one.prediction.joules_over_idle,
        "devices": [
            {
                "device": part.device,
                "compute_s": part.compute_s,
                "codec_s": part.codec_s,
                "staging_s": part.staging_s,
                "wire_s": part.wire_s,
                "wait_s": part.wait_s,
                "bytes_sent": part.bytes_sent,
            }
            for part in one.prediction.parts
        ],
    }


def _row(one: Candidate, decision: Decision) -> tuple[str, ...]:
    busiest = max(one.prediction.parts, key=lambda part: part.busy_s)
    mark = "> " if one.plan == decision.chosen.plan else "  "
    parts = (busiest.compute_s, busiest.codec_s, busiest.staging_s, busiest.wire_s, busiest.wait_s)
    return (
        mark + describe(one.plan),
        f"{1e3 * one.total_s:.1f} ms",
        f"{one.total_s / decision.local.total_s:.2f}",
        *(f"{1e3 * seconds:.1f}" for seconds in parts),
        f"{one.prediction.bytes_sent / 1e3:.1f} kB",
        f"{one.prediction.joules:.2f}" if one.prediction.joules else "-",
    )
