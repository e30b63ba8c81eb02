"""`edgeprism run`: what each kind of model answers, and one clear line for everything that cannot be used."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, ViTImageProcessorPil

from edgeprism.cli.main import main
from edgeprism.runtime.answers import Answer
from edgeprism.runtime.engine import Engine
from edgeprism.wire.keys import KeyPair
from tests.families import expected, make

WORDS = "[PAD] [UNK] [MASK] [EOS] a the cat dog mat sat on went home again today".split()  # noqa: SIM905

TEXT_ARCHITECTURES = (
    "BertForSequenceClassification",
    "DistilBertForMaskedLM",
    "RobertaModel",
    "GPT2LMHeadModel",
    "LlamaForCausalLM",
    "GPT2Model",
    "GPT2ForSequenceClassification",
)
PROBLEMS = {"regression": {"num_labels": 1}, "multi_label": {"problem_type": "multi_label_classification"}}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model directories as transformers writes them, and pictures."""
    root = tmp_path_factory.mktemp("run")
    for architecture in ("ViTForImageClassification", "ViTModel"):
        make(architecture).save_pretrained(root / architecture)
        ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(root / architecture)
    for architecture in TEXT_ARCHITECTURES:
        make(architecture, pad_token_id=0).save_pretrained(root / architecture)  # as the tokenizer pads
        tokenizer().save_pretrained(root / architecture)
    for name, changes in PROBLEMS.items():
        make("BertForSequenceClassification", **changes).save_pretrained(root / name)
        tokenizer().save_pretrained(root / name)
    Image.new("RGB", (40, 30), (200, 30, 10)).save(root / "red.png")
    Image.new("L", (64, 64), 90).save(root / "grey.jpg")
    (root / "no_weights").mkdir()
    (root / "no_weights" / "config.json").write_text((root / "ViTModel" / "config.json").read_text())
    (root / "pickled").mkdir()
    (root / "pickled" / "config.json").write_text((root / "ViTModel" / "config.json").read_text())
    torch.save(make("ViTModel").state_dict(), root / "pickled" / "pytorch_model.bin")
    (root / "mistral").mkdir()
    (root / "mistral" / "config.json").write_text('{"architectures": ["MistralForCausalLM"], "model_type": "mistral"}')
    (root / "not_a_picture.png").write_text("words")
    (root / "unquoted.toml").write_text("[coordinator]\npublic_key = rq:rM>\n")
    key = KeyPair.generate().public
    members = f'name = "laptop"\npublic_key = "{key}"\n[[device]]\nname = "pi"\naddress = "127.0.0.1:9"\n'
    (root / "keyless.toml").write_text(f"[coordinator]\n{members}")
    return root


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a word."""
    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", mask_token="[MASK]", eos_token="[EOS]"
    )


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of one command line."""
    try:
        status = main(["run", *map(str, arguments)])
    except SystemExit as exc:
        status = int(exc.code or 0)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_pictures_are_classified(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each picture gets its top labels, most likely first; --json is one document with results and traces."""
    status, out, _ = run(
        capsys, root / "ViTForImageClassification", root / "red.png", root / "grey.jpg", "--top", 3, "--json"
    )
    document = json.loads(out)
    assert status == 0
    assert document["task"] == "classify"
    assert [Path(result["input"]).name for result in document["results"]] == ["red.png", "grey.jpg"]
    for result in document["results"]:
        scores = [label["score"] for label in result["labels"]]
        assert len(scores) == 3
        assert scores == sorted(scores, reverse=True)
    assert document["traces"][0]["plan"]["strategy"] == "local"
    assert document["traces"][0]["note"] == "one device: it runs local"


def test_inputs_beyond_a_batch_become_more_requests(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--batch 1 makes a request of each picture, with the same answers."""
    pictures = (root / "red.png", root / "grey.jpg")
    _, together, _ = run(capsys, root / "ViTForImageClassification", *pictures, "--json")
    _, apart, _ = run(capsys, root / "ViTForImageClassification", *pictures, "--json", "--batch", 1)
    assert len(json.loads(apart)["traces"]) == 2
    for one, other in zip(json.loads(together)["results"], json.loads(apart)["results"], strict=True):
        assert [label["label"] for label in one["labels"]] == [label["label"] for label in other["labels"]]


def test_two_processes_answer_as_one(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With --local-workers 2 and exact rows the labels and scores are those of one process."""
    arguments = (root / "ViTForImageClassification", root / "red.png", "--json")
    _, alone, _ = run(capsys, *arguments)
    status, both, _ = run(capsys, *arguments, "--local-workers", 2, "--plan", "sequence", "--shares", "0.3,0.7")
    assert status == 0
    trace = json.loads(both)["traces"][0]
    assert [device["work"] for device in trace["devices"]] == [5, 12]
    one, other = (json.loads(out)["results"][0]["labels"] for out in (alone, both))
    assert [label["label"] for label in one] == [label["label"] for label in other]
    assert [label["score"] for label in one] == pytest.approx([label["score"] for label in other], abs=1e-5)


@pytest.mark.parametrize("architecture", ["GPT2Model", "GPT2ForSequenceClassification", "RobertaModel"])
def test_an_answer_does_not_depend_on_its_batch(
    root: Path, capsys: pytest.CaptureFixture[str], architecture: str
) -> None:
    """A text beside a longer one, which pads it, is answered as it is alone."""
    texts = ("the cat sat", "a dog went home again today on the mat")
    _, alone, _ = run(capsys, root / architecture, texts[0], "--json")
    _, beside, _ = run(capsys, root / architecture, *texts, "--json")
    one, other = (json.loads(out)["results"][0] for out in (alone, beside))
    if "embedding" in one:
        assert one["embedding"] == pytest.approx(other["embedding"], abs=1e-4)
    else:
        assert [label["label"] for label in one["labels"]] == [label["label"] for label in other["labels"]]
        assert [label["score"] for label in one["labels"]] == pytest.approx(
            [label["score"] for label in other["labels"]], abs=1e-4
        )


def test_a_regression_gives_a_number_and_several_labels_may_hold(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No softmax where it would say nothing: over one output, or over labels that do not exclude each other."""
    _, out, _ = run(capsys, root / "regression", "the cat sat", "a dog went home", "--json")
    values = [result["labels"][0]["value"] for result in json.loads(out)["results"]]
    assert values[0] != values[1]
    status, out, _ = run(capsys, root / "regression", "the cat sat")
    assert status == 0
    assert f"LABEL_0 {values[0]:.4g}" in out
    _, out, _ = run(capsys, root / "multi_label", "the cat sat", "--json")
    (result,) = json.loads(out)["results"]
    inputs = tokenizer()(["the cat sat"], return_tensors="pt", return_token_type_ids=False)
    logits = expected(make("BertForSequenceClassification", **PROBLEMS["multi_label"]), inputs)["logits"]
    assert [label["score"] for label in result["labels"]] == pytest.approx(
        logits.sigmoid()[0].sort(descending=True).values.tolist(), abs=1e-5
    )


def test_texts_are_classified_embedded_filled_in_and_continued(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is done with a text is decided by the model's head; texts of different length share a batch."""
    texts = ("the cat sat", "a dog went home again today")
    for architecture, task, key in (
        ("BertForSequenceClassification", "classify", "labels"),
        ("RobertaModel", "embed", "embedding"),
        ("GPT2LMHeadModel", "generate", "text"),
        ("LlamaForCausalLM", "generate", "text"),
    ):
        status, out, _ = run(capsys, root / architecture, *texts, "--json", "--max-new-tokens", 3)
        document = json.loads(out)
        assert status == 0
        assert document["task"] == task
        assert all(key in result for result in document["results"])
    assert document["results"][0]["text"].startswith("the cat sat")
    status, out, _ = run(capsys, root / "DistilBertForMaskedLM", "the [MASK] sat on the [MASK]", "--json")
    assert [len(labels) for labels in json.loads(out)["results"][0]["masks"]] == [5, 5]


def test_a_padded_text_is_embedded_as_alone(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A short text beside a long one gets the vector that it gets by itself."""
    _, together, _ = run(capsys, root / "RobertaModel", "the cat", "a dog went home again today", "--json")
    _, alone, _ = run(capsys, root / "RobertaModel", "the cat", "--json")
    first = json.loads(together)["results"][0]["embedding"]
    assert first == pytest.approx(json.loads(alone)["results"][0]["embedding"], abs=1e-4)


def test_a_text_may_be_longer_than_any_name_of_a_file(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is not asked whether there is such a file in a way that fails."""
    status, out, _ = run(capsys, root / "RobertaModel", "c" * 300)
    assert status == 0
    assert out.startswith("c" * 300 + ": 64 values")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("{root}/nowhere", "red.png"), "is no directory"),
        (("{root}", "red.png"), "has no config.json"),
        (("{root}/no_weights", "{root}/red.png"), "model.safetensors"),
        (("{root}/pickled", "{root}/red.png"), "use_safetensors=False"),
        (("{root}/mistral", "{root}/red.png"), "ViTForImageClassification"),
        (("{root}/red.png", "{root}/red.png"), "is no directory"),
        (("{root}/ViTModel", "{root}/not_a_picture.png"), "is not a picture"),
        (("{root}/ViTModel", "{root}"), "or the directory with --stream"),
        (("{root}/GPT2LMHeadModel", "{root}/red.png"), "is a picture, and this model takes texts: GPT2LMHeadModel"),
        (("{root}/ViTModel", "{root}/red.png", "--cluster", "{root}/nosuch.toml"), "no cluster file"),
        (("{root}/ViTModel", "{root}/red.png", "--cluster", "{root}/unquoted.toml"), "keys in single ones"),
        (("{root}/ViTModel", "{root}/red.png", "--cluster", "{root}/keyless.toml"), "no key file"),
        (("{root}/ViTModel", ""), "an empty name"),
        (("{root}/ViTModel", "no name of a file is as long as this " * 9), "no such picture"),
        (
            ("{root}/ViTModel", "{root}/red.png", "--local-workers", "2", "--plan", "sequence", "--codec", "means:20"),
            "20",
        ),
        (("{root}/ViTModel", "words for a vision model"), "no such picture"),
        (("{root}/ViTModel", "{root}/red.png", "--codec", "means:0.5"), "at least 1"),
        (("{root}/ViTModel", "{root}/red.png", "--codec", "zip"), "unknown codec"),
        (("{root}/ViTModel", "{root}/red.png", "--plan", "magic"), "local, replica, sequence, pipeline or auto"),
        (("{root}/ViTModel", "{root}/red.png", "--plan", "pipeline", "--stages", "0:0-4"), "end at piece 4"),
        (("{root}/ViTModel", "{root}/red.png", "--micro-batch", "2"), "belongs to --plan pipeline"),
        (("{root}/ViTModel", "{root}/red.png", "--dtype", "int3"), "int3"),
        (("{root}/ViTModel", "{root}/red.png", "--device", "abacus"), "abacus"),
        (("{root}/ViTModel", "{root}/red.png", "--local-workers", "0"), "1 to 16 devices"),
        (("{root}/ViTModel", "{root}/red.png", "--local-workers", "17"), "1 to 16 devices"),
        (("{root}/ViTModel", "{root}/red.png", "--shares", "0.5,0.5"), "--local-workers 1"),
        (("{root}/ViTModel", "{root}/red.png", "--batch", "0"), "--batch must be at least 1"),
        (("{root}/ViTModel", "{root}/red.png", "--threads", "0"), "--threads must be at least 1"),
        (("{root}/ViTModel", "{root}/red.png", "--threads", "1", "--local-workers", "2"), "of its own"),
        (("{root}/ViTModel", "{root}/red.png", "--frobnicate"), "--frobnicate"),
        (("{root}/ViTModel",), "INPUT"),
        (("{root}/DistilBertForMaskedLM", "no mask here"), "[MASK]"),
        (("{root}/GPT2LMHeadModel", "the cat", "--max-new-tokens", "4000"), "positions"),
        (("{root}/RobertaModel", " "), "empty"),
    ],
)
def test_bad_input_is_one_clear_line(
    root: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], says: str
) -> None:
    """Exit status 2, nothing on standard output, and a last line on standard error that says what would do."""
    status, out, err = run(capsys, *(argument.format(root=root) for argument in arguments))
    assert status == 2
    assert out == ""
    assert "Traceback" not in err
    last = err.strip().splitlines()[-1]
    assert last.startswith("edgeprism: ")
    assert says in last


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--plan", "sequence", "--codec", "means:30"), "at most"),
        (("--plan", "sequence", "--shares", "0.5,0.6"), "add up to 1.1"),
    ],
)
def test_plans_that_do_not_fit_the_request_are_refused(
    root: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], says: str
) -> None:
    """What only the request can tell (a rate above the partition) is one line too, and ends the workers."""
    status, out, err = run(capsys, root / "ViTModel", root / "red.png", "--local-workers", "2", *options)
    assert (status, out) == (2, "")
    assert says in err.strip().splitlines()[-1]


def test_a_summary_says_of_which_request_it_is(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two pictures, one a request: times and devices are those of the second."""
    for batch, says in (("1", "\nthe last of 2 requests: local"), ("2", "\nlocal")):
        status, out, _ = run(capsys, root / "ViTModel", root / "red.png", root / "grey.jpg", "--batch", batch)
        assert status == 0
        assert says in out


def test_threads_are_what_was_asked_for(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also on threads that begin later, such as the one that computes."""
    before = torch.get_num_threads()
    try:
        assert run(capsys, root / "ViTModel", root / "red.png", "--threads", before + 1)[0] == 0
        with ThreadPoolExecutor(1) as later:
            assert later.submit(torch.get_num_threads).result() == torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_a_codec_without_effect_is_said(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A setting that does nothing warns, and the run goes on."""
    status, _, err = run(capsys, root / "ViTModel", root / "red.png", "--plan", "local", "--codec", "int8")
    assert status == 0
    assert "no effect" in err


@pytest.mark.parametrize("plan", ["pipeline", "replica"])
def test_a_pipeline_is_kept_full(
    root: Path, plan: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next requests go in before the first is answered; other plans take one after the other."""
    answers: list[Answer] = []
    most = 0
    submit = Engine.submit

    def counted(self: Engine, **inputs: Any) -> Answer:
        nonlocal most
        answers.append(submit(self, **inputs))
        most = max(most, sum(not answer.done() for answer in answers))
        return answers[-1]

    monkeypatch.setattr(Engine, "submit", counted)
    pictures = [str(root / name) for name in ("red.png", "grey.jpg") * 4]
    words = ["run", str(root / "ViTForImageClassification"), *pictures, "--json", "--batch", "1"]
    assert main([*words, "--local-workers", "2", "--plan", plan]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["traces"]) == len(answers) == 8 and [one["input"] for one in found["results"]] == pictures
    assert most == 1 if plan == "replica" else 2 <= most <= 3
    assert main([*words, "--plan", "local"]) == 0
    alone = json.loads(capsys.readouterr().out)["results"]
    red, grey = ([label["score"] for label in one["labels"]] for one in alone[:2])
    assert red != pytest.approx(grey, abs=1e-3)
    for one, other in zip(found["results"], alone, strict=True):
        assert [label["label"] for label in one["labels"]] == [label["label"] for label in other["labels"]]
        assert [label["score"] for label in one["labels"]] == pytest.approx(
            [label["score"] for label in other["labels"]], abs=1e-5
        )


def test_answers_before_one_that_cannot_be_read_are_given(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also while several are under way."""
    cut = root / "cut.png"
    Image.effect_noise((64, 64), 50).save(cut)
    cut.write_bytes(cut.read_bytes()[:-1000])
    words = ["run", str(root / "ViTForImageClassification"), str(root / "red.png"), str(root / "grey.jpg"), str(cut)]
    assert main([*words, "--batch", "1", "--local-workers", "2", "--plan", "pipeline"]) == 2
    said = capsys.readouterr()
    assert [line.split(":")[0] for line in said.out.splitlines()] == ["red.png", "grey.jpg"]
    assert "cut.png" in said.err.splitlines()[-1]


def test_a_pipeline_of_two_processes(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Cut where it was said, in micro-batches, rounded: the answers of one device."""
    words = ["run", str(root / "ViTForImageClassification"), str(root / "red.png"), str(root / "grey.jpg"), "--json"]
    assert main(words) == 0
    alone = json.loads(capsys.readouterr().out)
    stages = ["--plan", "pipeline", "--local-workers", "2", "--stages", "1:0-5,0:5-12", "--micro-batch", "2"]
    assert main([*words, *stages, "--codec", "bfloat16..int8"]) == 0
    found = json.loads(capsys.readouterr().out)
    plan = found["traces"][0]["plan"]
    assert plan["stages"] == ["1:0-5", "0:5-12"] and plan["codec"] == "bfloat16" and plan["narrowest"] == "int8"
    for one, other in zip(found["results"], alone["results"], strict=True):
        assert one["labels"][0]["label"] == other["labels"][0]["label"]
        assert one["labels"][0]["score"] == pytest.approx(other["labels"][0]["score"], abs=0.02)
