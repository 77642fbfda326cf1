"""Files and folders that are there whole or not at all, whatever stops their writing: a full disk, an error, a killed process."""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from .errors import some


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """A file that is there whole or not at all.

    Yields the path of a new file beside ``path``; when the block ends well it is forced to the disk and takes the place of ``path``, in a folder that is
    made where it is not there. If writing fails, what was at ``path`` stays as it was and the new file is removed.

    Args:
        path: The file.
    """
    path = Path(path)
    fresh = beside(path, "new")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield fresh
        forced(fresh)
        fresh.rename(path)
    finally:
        fresh.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | Path, replaces: str | None = None) -> Iterator[Path]:
    """A folder that is there whole or not at all.

    Yields a new folder beside ``path``; when the block ends well it takes the place of ``path``. If writing fails, on a
    full disk for instance, what was at ``path`` stays as it was and the unfinished folder is removed.

    Args:
        path: The folder.
        replaces: A file that tells a folder which may be replaced. Default None: any may.

    Raises:
        FileExistsError: If there is a file, or a folder with other files, which would be lost.
        OSError: If it cannot be written.
    """
    path = Path(path)
    held = sorted(os.listdir(path)) if path.is_dir() else []
    if path.is_file() or (held and replaces is not None and replaces not in held):
        what = f"a folder with other files ({some(held)})" if held else "a file"
        raise FileExistsError(f"{path} is {what}, which would be lost: pass a new folder.")
    fresh = beside(path, "new")
    old = fresh.with_suffix(".old")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        recover(path)
        fresh.mkdir()
        yield fresh
        for file in fresh.rglob("*"):
            if file.is_file():
                forced(file)
        if path.exists():
            path.rename(old)
        fresh.rename(path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        number = getattr(error, "errno", None) or (errno.ENOSPC if "os error 28" in reason else errno.EIO)
        raise OSError(number, f"could not write {path}: {reason}; what was there before is unchanged") from error
    finally:
        if old.exists() and not path.exists():
            old.rename(path)
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def recover(path: Path) -> None:
    """Puts back what was moved aside, as ``atomic_folder`` does, where the process was killed before the new folder took its place."""
    if not path.exists():
        for old in path.parent.glob(f".{glob.escape(path.name)}.????????.old"):
            with contextlib.suppress(FileNotFoundError):        # another process was faster
                old.rename(path)
            return


def beside(path: Path, ending: str) -> Path:
    """A hidden name beside a path, which nobody else has."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.{ending}")


def forced(path: Path) -> None:
    """Forces a file to the disk."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Writes a JSON file that people can read."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
