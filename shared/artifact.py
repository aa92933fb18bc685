"""Saved pipelines on disk: a directory whose `pipeline.json` lists every file with its size and checksum.

A version is written whole under another name and then takes the place of the old one in one step, so a kill at any
moment leaves the old or the new version. Loading verifies all that before anything is read from it.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import glob
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

SCHEMA_VERSION = 1
MANIFEST = "pipeline.json"
_JSON_KINDS = {str: "a string", dict: "an object"}
_PACKAGES = ("triptych", "tensorflow", "keras", "keras-hub", "numpy")
# Flags of renameat2(2) on Linux.
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
# Readings of a directory that other processes keep replacing, before that is an error.
_READS = 5
# Directories that threads of this process are writing.
_in_use: set[Path] = set()


def save_artifact(path: Path, manifest: dict[str, Any], write: Callable[[Path], None]) -> None:
    """Write a directory atomically.

    Args:
        path: where the directory shall be; an older version there is replaced.
        manifest: what `pipeline.json` shall hold beside schema version, package versions and files.
        write: is called with an empty directory and writes the files into it.

    Raises:
        ValueError: where `path` is something else than a saved pipeline or an empty directory.
    """
    path = Path(os.path.abspath(path))
    check_target(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    fresh = Path(tempfile.mkdtemp(prefix=f".{path.name}.new-{os.getpid()}-", dir=path.parent))
    _in_use.add(fresh)
    try:
        fresh.chmod(0o777 & ~_umask())
        write(fresh)
        _write_manifest(fresh, manifest)
        _sync_tree(fresh)
        _put_in_place(fresh, path)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        _in_use.discard(fresh)


def load_manifest(path: Path, task: str | None = None) -> dict[str, Any]:
    """The verified `pipeline.json` of a saved pipeline.

    Raises:
        FileNotFoundError: where there is no saved pipeline at `path`.
        ValueError: for another task's directory, an unknown schema version, a manifest without `task` or `config`, or
            files that are missing, changed or outside of the directory.
    """
    _recover(Path(os.path.abspath(path)))
    manifest = _read_manifest(path)
    version = manifest.get("schema_version")
    if version != SCHEMA_VERSION:
        raise ValueError(f"{path} has schema version {version!r}; this version of Triptych reads {SCHEMA_VERSION}.")
    for key, kind in (("task", str), ("config", dict)):
        if not isinstance(manifest.get(key), kind):
            raise ValueError(
                f"{path / MANIFEST} is damaged: `{key}` must be there and {_JSON_KINDS[kind]}; it is "
                f"{manifest.get(key)!r}. Save the pipeline again."
            )
    if task is not None and manifest["task"] != task:
        raise ValueError(
            f"{path} holds a pipeline for {manifest['task']!r}, not for {task!r}. Load it with that task's class."
        )
    for name, expected in _listed_files(path, manifest).items():
        _verify(path, name, expected)
    return manifest


_Loaded = TypeVar("_Loaded")


def read_artifact(path: Path, read: Callable[[Path, dict[str, Any]], _Loaded], *, task: str | None = None) -> _Loaded:
    """What `read(path, manifest)` makes of a saved pipeline, from one version of it.

    Where a save replaces the directory meanwhile, files of both versions may have been read: then once more.

    Raises:
        FileNotFoundError, ValueError: as `load_manifest`, and what `read` raises.
    """
    for _ in range(_READS):
        before = _stamp(path)
        try:
            loaded = read(path, load_manifest(path, task))
        except (OSError, ValueError):
            if before == _stamp(path):
                raise
        else:
            if before == _stamp(path):
                return loaded
    raise ValueError(f"{path} was replaced {_READS} times while it was read. Load it when nothing saves there.")


def _stamp(path: Path) -> tuple[int, int] | None:
    """Tells one version of a saved pipeline from the next."""
    try:
        status = (path / MANIFEST).stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _read_manifest(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise FileNotFoundError(f"There is no saved pipeline at {path}. Check the path, or `save` one there first.")
    file = path / MANIFEST
    if not file.is_file():
        raise FileNotFoundError(f"{path} is no saved pipeline: it has no {MANIFEST}.")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is damaged: it is not valid JSON ({error}).") from error
    if not isinstance(manifest, dict):
        raise ValueError(f"{file} is damaged: it holds no JSON object.")
    return manifest


def _verify(directory: Path, name: str, expected: Any) -> None:
    if not isinstance(expected, dict) or not expected.keys() >= {"bytes", "sha256"}:
        raise ValueError(f"{directory / MANIFEST} is damaged: its entry for {name!r} is {expected!r}.")
    file = directory / name
    inside = not os.path.isabs(name) and file.resolve().is_relative_to(directory.resolve())
    if not inside or ".." in Path(name).parts:
        raise ValueError(f"{directory / MANIFEST} names a file outside of the directory: {name!r}.")
    if not file.is_file():
        raise ValueError(f"{directory} is incomplete: {name} is missing.")
    size = file.stat().st_size
    if size != expected["bytes"]:
        raise ValueError(f"{file} is damaged: it has {size} bytes, expected {expected['bytes']}.")
    if _sha256(file) != expected["sha256"]:
        raise ValueError(f"{file} is damaged: its checksum is not the one in {MANIFEST}.")


def _write_manifest(directory: Path, manifest: dict[str, Any]) -> None:
    files = {
        str(file.relative_to(directory)): {"bytes": file.stat().st_size, "sha256": _sha256(file)}
        for file in sorted(directory.rglob("*"))
        if file.is_file()
    }
    record = {"schema_version": SCHEMA_VERSION, **manifest, "versions": _versions(), "files": files}
    (directory / MANIFEST).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_target(path: Path) -> None:
    """Refuse a path that `save_artifact` would refuse: worth asking before a long training.

    Raises:
        ValueError: where `path` is something else than a saved pipeline or an empty directory.
    """
    path = Path(os.path.abspath(path))
    _recover(path)
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise ValueError(f"{path} is not a directory. Choose another path to save to.")
    if path.is_dir() and any(path.iterdir()):
        _check_replaceable(path)


def _check_replaceable(path: Path) -> None:
    # Replacing deletes the old directory with all that is in it, and others call files `pipeline.json` too.
    try:
        listed = _listed_files(path, _read_manifest(path))
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(
            f"{path} holds other files and no saved pipeline; nothing was overwritten. Choose another path."
        ) from error
    present = {str(file.relative_to(path)) for file in path.rglob("*") if not file.is_dir()}
    foreign = sorted(present - {MANIFEST, *listed})
    if foreign:
        raise ValueError(
            f"{path} holds files that are not of its saved pipeline ({', '.join(foreign[:3])}); nothing was "
            "overwritten. Move them away, or choose another path."
        )


def _listed_files(path: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """The table of files in the `manifest` of `path`."""
    files = manifest.get("files")
    if not isinstance(files, dict):
        raise ValueError(f"{path / MANIFEST} is damaged: it has no table of files.")
    return files


def _put_in_place(fresh: Path, path: Path) -> None:
    """Let `fresh` take the place of `path`, and the old version that of `fresh`."""
    if not path.exists():
        fresh.rename(path)
    elif not _exchange(fresh, path):
        # Two renames: between them there is no `path`, and `_recover` puts the old version back. The old version
        # is deleted under the third name, which is never recovered: a kill can leave half of it.
        aside = _aside(path)
        for attempt in range(1, _READS + 1):
            path.rename(aside)
            try:
                fresh.rename(path)
                break
            except OSError as error:
                # Whoever loads meanwhile has put the old version back.
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or attempt == _READS:
                    raise
        aside.rename(fresh)
    _sync(path.parent)


@functools.cache
def _renameat2() -> Any:
    if platform.system() != "Linux":
        return None
    return getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two directories in one step; False where the system or the file system cannot."""
    rename = _renameat2()
    if rename is None:
        return False
    names = (os.fsencode(first), os.fsencode(second))
    if rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], ctypes.c_uint(_RENAME_EXCHANGE)) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(second))


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def _recover(path: Path) -> None:
    """Put the old version back where a save was killed between two renames."""
    aside = _aside(path)
    if aside.is_dir() and not path.exists():
        try:
            aside.rename(path)
        except OSError:
            # A save that was between its renames has gone on.
            if not path.exists():
                raise


def _remove_leftovers(path: Path) -> None:
    if path.exists():
        shutil.rmtree(_aside(path), ignore_errors=True)
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.new-*"):
        if not _is_being_written(leftover):
            shutil.rmtree(leftover, ignore_errors=True)


def _is_being_written(fresh: Path) -> bool:
    """Whether the process whose number is in the name, `.NAME.new-PID-RANDOM`, may still be writing there."""
    pid, dash, _ = fresh.name.rpartition(".new-")[2].partition("-")
    if not dash or not pid.isdecimal():
        return False
    if int(pid) == os.getpid():
        # In a container each run may get the number of the one that was killed.
        return fresh in _in_use
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_tree(directory: Path) -> None:
    for item in directory.rglob("*"):
        _sync(item)
    _sync(directory)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
