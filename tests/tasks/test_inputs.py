"""What becomes of texts before a model gets them."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeprism.errors import ModelFilesError
from edgeprism.specs.model import ModelSpec
from edgeprism.tasks.inputs import prepare_with
from tests.families import make


def test_a_model_without_a_tokenizer(tmp_path: Path) -> None:
    """transformers makes one that knows no words for some families: that is said, not what the model thinks of it."""
    make("GPT2LMHeadModel").save_pretrained(tmp_path)
    with pytest.raises(ModelFilesError, match="tokenizer"):
        prepare_with(tmp_path, ModelSpec.from_directory(tmp_path))(["hello"])
