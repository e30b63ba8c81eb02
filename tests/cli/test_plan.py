"""`edgeprism plan` as a user calls it: its figures, its notes, and one line for whatever is wrong."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from edgeprism.cli import plan
from edgeprism.cli.main import main
from edgeprism.errors import InputError
from tests.specs.configs import BERT_BASE, GPT2, VIT_BASE


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A directory with three models, none of which has weights."""
    for name, config in (("vit", VIT_BASE), ("bert", BERT_BASE), ("gpt2", GPT2)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return tmp_path


def run_plan(*words: str) -> int:
    """The command's status; errors are raised, as `main` would catch them."""
    parser = argparse.ArgumentParser()
    plan.add_parser(parser.add_subparsers())
    return plan.execute(parser.parse_args(["plan", *words]))


def counted(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    """The JSON document of one call: all that stands on standard output."""
    assert run_plan(*words, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert isinstance(document, dict)
    return document


@pytest.mark.parametrize(
    ("codec", "gflop"), [("means:9.9", 17.55), ("means:L=20", 17.87), ("means:L=30", 18.19), ("exact", 20.39)]
)
def test_published_gflop(models: Path, capsys: pytest.CaptureFixture[str], codec: str, gflop: float) -> None:
    """ViT-B/16 on two devices: the coordinator's 98 rows cost what the paper's table says."""
    document = counted(capsys, str(models / "vit"), "--devices", "2", "--plan", "sequence", "--codec", codec)
    assert document["devices"][0]["tokens"] == 98
    assert round(document["devices"][0]["gflop"], 2) == gflop


def test_published_bert_savings(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """BERT-base's headline: 99.22 % of the exchange and 51.24 % of the computation saved."""
    words = ("--devices", "2", "--plan", "sequence", "--codec", "means:L=1", "--length", "256")
    document = counted(capsys, str(models / "bert"), *words)
    assert round(100 * document["exchange"]["saved"], 2) == 99.22
    assert round(100 * document["computation"]["saved"], 2) == 51.24


def test_document(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every key of the JSON document, for a batch of four on uneven shares in bfloat16."""
    words = ("--plan", "sequence", "--shares", "0.6,0.4", "--codec", "int8", "--batch", "4", "--dtype", "bfloat16")
    document = counted(capsys, str(models / "vit"), *words)
    devices = document.pop("devices")
    assert [(device["index"], device["samples"], device["tokens"], device["key_rows"]) for device in devices] == [
        (0, 4, 118, 197),
        (1, 4, 79, 197),
    ]
    assert devices[0]["bytes_sent"] == 4 * 6 * 14 * 768 + 3 * 256 * 2 + 12 * 4 * 118 * 772
    assert devices[1]["bytes_sent"] == 12 * 4 * 79 * 772
    computation = document.pop("computation")
    assert round(computation["one_device_gflop"], 2) == 140.50
    assert computation["saved"] == pytest.approx(1 - devices[0]["gflop"] / computation["one_device_gflop"])
    assert document == {
        "model": str(models / "vit"),
        "architecture": "ViTForImageClassification",
        "plan": {"schema_version": 1, "strategy": "sequence", "shares": [0.6, 0.4], "codec": "int8"},
        "num_tokens": 197,
        "batch": 4,
        "dtype": "bfloat16",
        "exchange": {"bytes_per_block": 4 * 118 * 772, "saved": pytest.approx(1 - 772 / 1536), "num_blocks": 12},
        "input_bytes": 4 * 6 * 14 * 768 + 3 * 256 * 2,
        "note": None,
    }


def test_auto_is_local_and_says_so(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a policy, auto counts one device; a line on standard error and the note tell."""
    assert run_plan(str(models / "vit"), "--devices", "2", "--json") == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert document["plan"]["strategy"] == "local"
    assert round(document["devices"][0]["gflop"], 2) == 35.13
    assert document["exchange"] == {"bytes_per_block": 0, "saved": None, "num_blocks": 0}
    assert "plan auto is local" in document["note"]
    assert captured.err == f"edgeprism: note: {document['note']}\n"


@pytest.mark.parametrize(("model", "num_tokens"), [("bert", 128), ("gpt2", 128)])
def test_length_of_texts_is_assumed(
    models: Path, capsys: pytest.CaptureFixture[str], model: str, num_tokens: int
) -> None:
    """A text model without --length is counted at 128 tokens, and the assumption is printed."""
    document = counted(capsys, str(models / model), "--plan", "local")
    assert document["num_tokens"] == num_tokens
    assert "assumed --length 128" in document["note"]


def test_codec_without_effect_is_noted(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only sequence exchanges rows; a codec under another strategy changes nothing, and that is said."""
    document = counted(capsys, str(models / "vit"), "--plan", "replica", "--devices", "2", "--codec", "int8")
    assert "codec int8 has no effect under replica" in document["note"]


def test_text_output(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The table and the sentence that a person reads."""
    assert run_plan(str(models / "vit"), "--plan", "sequence", "--devices", "2", "--codec", "means:9.9") == 0
    assert capsys.readouterr().out.splitlines() == [
        "ViTForImageClassification, 197 tokens, batch 1, float32: sequence over 2 device(s), codec means:9.9",
        "",
        "device  samples  tokens  key rows  GFLOP      sent",
        "     0        1      98       108  17.55  457.7 kB",
        "     1        1      99       109  17.50  368.6 kB",
        "",
        "The busiest device computes 17.55 of one device's 35.13 GFLOP (50.03 % saved); in each of 12 blocks a device "
        "sends up to 30.7 kB (89.85 % of the full-tensor exchange saved).",
    ]


def test_text_output_of_replica(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A strategy without an exchange says what it sends instead."""
    assert run_plan(str(models / "vit"), "--plan", "replica", "--devices", "2", "--batch", "8") == 0
    assert capsys.readouterr().out.endswith("nothing travels inside a block, 602.1 kB of inputs before.\n")


def test_text_output_of_one_device(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One device computes everything and sends nothing."""
    assert run_plan(str(models / "vit"), "--plan", "local") == 0
    assert capsys.readouterr().out.endswith("35.13 of one device's 35.13 GFLOP; nothing is sent.\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--plan", "sequence"), "sequence needs --devices or --shares"),
        (("--plan", "pipeline", "--stages", "0:0-4"), "end at piece 4"),
        (("--plan", "pipeline", "--stages", "0:0-4,1:5-48"), "skips pieces"),
        (("--plan", "pipeline"), "needs to know the devices"),
        (("--plan", "pipeline", "--devices", "2", "--codec", "means:4"), "exact, bfloat16, int8, int4, or a"),
        (("--plan", "pipeline", "--devices", "2", "--codec", "exact.int4"), "or a range of them as exact..int4"),
        (("--plan", "pipeline", "--devices", "2", "--codec", "exact.."), "or a range of them as exact..int4"),
        (("--plan", "pipeline", "--devices", "2", "--micro-batch", "0"), "at least 1"),
        (("--devices", "2", "--stages", "0:0-48"), "belongs to --plan pipeline"),
        (("--plan", "pipeline", "--devices", "2", "--stages", "0:0-24,5:24-48"), "device 5, and there are 2"),
        (("--plan", "fastest", "--devices", "2"), "unknown strategy 'fastest'"),
        (("--plan", "sequence", "--devices", "2", "--codec", "zip"), "unknown codec 'zip'"),
        (("--plan", "sequence", "--devices", "2", "--codec", "means:0.5"), "at least 1"),
        (("--plan", "sequence", "--devices", "2", "--codec", "means:100"), "partition of 98"),
        (("--plan", "sequence", "--devices", "17"), "1 to 16 devices, not 17"),
        (("--plan", "sequence", "--devices", "0"), "1 to 16 devices, not 0"),
        (("--plan", "sequence", "--devices", "1000000000"), "1 to 16 devices"),
        (("--plan", "sequence", "--shares", "0.6,0.6"), "add up to 1.2"),
        (("--plan", "sequence", "--shares", "1.5,-0.5"), "not be negative"),
        (("--plan", "sequence", "--shares", "half"), "are not numbers"),
        (("--plan", "sequence", "--shares", "0.6,0.4", "--devices", "3"), "--shares names 2 devices and --devices 3"),
        (("--plan", "local", "--shares", "0.6,0.6"), "add up to 1.2"),
        (("--dtype", "int8"), "unknown dtype 'int8'"),
        (("--batch", "0"), "a batch has 1 to"),
        (("--batch", "9" * 400), "a batch has 1 to"),
        (("--length", "100"), "--length is for texts"),
    ],
)
def test_bad_options_get_one_line(
    models: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    """What cannot be counted is refused before anything is printed."""
    with pytest.raises(InputError, match=message):
        run_plan(str(models / "vit"), *words)
    assert capsys.readouterr().out == ""


def test_bad_models_get_one_line(models: Path) -> None:
    """A missing directory, one without config.json, a file, and another architecture are told apart."""
    (models / "empty").mkdir()
    (models / "mistral").mkdir()
    (models / "mistral" / "config.json").write_text('{"architectures": ["MistralForCausalLM"]}', encoding="utf-8")
    for source, message in (
        ("absent", "is no directory"),
        ("empty", r"has no config\.json"),
        ("vit/config.json", "is no directory"),
        ("mistral", "MistralForCausalLM"),
    ):
        with pytest.raises(InputError, match=message):
            run_plan(str(models / source))
    with pytest.raises(InputError, match="is no directory"):
        run_plan("~nobody-of-this-name/model")


def test_hub_id_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An id whose config.json is in the local cache needs no network."""
    hub = pytest.importorskip("huggingface_hub")
    file = tmp_path / "config.json"
    file.write_text(json.dumps(VIT_BASE), encoding="utf-8")
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda *_: str(file))
    assert counted(capsys, "google/vit-base-patch16-224")["num_tokens"] == 197


def test_hub_id_without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """An id that neither the cache nor the hub knows is refused in one line, with the client's reason."""
    hub = pytest.importorskip("huggingface_hub")

    def unreachable(*_: object) -> None:
        raise OSError("no route to the hub\nand a second line")

    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr(hub, "get_hf_file_metadata", unreachable)
    with pytest.raises(InputError, match=r"someone/model is no directory here, .* \(no route to the hub\)$"):
        run_plan("someone/model")


def test_main_gives_exit_2(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Through the command itself: one line that starts with its name, exit status 2."""
    assert main(["plan", str(models / "vit"), "--batch", "0"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == "edgeprism: a batch has 1 to 2147483647 samples, not 0"
