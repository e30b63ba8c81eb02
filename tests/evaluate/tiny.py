"""Tiny model directories and training data: in the formats of CIFAR-10 (as .npz) and SST-2, and running text."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, ViTImageProcessorPil

from edgeprism.models.load import load_pretrained
from tests.families import is_text, make

WORDS = "[PAD] [UNK] a the cat dog mat sat on went home again today good bad".split()  # noqa: SIM905
_TEXTS = (
    "a good cat",
    "the bad dog went home",
    "the cat sat on the good mat again today",
    "a bad dog sat on a bad mat",
)
SENTENCES = [(text if i < 4 else f"{text} today", i % 2) for i in range(12) for text in [_TEXTS[i % 4]]]
"""(text, label); one token a word."""


def write_model_directory(architecture: str, path: Path, **changes: Any) -> None:
    """A random model with what turns pictures or texts into its inputs, for the labels of CIFAR-10 or SST-2."""
    changes = {"num_labels": 2 if is_text(architecture) else 10, **changes}
    if not is_text(architecture):
        make(architecture, **changes).save_pretrained(path)
        ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(path)
        return
    make(architecture, pad_token_id=0, **changes).save_pretrained(path)
    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(path)


def write_data(path: Path, *, num_pictures: int = 24) -> None:
    """Pictures in a colour for each label, and SENTENCES."""
    rng = np.random.default_rng(0)
    labels = rng.integers(10, size=num_pictures).astype(np.uint8)
    colours = rng.integers(256, size=(10, 1, 1, 3))
    noise = rng.integers(-20, 20, size=(num_pictures, 32, 32, 3))
    images = np.clip(colours[labels] + noise, 0, 255).astype(np.uint8)
    (path / "cifar10").mkdir(parents=True)
    np.savez(path / "cifar10" / "train_5k.npz", images=images, labels=labels)
    (path / "sst2").mkdir()
    lines = ["sentence\tlabel", *(f"{text}\t{label}" for text, label in SENTENCES)]
    (path / "sst2" / "train.tsv").write_text("\n".join(lines) + "\n")


def running_text(num_windows: int, *, seed: int = 0) -> str:
    """Windows of 16 words, whose second half tells what stood in the first: one animal or thing among four words, and
    one among the next four."""
    rng, words = random.Random(seed), []
    for _ in range(num_windows):
        named = rng.choices("cat dog mat home".split(), k=2)  # noqa: SIM905
        for name in named:
            some = rng.choices("a the sat on".split(), k=4)  # noqa: SIM905
            some[rng.randrange(4)] = name
            words += some
        words += ["good", named[0], "bad", named[1], "again", "today", "went", "again"]
    return " ".join(words)


def learn(architecture: str, path: Path, *, num_steps: int = 120) -> None:
    """Writes a tiny model that has learned `running_text`, with its tokenizer: a second or two."""
    write_model_directory(architecture, path, initializer_range=0.05)
    model = load_pretrained(str(path))
    number = {word: index for index, word in enumerate(WORDS)}
    ids = torch.tensor([number[word] for word in running_text(1000, seed=1).split()]).reshape(-1, 16)
    optimiser, generator = torch.optim.AdamW(model.parameters(), lr=2e-3), torch.Generator().manual_seed(0)
    for _ in range(num_steps):
        some = ids[torch.randint(0, len(ids), (32,), generator=generator)]
        model(input_ids=some, attention_mask=torch.ones_like(some), labels=some).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    model.save_pretrained(path)
