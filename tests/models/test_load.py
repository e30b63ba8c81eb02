"""From a directory to a model: what is missing, broken or refused is named in one line, with what to do."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from edgeprism.errors import ModelFilesError, UnsupportedModel
from edgeprism.models.load import directory_of, load_pretrained
from edgeprism.models.registry import ADAPTORS, adapt
from tests.families import difference, example, expected, make


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model; tests copy it before they break it."""
    directory = tmp_path_factory.mktemp("model")
    make("BertForSequenceClassification").save_pretrained(directory)
    return directory


@pytest.fixture
def saved(original: Path, tmp_path: Path) -> Path:
    """A copy of the saved model."""
    directory = tmp_path / "bert"
    directory.mkdir()
    for file in original.iterdir():
        (directory / file.name).write_bytes(file.read_bytes())
    return directory


def refusal(directory: Path) -> str:
    """The message with which a directory is refused: one line."""
    with pytest.raises(ModelFilesError) as refused:
        load_pretrained(str(directory))
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("architecture", ADAPTORS)
def test_save_and_load(architecture: str, tmp_path: Path) -> None:
    """Every architecture is loaded from its directory as config.json names it, in evaluation mode, with its weights."""
    model = make(architecture)
    model.save_pretrained(tmp_path)
    loaded = load_pretrained(str(tmp_path))
    assert type(loaded) is type(model) and not loaded.training
    inputs = example(architecture)
    assert difference(expected(loaded, inputs), expected(model, inputs), inputs) == 0
    assert adapt(loaded).spec.architecture == architecture


def test_dtype_is_the_checkpoints_unless_asked_for(saved: Path, tmp_path: Path) -> None:
    """A bfloat16 checkpoint stays so; a dtype that is asked for is given."""
    make("ViTModel").to(torch.bfloat16).save_pretrained(tmp_path / "half")
    assert load_pretrained(str(tmp_path / "half")).dtype == torch.bfloat16
    assert load_pretrained(str(tmp_path / "half"), dtype=torch.float32).dtype == torch.float32
    assert load_pretrained(str(saved)).dtype == torch.float32
    assert load_pretrained(str(saved), dtype=torch.bfloat16).dtype == torch.bfloat16


def test_sharded_weights(saved: Path, tmp_path: Path) -> None:
    """Weights in several files with an index are one model."""
    model = load_pretrained(str(saved))
    model.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    assert (tmp_path / "shards" / "model.safetensors.index.json").is_file()
    loaded, inputs = load_pretrained(str(tmp_path / "shards")), example("BertForSequenceClassification")
    assert difference(expected(loaded, inputs), expected(model, inputs), inputs) == 0


def test_a_missing_shard_is_refused(saved: Path, tmp_path: Path) -> None:
    """An index that names a file which is not there."""
    load_pretrained(str(saved)).save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    sorted((tmp_path / "shards").glob("model-*.safetensors"))[1].unlink()
    assert "cannot be loaded as BertForSequenceClassification" in refusal(tmp_path / "shards")


def test_no_config(saved: Path) -> None:
    """A directory without config.json is no model directory."""
    (saved / "config.json").unlink()
    assert refusal(saved).startswith(f"{saved} has no config.json")


@pytest.mark.parametrize("text", ["{", "", "[]", "null", '"text"', "\udcff"])
def test_config_that_is_no_json_object(saved: Path, text: str) -> None:
    """Broken JSON, another kind of JSON, and bytes that are no text."""
    (saved / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert "config.json is not a JSON object" in refusal(saved)


@pytest.mark.parametrize("architectures", [["MistralForCausalLM"], [], None, ["PreTrainedModel"], ["os"]])
def test_unsupported_architecture(saved: Path, architectures: list[str] | None) -> None:
    """Refused by name, with the list of those that are supported; nothing else of transformers is ever constructed."""
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**config, "architectures": architectures}))
    with pytest.raises(UnsupportedModel) as refused:
        load_pretrained(str(saved))
    assert all(name in str(refused.value) for name in [*ADAPTORS, *(architectures or [])])


def test_no_weights(saved: Path) -> None:
    """A config alone is no model."""
    (saved / "model.safetensors").unlink()
    assert refusal(saved) == (f"{saved} has no weights: model.safetensors or model.safetensors.index.json is needed")


def test_pickled_weights_are_refused_with_a_command_that_converts_them(saved: Path) -> None:
    """The command of the message, pasted into a shell, writes a directory that loads."""
    weights = load_file(saved / "model.safetensors")
    torch.save(weights, saved / "pytorch_model.bin")
    (saved / "model.safetensors").unlink()
    message = refusal(saved)
    assert "pytorch_model.bin" in message and "refused" in message
    command = message.split("convert them with: ")[1]
    assert shlex.split(command)[:2] == ["python", "-c"]
    command = re.sub(r"^python", shlex.quote(sys.executable), command)
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=120, env={**os.environ})
    assert done.returncode == 0, done.stderr
    loaded = load_pretrained(str(saved) + "-safetensors")
    assert torch.equal(loaded.state_dict()["classifier.weight"], weights["classifier.weight"])


def test_safetensors_beside_a_pickle_are_loaded(saved: Path) -> None:
    """The pickle is left unread, whatever is in it."""
    (saved / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    assert load_pretrained(str(saved)).num_labels == 5


def test_missing_tensors_are_refused(saved: Path) -> None:
    """A checkpoint that would leave a head at random values is named with what it lacks."""
    weights = load_file(saved / "model.safetensors")
    del weights["classifier.weight"]
    save_file(weights, saved / "model.safetensors", metadata={"format": "pt"})
    message = refusal(saved)
    assert "lacks 1 tensors of BertForSequenceClassification" in message and "classifier.weight" in message


def test_tensors_of_another_shape_are_refused(saved: Path) -> None:
    """Weights that do not fit config.json."""
    weights = load_file(saved / "model.safetensors")
    weights["classifier.weight"] = torch.zeros(7, 64)
    save_file(weights, saved / "model.safetensors", metadata={"format": "pt"})
    assert "classifier.weight" in refusal(saved)


@pytest.mark.parametrize("kept", [0, 4, 100, 50_000])
def test_truncated_weights_are_refused(saved: Path, kept: int) -> None:
    """A download that broke off."""
    file = saved / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    assert "cannot be loaded as BertForSequenceClassification" in refusal(saved)


def test_a_pooler_that_was_never_saved_is_left_out(tmp_path: Path) -> None:
    """A checkpoint without pooler gives no pooled output, rather than a random one."""
    model = make("BertModel")
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    kept = {name: value for name, value in weights.items() if not name.startswith("pooler.")}
    assert len(kept) == len(weights) - 2
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    adapted, inputs = adapt(load_pretrained(str(tmp_path))), example("BertModel")
    tokens = adapted.tokens(inputs)
    x = torch.rand(3, tokens.num_tokens, 64)
    output = adapted.head(tokens.reads.join([tokens.reads.take(x, 0, 13)], [(0, 13)]))
    assert output.pooler_output is None and torch.equal(output.last_hidden_state, x)


def test_a_file_instead_of_a_directory(saved: Path) -> None:
    """The weights' own path is a likely slip; the message says what to give."""
    with pytest.raises(ModelFilesError, match="is a file; give the directory"):
        load_pretrained(str(saved / "model.safetensors"))


@pytest.mark.parametrize("source", ["./nowhere", "/nowhere/at/all", "~/nowhere-at-all", "a/b/c", "nowhere/"])
def test_no_such_directory(source: str) -> None:
    """What looks like a path is not asked of the hub."""
    with pytest.raises(ModelFilesError, match="no directory"):
        directory_of(source)


def test_an_id_that_the_hub_does_not_give() -> None:
    """Without a network, or with a wrong id: one line."""
    with pytest.raises(ModelFilesError, match="the hub gave no model of that name") as refused:
        load_pretrained("edgeprism/no-such-model")
    assert "\n" not in str(refused.value)
