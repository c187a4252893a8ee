# SPDX-License-Identifier: Apache-2.0
"""The root of the container image, as its recipe has it, without a container engine: mmdebstrap and a wheel.

Debian's packages are those of the list that the recipe reads, from wherever this machine gets its own.
Parts are kept under build/image, each by a hash of what it was made of: a change of the source costs seconds.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from ensurepip import __file__ as ensurepip
from pathlib import Path

from tests.e2e.contained import ROOT
from tests.e2e.test_wheel import SOURCES

KEPT = ROOT / "build" / "image"
CODENAME = "bookworm"  # Debian 12
PACKAGES = ROOT / "packaging" / "container" / "run.packages"
PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")


def _run(*words: str | Path, timeout_s: float = 900.0) -> str:
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=timeout_s)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def read_packages(path: Path) -> list[str]:
    """Return the Debian packages of a list, as the recipe reads it."""
    return [line for line in path.read_text(encoding="ascii").splitlines() if not line.startswith("#")]


def _sources() -> list[str]:
    """Return where this machine gets Debian's packages of that version, as lines of sources.list."""
    form = "deb $(REPO_URI) $(CODENAME) $(COMPONENT)"
    found = _run(
        "apt-get", "indextargets", "--format", form, "Identifier: Packages", "Origin: Debian"
    ).splitlines()
    lines = [line for line in dict.fromkeys(found) if line.split()[2].startswith(CODENAME)]
    assert lines, f"apt on this machine knows no Debian {CODENAME}"
    return lines


def _kept(name: str, inputs: Iterable[str], make: Callable[[Path], None]) -> Path:
    """Return a directory made of these inputs, made now unless it is there."""
    digest = hashlib.sha256("\0".join(inputs).encode()).hexdigest()[:16]
    path = KEPT / f"{name}-{digest}"
    if not path.exists():
        for old in KEPT.glob(f"{name}-*"):
            shutil.rmtree(old)
        draft = KEPT / f"draft-{name}"
        shutil.rmtree(draft, ignore_errors=True)
        draft.parent.mkdir(parents=True, exist_ok=True)
        make(draft)
        draft.rename(path)
    return path


def _base() -> Path:
    """Return a root with Debian's packages."""
    packages, sources = read_packages(PACKAGES), _sources()
    without = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("man", "doc", "locale")]

    def make(draft: Path) -> None:
        words = ("--mode=root", "--variant=essential", "--quiet", f"--include={','.join(packages)}", *without)
        _run("mmdebstrap", *words, "--aptopt=APT::Install-Recommends false", CODENAME, draft, *sources)

    return _kept("base", [*packages, *sources], make)


def _wheels() -> Path:
    """Return what overlayd depends on, as wheels for this Python, which must be Debian's version."""
    assert sys.version_info[:2] == (3, 11), "Debian 12 has Python 3.11"
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = project.partition("\ndependencies = [")[2].partition("]\n")[0]
    names = [line.split('"')[1] for line in listed.splitlines() if '"' in line]
    assert "cffi>=2" in names

    def make(draft: Path) -> None:
        _run(*PIP, "wheel", "--only-binary", ":all:", "--wheel-dir", draft, *names)

    return _kept("wheels", names, make)


def _read_sources() -> list[str]:
    """Return path and content of all that the wheel is built of."""
    found = []
    for name in SOURCES:
        top = ROOT / name
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            if path.suffix in (".py", ".c", ".h", ".toml", ".md") or path.name == "LICENSE":
                found += [str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")]
    return found


def build(wheel: Path) -> Path:
    """Return the root of the image, with this wheel installed as the recipe does."""
    base, wheels = _base(), _wheels()
    (pip,) = (Path(ensurepip).parent / "_bundled").glob("pip-*.whl")

    def make(draft: Path) -> None:
        _run("cp", "--archive", "--link", base, draft)
        carried = draft / "carried"
        carried.mkdir()
        for path in (*wheels.iterdir(), wheel, pip):
            shutil.copy(path, carried)
        _run("chroot", draft, "python3", "-m", "venv", "--without-pip", "/opt/overlayd")
        install = ("install", "--quiet", "--no-index", "--find-links", "/carried", f"/carried/{wheel.name}")
        _run("chroot", draft, "/opt/overlayd/bin/python", f"/carried/{pip.name}/pip", *install)
        shutil.rmtree(carried)

    return _kept("root", [str(base), str(wheels), *_read_sources()], make)
