"""Sources of pictures: what they give, in which order and colours, and what each refuses."""

from __future__ import annotations

import itertools
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeprism.errors import InputError, SourceEnded
from edgeprism.tasks import video
from edgeprism.tasks.frames import Picture, Source, Unreadable, open_source
from tests.cameras import PASSWORD, camera, write_video

pytestmark = pytest.mark.alone

RED = (200, 30, 10)


def all_of(source: Source) -> list[Picture | Unreadable]:
    """What it gives to its end."""
    return list(source.pictures())


def pixel(picture: Picture | Unreadable) -> tuple[int, ...]:
    """One in the middle."""
    assert isinstance(picture, Picture)
    assert picture.image.mode == "RGB"
    return tuple(picture.image.getpixel((20, 20)))  # type: ignore[arg-type]


def colours(*rgb: tuple[int, int, int]) -> list[np.ndarray]:
    """A frame of each."""
    return [np.full((48, 64, 3), colour, np.uint8) for colour in rgb]


def test_a_folder_in_the_order_in_which_people_count(tmp_path: Path) -> None:
    """Pictures by their names' numbers; other files are counted, a damaged one is named, what lies deeper is left."""
    for name in ("img10.png", "img9.jpg", "IMG1.PNG", "img2"):  # one of them without a suffix
        Image.new("RGB", (40, 30), RED).save(tmp_path / name, format="PNG")
    (tmp_path / "notes.txt").write_text("words")
    (tmp_path / "film.mpg").write_bytes(b"\x00\x00\x01\xb3" + bytes(100))
    (tmp_path / "img3.png").write_bytes((tmp_path / "img2").read_bytes()[:60])
    (tmp_path / "deeper").mkdir()
    Image.new("RGB", (40, 30), RED).save(tmp_path / "deeper" / "img0.png")
    source = open_source(str(tmp_path))
    given = all_of(source)
    assert [one.name for one in given] == ["IMG1.PNG", "img2", "img3.png", "img9.jpg", "img10.png"]
    assert [type(one) for one in given] == [Picture, Picture, Unreadable, Picture, Picture]
    assert pixel(given[0]) == RED
    assert source.num_other_files == 2
    assert source.kind == "folder"


def test_a_file_that_goes_while_the_folder_is_read(tmp_path: Path) -> None:
    """It is named, and the others are read."""
    for index in range(3):
        Image.new("RGB", (40, 30), RED).save(tmp_path / f"{index}.png")
    pictures = open_source(str(tmp_path)).pictures()
    assert isinstance(next(pictures), Picture)
    (tmp_path / "1.png").unlink()
    gone, last = pictures
    assert isinstance(gone, Unreadable) and "no such picture" in gone.why
    assert last.name == "2.png"


def test_names_can_be_printed(tmp_path: Path) -> None:
    """Escape codes and what is no UTF-8 do not reach a terminal, and the picture is read all the same."""
    name = b"\xffa\x1b[31m\nb.png"
    with open(bytes(tmp_path) + b"/" + name, "wb") as file:
        Image.new("RGB", (40, 30), RED).save(file, format="PNG")
    (given,) = all_of(open_source(str(tmp_path)))
    assert given.name == "?a?[31m?b.png"
    assert pixel(given) == RED


def test_a_video_has_the_right_colours(tmp_path: Path) -> None:
    """OpenCV's blue, green, red become red, green, blue."""
    rgb = (RED, (10, 200, 30), (30, 10, 200))
    write_video(tmp_path / "film.mkv", colours(*rgb))
    source = open_source(str(tmp_path / "film.mkv"))
    given = all_of(source)
    assert [one.name for one in given] == ["film.mkv#1", "film.mkv#2", "film.mkv#3"]
    for picture, colour in zip(given, rgb, strict=True):
        assert np.abs(np.subtract(pixel(picture), colour)).max() <= 3
    assert (source.kind, source.note) == ("video", "")


def test_frames_of_other_kinds_than_three_channels() -> None:
    """Grey and with an alpha channel, as some cameras give them."""
    assert video.to_picture(np.full((4, 5), 77, np.uint8)).getpixel((0, 0)) == (77, 77, 77)
    assert video.to_picture(np.full((4, 5, 1), 77, np.uint8)).getpixel((0, 0)) == (77, 77, 77)
    assert video.to_picture(np.full((4, 5, 4), (10, 30, 200, 255), np.uint8)).getpixel((0, 0)) == (200, 30, 10)


def test_a_name_with_a_colon_is_no_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FFmpeg would ask for the protocol `a`."""
    monkeypatch.chdir(tmp_path)
    write_video("film.mkv", colours(RED))
    Path("film.mkv").rename("a:b.mkv")
    assert len(all_of(open_source("a:b.mkv"))) == 1


def test_a_video_that_was_cut_off_says_so(tmp_path: Path) -> None:
    """What is there is read; then one note."""
    noise = np.random.default_rng(0).integers(0, 255, (60, 48, 64, 3), dtype=np.uint8)
    write_video(tmp_path / "film.avi", noise, code="MJPG")
    whole = (tmp_path / "film.avi").read_bytes()
    (tmp_path / "film.avi").write_bytes(whole[: len(whole) // 2])
    source = open_source(str(tmp_path / "film.avi"))
    assert 10 < len(all_of(source)) < 40
    assert "of 60 pictures: it is damaged or cut off" in source.note


def test_a_closed_source_ends(tmp_path: Path) -> None:
    """After the picture that is being read."""
    write_video(tmp_path / "film.mkv", colours(*[RED] * 9))
    for index in range(9):
        Image.new("RGB", (40, 30), RED).save(tmp_path / f"{index}.png")
    for where in (tmp_path, tmp_path / "film.mkv"):
        source = open_source(str(where))
        pictures = source.pictures()
        next(pictures)
        source.close()
        assert list(pictures) == []
        assert source.note == ""


def test_a_camera_gives_its_newest_picture() -> None:
    """A slow reader gets no old pictures; those that it missed are counted."""
    with camera(period_s=0.02) as address:
        source = open_source(address)
        try:
            assert source.kind == "live"
            pictures = source.pictures()
            numbers = []
            for picture in itertools.islice(pictures, 4):
                time.sleep(0.3)
                numbers.append(pixel(picture)[0])
                assert isinstance(picture, Picture)
                assert time.monotonic() - picture.taken_s < 1
            steps = np.diff(numbers)
            assert min(steps) >= 3, "pictures were kept for it"
            assert source.num_passed_over >= sum(steps) - 3 * len(steps)
        finally:
            source.close()


def test_a_camera_that_ends_is_an_error() -> None:
    """It has no end of its own. Its password is told to nobody."""
    with camera(num_frames=60) as address:
        source = open_source(address)
        with pytest.raises(SourceEnded, match="has ended, after") as told:
            all_of(source)
    for text in (source.name, str(told.value)):
        assert "127.0.0.1" in text and "/cam.mjpg" in text
        assert PASSWORD not in text


def test_a_camera_that_falls_silent_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """After some seconds."""
    monkeypatch.setattr(video, "SILENT_S", 0.5)
    with camera(num_frames=60, ends=False) as address:
        source = open_source(address)
        with pytest.raises(SourceEnded, match=r"no picture for 0\.5 s"):
            all_of(source)


def test_waiting_for_a_camera_ends_when_it_is_closed() -> None:
    """At once, though the camera says nothing."""
    with camera(num_frames=60, ends=False) as address:
        source = open_source(address)
        threading.Timer(2.5, source.close).start()
        began_s = time.monotonic()
        assert all(isinstance(one, Picture) for one in source.pictures())
        assert time.monotonic() - began_s < 6


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("{root}/nowhere", "no such folder or file"),
        ("", "an empty name"),
        ("a" * 300, "no such folder or file"),
        ("{root}/empty", "has no pictures in it"),
        ("{root}/words", "has no pictures in it"),
        ("{root}/words/words.mp4", "is no video that OpenCV can open"),
        ("{root}/cat.png", "is one picture: give it without --stream"),
        ("/dev/null", "neither a folder nor a file; for a camera write camera:0"),
        ("camera:", "write camera:0"),
        ("camera:front", "write camera:0"),
        ("camera:-1", "write camera:0"),
        ("camera:97", "cannot be opened: is it plugged in"),
        ("http://someone:pw@127.0.0.1:9/cam", "http://127.0.0.1:9/cam cannot be opened"),
        ("rtsp://someone:pw@127.0.0.1:9/cam", "rtsp://127.0.0.1:9/cam cannot be opened"),
        ("http://[127.0.0.1/cam", "malformed"),
        ("nonsense://x", "cannot be opened"),
    ],
)
def test_what_is_no_source(tmp_path: Path, given: str, says: str) -> None:
    """Each is refused when it is opened, in words that name it."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "words.mp4").write_text("words\n" * 99)
    Image.new("RGB", (40, 30), RED).save(tmp_path / "cat.png")
    with pytest.raises(InputError) as told:
        open_source(given.format(root=tmp_path))
    assert says in str(told.value)
    assert "pw" not in str(told.value)
