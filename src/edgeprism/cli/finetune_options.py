"""The options of `edgeprism finetune`: declared, and checked before torch and the weights take their seconds."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from edgeprism.errors import InputError
from edgeprism.specs.codec import CodecSpec
from edgeprism.specs.plan import Plan

MAX_LR = 1.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare them."""
    parser.add_argument("model", metavar="MODEL", help="directory in Hugging Face format, or hub id")
    parser.add_argument(
        "--dataset",
        required=True,
        metavar="NAME",
        help="such as cifar10, sst2, wikitext2, text; its training part is used",
    )
    parser.add_argument("--data", type=Path, metavar="PATH", help="file or folder that holds the data")
    parser.add_argument(
        "--window", type=int, default=512, metavar="N", help="tokens of an input, of running text (default: 512)"
    )
    parser.add_argument("--codec", required=True, metavar="C", help="what will travel, like means:9.9")
    parser.add_argument("--devices", type=int, default=2, metavar="P", help="devices that share tokens (default: 2)")
    parser.add_argument(
        "--calibration",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="tables of the codec, from edgeprism calibrate --out (default: those in the cache)",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="directory to write; must not exist")
    parser.add_argument(
        "--loss",
        choices=("distil", "task"),
        default="distil",
        help="learn the model's own answers on one device, whatever the labels say, or labels or next tokens "
        "(default: distil)",
    )
    parser.add_argument("--full", action="store_true", help="train every weight, not low-rank changes of them")
    parser.add_argument("--rank", type=int, metavar="R", help="rank of the changes (default: 16)")
    parser.add_argument("--epochs", type=float, metavar="E", help="passes over the data (default: 1)")
    parser.add_argument("--steps", type=int, metavar="N", help="batches to train on, instead of --epochs")
    parser.add_argument(
        "--batch", type=int, metavar="B", help="inputs in one step (default: 32, of running text 4 windows)"
    )
    parser.add_argument("--lr", type=float, help="peak learning rate (default: 1.5e-4, with --full 2e-5)")
    parser.add_argument("--seed", type=int, default=0, help="of order, initial adaptors and dropout (default: 0)")
    parser.add_argument("--no-vary", action="store_true", help="under distil: do not crop and flip pictures at random")
    parser.add_argument("--limit", type=int, metavar="N", help="use the first N inputs of the data only")
    parser.add_argument(
        "--hold-out",
        type=int,
        metavar="N",
        help="keep the last N of them out of training, and score them before and after (default: a tenth, at most 500, "
        "or 50 windows)",
    )
    parser.add_argument("--dtype", default="float32", help="that products are computed in: float32 or bfloat16")
    parser.add_argument("--device", help="cpu or cuda (default: cuda if there is one, else cpu)")
    parser.add_argument(
        "--checkpoint-every", type=int, default=100, metavar="N", help="steps between checkpoints (default: 100)"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint that was left beside --output")
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def check(args: argparse.Namespace) -> CodecSpec:
    """The codec; InputError for a value that cannot be used."""
    for name in ("window", "rank", "steps", "batch", "limit", "checkpoint_every"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise InputError(f"--{name.replace('_', '-')} must be at least 1, not {value}")
    for name in ("epochs", "lr"):
        value = getattr(args, name)
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"--{name} must be more than 0, not {value:g}")
    if args.lr is not None and args.lr > MAX_LR:
        raise InputError(f"--lr {args.lr:g} would destroy what the model knows; give at most {MAX_LR:g}")
    if args.hold_out is not None and args.hold_out < 0:
        raise InputError(f"--hold-out must not be negative, and is {args.hold_out}")
    if not 0 <= args.seed < 2**32:
        raise InputError(f"--seed must be between 0 and {2**32 - 1}, not {args.seed}")
    if args.device not in (None, "cpu", "cuda"):
        raise InputError(f"--device must be cpu or cuda, not {args.device!r}")
    if args.full and args.rank is not None:
        raise InputError("--full trains every weight, --rank low-rank changes of them; give one of the two")
    if args.steps is not None and args.epochs is not None:
        raise InputError("--steps and --epochs both say how long to train; give one of the two")
    if args.dtype not in ("float32", "bfloat16"):
        raise InputError(f"--dtype must be float32 or bfloat16, not {args.dtype!r}")
    codec = CodecSpec.parse(args.codec)
    if codec.is_exact:
        raise InputError("codec exact costs nothing, so there is nothing to learn; name a lossy one")
    Plan.even("sequence", args.devices, codec)
    if args.devices < 2:
        raise InputError(f"--devices must be at least 2, not {args.devices}: on one device nothing travels")
    return codec
