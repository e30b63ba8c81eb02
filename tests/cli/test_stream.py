"""`edgeprism run --stream`: every picture is answered or accounted for, however the stream ends."""

from __future__ import annotations

import gc
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import ViTImageProcessorPil

from edgeprism.cli.latencies import Latencies
from edgeprism.cli.main import main
from edgeprism.runtime.answers import Answer
from tests.cameras import PASSWORD, camera, write_video
from tests.families import make

NUM_PICTURES = 24
RED = (200, 30, 10)
WITHOUT_OPENCV = (
    "import sys; sys.modules['cv2'] = None; from edgeprism.cli.main import main; sys.exit(main(sys.argv[1:]))"
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, a folder of pictures with other things in it, and a video."""
    root = tmp_path_factory.mktemp("stream")
    slow = {"hidden_size": 256, "num_hidden_layers": 8, "image_size": 128}  # some 30 ms a picture on one core
    for name, architecture, changes, size_px in (
        ("vit", "ViTForImageClassification", {}, 32),
        ("bare", "ViTModel", {}, 32),
        ("slow", "ViTForImageClassification", slow, 128),
        ("as_it_is", "ViTForImageClassification", {}, None),  # its processor leaves the size of a picture alone
    ):
        make(architecture, **changes).save_pretrained(root / name)
        size = {"height": size_px or 32, "width": size_px or 32}
        ViTImageProcessorPil(size=size, do_resize=size_px is not None).save_pretrained(root / name)
    make("GPT2Model").save_pretrained(root / "gpt2")
    pixels = np.random.default_rng(0).integers(0, 255, (NUM_PICTURES, 48, 64, 3), dtype=np.uint8)
    (root / "pictures").mkdir()
    for index, picture in enumerate(pixels, start=1):
        Image.fromarray(picture).save(root / "pictures" / f"img{index}.png")
    (root / "mixed").mkdir()
    for name in ("img2.png", "img10.png"):
        (root / "mixed" / name).write_bytes((root / "pictures" / name).read_bytes())
    (root / "mixed" / "img3.png").write_text("no picture")
    (root / "mixed" / "notes.txt").write_text("words")
    (root / "damaged").mkdir()
    (root / "damaged" / "img1.png").write_text("no picture")
    (root / "empty").mkdir()
    (root / "words.mp4").write_text("words\n" * 99)
    write_video(root / "red.mkv", [np.full((48, 64, 3), RED, np.uint8)] * 5)
    Image.new("RGB", (64, 48), RED).save(root / "red.png")
    write_video(root / "long.mkv", np.concatenate([pixels] * 40), code="MJPG")
    return root


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of one command line."""
    try:
        status = main(["run", *map(str, arguments)])
    except SystemExit as exc:
        status = int(exc.code or 0)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@contextmanager
def process(*arguments: object, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """The command in a process of its own, which is ended whatever happens."""
    words = [sys.executable, "-m", "edgeprism", "run", *map(str, arguments)]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # the cores are shared with other tests
    with subprocess.Popen(words, text=True, env=environment, **streams) as running:
        try:
            yield running
        finally:
            running.kill()


def wait_for(stream: IO[str] | None, text: str) -> None:
    """Until a line has it."""
    assert stream is not None
    assert any(text in line for line in stream), f"never said: {text}"


def test_a_folder_over_two_processes(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every picture has the answer that `run` gives it, in order; both devices took part, and nothing else is printed
    than one document."""
    paths = [root / "pictures" / f"img{index}.png" for index in range(1, NUM_PICTURES + 1)]
    _, out, _ = run(capsys, root / "slow", *paths, "--json")
    wanted = json.loads(out)["results"]
    options = ("--local-workers", 2, "--plan", "replica", "--json", "--results")
    status, out, _ = run(capsys, root / "slow", "--stream", root / "pictures", *options)
    document = json.loads(out)
    assert status == 0
    assert [result["input"] for result in document["results"]] == [path.name for path in paths]
    for one, other in zip(document["results"], wanted, strict=True):
        assert [label["label"] for label in one["labels"]] == [label["label"] for label in other["labels"]]
        scores = [[label["score"] for label in result["labels"]] for result in (one, other)]
        assert scores[0] == pytest.approx(scores[1], abs=1e-4)
    assert (document["ended"], document["kind"], document["task"]) == ("end", "folder", "classify")
    assert document["count"] == NUM_PICTURES == sum(document["devices"].values())
    assert set(document["devices"]) == {"0", "1"}
    for name in ("dropped", "passed_over", "rejected", "failed", "unfinished", "unreadable", "other_files"):
        assert document[name] == 0
    assert document["fps"] == pytest.approx(NUM_PICTURES / document["duration_s"], rel=0.05)
    for latencies in document["latency_ms"].values():
        values = [latencies[name] for name in ("p50", "p90", "p95", "p99", "max")]
        assert values == sorted(values) and values[0] > 0
    reader = document["reader"]
    assert reader["reading"] + reader["preparing"] + reader["waiting"] == pytest.approx(1, abs=1e-3)


def test_lines_are_those_of_run(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One a picture, then the summary; a damaged picture is named, other files are counted."""
    _, out, _ = run(capsys, root / "vit", root / "mixed" / "img2.png", root / "mixed" / "img10.png")
    lines = out.splitlines()[:2]
    status, out, err = run(capsys, root / "vit", "--stream", root / "mixed")
    assert status == 0
    assert out.splitlines()[:2] == lines
    assert lines[0].startswith("img2.png: ")
    assert ": 2 pictures in " in out
    assert "unreadable 1, other files 1" in out
    assert "p50" in out and "read to answer" in out and "device 0: 2" in out
    assert re.search(r"skipped: .*img3\.png is not a picture", err)


def test_a_model_without_a_head_embeds(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As in `run`; without --results the document has none."""
    status, out, _ = run(capsys, root / "bare", "--stream", root / "mixed", "--json", "--results")
    assert status == 0
    assert [len(result["embedding"]) for result in json.loads(out)["results"]] == [64, 64]
    _, out, _ = run(capsys, root / "bare", "--stream", root / "mixed", "--json")
    assert "results" not in json.loads(out)


def test_a_red_video_is_a_red_picture(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each frame is answered as the picture is: colours are not exchanged on the way."""
    _, out, _ = run(capsys, root / "vit", root / "red.png", "--json")
    (wanted,) = json.loads(out)["results"]
    status, out, _ = run(capsys, root / "vit", "--stream", root / "red.mkv", "--json", "--results")
    results = json.loads(out)["results"]
    assert status == 0
    assert [result["input"] for result in results] == [f"red.mkv#{index}" for index in range(1, 6)]
    for result in results:
        assert {label["label"]: label["score"] for label in result["labels"]} == pytest.approx(
            {label["label"]: label["score"] for label in wanted["labels"]}, abs=0.02
        )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("vit", "--stream", "{root}/nowhere"), "no such folder or file"),
        (("vit", "--stream", "{root}/empty"), "has no pictures in it"),
        (("vit", "--stream", "{root}/words.mp4"), "words.mp4 is no video that OpenCV can open"),
        (("vit", "--stream", "{root}/red.png"), "is one picture"),
        (("vit", "--stream", "camera:97"), "camera:97 cannot be opened"),
        (("vit", "--stream", "{root}/damaged"), "not one picture of"),
        (("gpt2", "--stream", "{root}/pictures"), "GPT2Model takes texts"),
        (("vit", "{root}/red.png", "--stream", "{root}/pictures"), "give one of the two"),
        (("vit", "--stream", "{root}/pictures", "--frames", "0"), "--frames must be at least 1"),
        (("vit", "--stream", "{root}/pictures", "--max-pending", "0"), "--max-pending must be at least 1"),
        (("vit", "--stream", "{root}/pictures", "--seconds", "0"), "--seconds must be above 0"),
        (("vit", "--stream", "{root}/pictures", "--seconds", "nan"), "--seconds must be above 0"),
        (("vit", "--stream", "{root}/pictures", "--when-full", "panic"), "drop_oldest"),
        (("vit", "--stream", "{root}/pictures", "--results"), "--results belongs to --json"),
        (("vit", "{root}/red.png", "--frames", "3"), "--frames belongs to --stream"),
        (("vit", "{root}/red.png", "--no-keep-order"), "--keep-order belongs to --stream"),
        (("vit",), "INPUT"),
    ],
)
def test_bad_input_is_one_clear_line(
    root: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], says: str
) -> None:
    """Exit status 2, nothing on standard output, and a last line that says what would do."""
    model, *rest = (argument.format(root=root) for argument in arguments)
    status, out, err = run(capsys, root / model, *rest)
    assert (status, out) == (2, "")
    assert "Traceback" not in err
    last = err.strip().splitlines()[-1]
    assert last.startswith("edgeprism: ")
    assert says in last


def test_without_opencv_a_line_says_how_to_get_it(root: Path) -> None:
    """Exit status 2; a folder needs none of it."""
    words = [sys.executable, "-c", WITHOUT_OPENCV, "run", str(root / "vit"), "--stream"]
    done = subprocess.run([*words, str(root / "red.mkv")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "edgeprism: videos and cameras need OpenCV; run: pip install 'edgeprism[video]'\n"
    done = subprocess.run([*words, str(root / "mixed")], capture_output=True, text=True, check=False)
    assert done.returncode == 0


@pytest.mark.parametrize(("when_full", "where"), [("drop_oldest", "dropped"), ("reject", "rejected")])
def test_what_a_slow_model_cannot_take_is_counted(
    root: Path, capsys: pytest.CaptureFixture[str], when_full: str, where: str
) -> None:
    """Reading goes on at its own pace; what was not answered was dropped, or refused. drop_oldest keeps the newest."""
    options = ("--max-pending", 1, "--when-full", when_full, "--json", "--results")
    status, out, _ = run(capsys, root / "slow", "--stream", root / "pictures", *options)
    document = json.loads(out)
    assert status == 0
    assert document[where] > 0
    assert document["count"] + document[where] == NUM_PICTURES
    assert len(document["results"]) == document["count"]
    names = [result["input"] for result in document["results"]]
    assert names == sorted(names, key=lambda name: int(name[3:-4]))
    if when_full == "drop_oldest":
        assert names[-1] == f"img{NUM_PICTURES}.png"
    assert not document["reader"]["is_limit"], "devices were the limit, as pictures were dropped"


def test_a_slow_model_is_waited_for(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By default a folder loses nothing; the reader waits for the device, and the numbers say so."""
    status, out, _ = run(capsys, root / "slow", "--stream", root / "pictures", "--json")
    document = json.loads(out)
    assert status == 0
    assert document["count"] == NUM_PICTURES
    assert document["reader"]["waiting"] > 0.5
    assert not document["reader"]["is_limit"]
    latency_ms = document["latency_ms"]["submit_to_answer"]
    assert latency_ms["p50"] >= 1e3 / document["fps"], "pictures that wait take longer than one that does not"


@pytest.mark.alone
def test_a_reader_that_is_the_limit_is_named(root: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Large pictures for a tiny model: devices wait for them, which is said."""
    noise = np.random.default_rng(0).integers(0, 255, (1200, 1600, 3), dtype=np.uint8)
    for index in range(6):
        Image.fromarray(noise).save(tmp_path / f"{index}.jpg")
    status, out, _ = run(capsys, root / "vit", "--stream", tmp_path)
    assert status == 0
    assert "the reader is the limit" in out
    shares = [int(share) for share in re.findall(r"(\d+)%", out.splitlines()[-2])]
    assert shares[2] <= 10 and shares[0] > shares[2]


def test_it_stops_when_told(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """After so many pictures, or seconds; what was begun is finished."""
    _, out, _ = run(capsys, root / "vit", "--stream", root / "pictures", "--frames", 5, "--json")
    document = json.loads(out)
    assert (document["count"], document["ended"]) == (5, "frames")
    _, out, _ = run(capsys, root / "slow", "--stream", root / "long.mkv", "--seconds", 0.5, "--json")
    document = json.loads(out)
    assert document["ended"] == "seconds"
    assert 0.5 <= document["duration_s"] < 10
    assert document["unfinished"] == 0 and document["count"] > 0


def test_a_picture_that_fails_is_named(root: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """With its reason, and the others are answered; when not one was, it is a failure."""
    for index in range(12):
        Image.new("RGB", (32, 32) if index == 3 else (40, 40), RED).save(tmp_path / f"{index}.png")
    status, out, err = run(capsys, root / "as_it_is", "--stream", tmp_path, "--json")
    assert status == 0
    assert (json.loads(out)["count"], json.loads(out)["failed"]) == (1, 11)
    named = [line for line in err.splitlines() if "png failed: " in line]
    assert len(named) == 5 and "40" in named[0] and "only counted" in named[-1]
    (tmp_path / "3.png").unlink()
    status, out, err = run(capsys, root / "as_it_is", "--stream", tmp_path)
    assert status == 1
    assert "failed 11" in out
    assert "no picture was answered; 0.png failed: " in err.splitlines()[-1]
    assert "Traceback" not in err


@pytest.mark.alone
def test_a_camera(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Live by default: the newest pictures are answered, old ones are dropped or passed over, and counted."""
    with camera(period_s=0.005) as address:
        status, out, err = run(capsys, root / "slow", "--stream", address, "--seconds", 1.5, "--json", "--results")
    document = json.loads(out)
    assert status == 0
    assert (document["kind"], document["ended"]) == ("live", "seconds")
    assert document["dropped"] + document["passed_over"] > document["count"] > 0
    assert document["unfinished"] == 0
    assert PASSWORD not in out + err
    assert document["source"].startswith("http://127.0.0.1:")


def test_a_camera_that_ends_is_a_failure(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With its summary, and one line that says so."""
    with camera(num_frames=200) as address:
        status, out, err = run(capsys, root / "vit", "--stream", address)
    assert status == 1
    assert " pictures in " in out
    last = err.strip().splitlines()[-1]
    assert last.startswith("edgeprism: http://127.0.0.1:") and "has ended, after" in last
    assert PASSWORD not in out + err


@pytest.mark.alone
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_camera_is_meant_to_be_interrupted(root: Path, number: int) -> None:
    """Ctrl-C, or a service manager, ends it with its summary and exit status 0."""
    with camera() as address, process(root / "vit", "--stream", address) as running:
        wait_for(running.stdout, "cam.mjpg#")
        running.send_signal(number)
        out, err = running.communicate(timeout=30)
    assert running.returncode == 0, err
    assert " pictures in " in out
    assert "read to answer" in out
    assert "Traceback" not in err


def test_a_video_that_is_broken_off(root: Path) -> None:
    """The document is printed with what was done, and the exit status says that it was not everything."""
    options = ("--local-workers", 2, "--plan", "replica", "--json")
    with process(root / "slow", "--stream", root / "long.mkv", *options) as running:
        wait_for(running.stderr, "classify long.mkv")
        time.sleep(1)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=30)
    document = json.loads(out)
    assert running.returncode == 130, err
    assert document["ended"] == "interrupted"
    assert 0 < document["count"] < 40 * NUM_PICTURES
    assert "Traceback" not in err


@pytest.mark.alone
def test_a_stream_goes_on_when_a_device_dies(root: Path) -> None:
    """Every picture is answered, and standard error says who is left out."""
    options = ("--local-workers", 2, "--plan", "replica", "--frames", 60, "--json")
    with process(root / "slow", "--stream", root / "long.mkv", *options) as running:
        wait_for(running.stderr, "classify long.mkv")
        time.sleep(0.1)  # sixty pictures take a second on a fast machine
        children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
        (child,) = [
            int(pid) for pid in children if b"edgeprism.runtime.process" in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]
        os.kill(child, signal.SIGKILL)
        out, err = running.communicate(timeout=120)
    document = json.loads(out)
    assert running.returncode == 0
    assert (document["count"], document["failed"]) == (60, 0)
    assert document["devices"]["0"] > 30
    assert "device 1" in document["left_out"][0]
    assert re.search(r"^edgeprism: device 1.*its requests go on without it", err, re.MULTILINE)


def test_a_terminal_shows_one_line_again_and_again(root: Path) -> None:
    """Frames per second, latency, devices; it steps aside for the pictures' lines."""
    ours, theirs = pty.openpty()
    with process(root / "slow", "--stream", root / "long.mkv", "--frames", 60, stdout=theirs, stderr=theirs) as running:
        os.close(theirs)
        shown = b""
        try:
            while part := os.read(ours, 4096):
                shown += part
        except OSError:  # the other end is closed
            pass
        running.wait(30)
    os.close(ours)
    assert running.returncode == 0
    text = shown.decode()
    status = re.findall(r"([0-9.]+ fps, \d+ done, p50 \d+ ms, p95 \d+ ms, devices 0, reading \d+)%?\r\x1b\[K", text)
    assert len(status) >= 2
    lines = [line.rsplit("\x1b[K", 1)[-1] for line in text.splitlines()]
    assert sum(line.startswith("long.mkv#") for line in lines) == 60


def test_no_picture_is_kept_when_it_is_through(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without the collector of cycles, which may take its time: a camera runs for months."""
    gc.collect()
    gc.disable()
    try:
        status, _, _ = run(capsys, root / "vit", "--stream", root / "pictures")
        left = sum(type(one) is Answer for one in gc.get_objects())
    finally:
        gc.enable()
    assert status == 0
    assert left <= 4


@given(st.lists(st.floats(1e-4, 1e3), min_size=1, max_size=200), st.sampled_from([50, 90, 95, 99]))
def test_percentiles_are_those_of_the_times(times_s: list[float], percent: int) -> None:
    """To 0.5 %, of the sorted list; the longest is exact."""
    latencies = Latencies()
    for seconds in times_s:
        latencies.add(seconds)
    wanted_s = sorted(times_s)[-(-len(times_s) * percent // 100) - 1]
    assert latencies.percentile_s(percent) == pytest.approx(wanted_s, rel=0.0051)
    assert latencies.max_s == max(times_s)
