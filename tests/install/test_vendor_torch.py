"""Installing edgeprism beside a vendor's torch leaves that torch alone.

What stands for a Jetson. JetPack's torch lies in a directory of the system that pip did not write, which a virtual
environment made with --system-site-packages sees as installed. Here a directory ``vendor`` plays that part: the
environment sees it by a .pth file, before the packages that these tests run with (edgeprism and torch are taken out of
those). So pip meets the same question: a distribution torch 2.7.0a0+nv25.1 that is there already, and whether anything
asks for another one. pip gets no index, so whatever it wanted to install besides would end in an error.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.specs.configs import BERT_BASE

REPOSITORY = Path(__file__).resolve().parents[2]
VENDOR_VERSION, OLD_VERSION = "2.7.0a0+nv25.1", "2.5.0a0+nv24.8"
NOT_TAKEN_OVER = ("edgeprism", "__editable__", "torch", "~")


@dataclass(frozen=True, slots=True)
class Environment:
    """A virtual environment on a device, and the vendor's packages that it sees."""

    root: Path

    @property
    def vendor(self) -> Path:
        """Where the vendor's torch lies."""
        return self.root / "vendor"

    @property
    def own(self) -> Path:
        """Where pip installs to."""
        return self.root / "venv" / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"

    def pip(self, *words: str) -> subprocess.CompletedProcess[str]:
        """This interpreter's pip, working on that environment; without an index, and without anybody's settings."""
        return run(sys.executable, "-m", "pip", "--python", str(self._bin("python")), *words)

    def edgeprism(self, *words: str) -> subprocess.CompletedProcess[str]:
        """The command as it was installed."""
        return run(str(self._bin("edgeprism")), *words)

    def python(self, code: str) -> str:
        """What some code prints."""
        return run(str(self._bin("python")), "-c", code).stdout.strip()

    def _bin(self, name: str) -> Path:
        return self.root / "venv" / "bin" / name


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """A process that inherits no settings of pip or Python."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON"))}
    settings = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    return subprocess.run(command, capture_output=True, text=True, env={**inherited, **settings}, timeout=120)


def make_environment(root: Path, torch_version: str | None, torch_code: str = "") -> Environment:
    """An environment that has everything but edgeprism, and the vendor's torch where a version is given."""
    environment = Environment(root)
    venv.create(root / "venv", system_site_packages=True, with_pip=False)
    environment.vendor.mkdir()
    if torch_version is not None:
        write_torch(environment.vendor, torch_version, torch_code)
    others = root / "others"
    others.mkdir()
    for name in ("purelib", "platlib"):
        for path in Path(sysconfig.get_path(name)).iterdir():
            if not path.name.startswith(NOT_TAKEN_OVER) and path.suffix != ".pth" and not (others / path.name).exists():
                (others / path.name).symlink_to(path)
    (environment.own / "1-vendor.pth").write_text(f"{environment.vendor}\n")
    (environment.own / "2-others.pth").write_text(f"{others}\n")
    return environment


def write_torch(folder: Path, version: str, code: str) -> None:
    """A distribution torch as an installer leaves it: a package, and what pip reads about it."""
    about = folder / f"torch-{version}.dist-info"
    about.mkdir()
    (folder / "torch").mkdir()
    (folder / "torch" / "__init__.py").write_text(f"{code}\n__version__ = {version!r}\n")
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n")
    (about / "INSTALLER").write_text("apt\n")
    files = [f"torch/__init__.py,,\n{about.name}/METADATA,,\n{about.name}/INSTALLER,,\n{about.name}/RECORD,,\n"]
    (about / "RECORD").write_text("".join(files))


def contents(folder: Path) -> dict[str, str]:
    """sha256 of each file, but for what Python compiled."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc")
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree, built from a copy: a build leaves files where it runs."""
    copy, built = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, copy)
    shutil.copytree(REPOSITORY / "src", copy / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    options = ("--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", str(built))
    done = run(sys.executable, "-m", "pip", "wheel", *options, str(copy))
    assert done.returncode == 0, done.stderr
    (path,) = built.iterdir()
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """BERT-base without weights."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_text(json.dumps(BERT_BASE))
    return str(folder)


@pytest.mark.parametrize("version", [VENDOR_VERSION, OLD_VERSION])
def test_the_vendors_torch_stays(tmp_path: Path, wheel: Path, model: str, version: str) -> None:
    """Nothing but edgeprism is installed, torch is what it was even where it is too old to run anything, and the
    commands that need none of it work."""
    device = make_environment(tmp_path, version)
    before, had = contents(device.vendor), {path.name for path in device.own.iterdir()}
    done = device.pip("install", str(wheel))
    assert done.returncode == 0, done.stderr
    has = {path.name for path in device.own.iterdir()}
    assert has - had == {"edgeprism", f"{'-'.join(wheel.name.split('-')[:2])}.dist-info"}
    assert contents(device.vendor) == before
    assert device.python("import torch; print(torch.__version__, torch.__file__)") == (
        f"{version} {device.vendor}/torch/__init__.py"
    )
    assert device.python("from importlib.metadata import version as v; print(v('torch'))") == version
    assert device.python("import edgeprism; print(edgeprism.__file__)") == f"{device.own}/edgeprism/__init__.py"
    assert "worker" in device.edgeprism("--help").stdout
    counted = device.edgeprism("plan", model, "--plan", "sequence", "--devices", "2", "--length", "128", "--json")
    assert counted.returncode == 0, counted.stderr
    assert len(json.loads(counted.stdout)["devices"]) == 2


@pytest.mark.parametrize(("version", "is_enough"), [(VENDOR_VERSION, True), (OLD_VERSION, False)])
def test_the_extra_asks_for_torch_where_there_is_none_that_will_do(
    tmp_path: Path, wheel: Path, version: str, is_enough: bool
) -> None:
    """The other test can fail: over an older torch, `edgeprism[torch]` wants another one, and would replace it."""
    device = make_environment(tmp_path, version)
    done = device.pip("install", "--dry-run", f"{wheel}[torch]")
    assert (done.returncode == 0) == is_enough, done.stderr
    if is_enough:
        assert "Would install edgeprism" in done.stdout
        assert "torch" not in done.stdout.partition("Would install")[2]
    else:
        assert "No matching distribution found for torch>=2.6" in done.stderr


@pytest.mark.parametrize(
    ("version", "code", "says"),
    [
        (None, "", "needs torch, which is not installed"),
        (
            VENDOR_VERSION,
            "raise OSError('libcudart.so.12: cannot open shared object file')",
            "(libcudart.so.12: cannot",
        ),
        (VENDOR_VERSION, "import numpy_of_another_time", "it lacks numpy_of_another_time"),
        (OLD_VERSION, "", f"torch {OLD_VERSION} is too old; edgeprism needs 2.6 or later"),
    ],
)
def test_a_torch_that_does_not_start_is_one_line(
    tmp_path: Path, wheel: Path, model: str, version: str | None, code: str, says: str
) -> None:
    """What is wrong and what to install, status 2, no traceback; commands that need no torch go on working."""
    device = make_environment(tmp_path, version, code)
    assert device.pip("install", "--no-deps", str(wheel)).returncode == 0
    for words in (("run", model, "a text"), ("worker", "--listen", "127.0.0.1:5555")):
        done = device.edgeprism(*words)
        assert done.returncode == 2, done.stderr
        last = done.stderr.splitlines()[-1]
        assert last.startswith("edgeprism: ")
        assert says in last
        assert "pip install 'edgeprism[torch]'" in last
        assert "Traceback" not in done.stderr
    code = "import edgeprism; print(edgeprism.Plan); edgeprism.Cluster.spawn(2)"
    done = run(str(device._bin("python")), "-c", code)
    assert done.stdout.startswith("<class")
    last = done.stderr.splitlines()[-1]
    assert last.startswith("edgeprism.errors.InputError: ")
    assert says in last
    assert device.edgeprism("plan", model, "--length", "9").returncode == 0
