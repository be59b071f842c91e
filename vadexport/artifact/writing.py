"""Write a folder so that it is there whole or not at all."""

import contextlib
import hashlib
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from vadexport.errors import InputError

if sys.platform != "win32":
    import fcntl


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_room(folder: Path, size: int) -> None:
    """Find out whether `folder` can take `size` more bytes.

    Native code reports a full disk as it pleases, or not at all; this tells it from other faults.

    Raises:
        OSError: it cannot.
    """
    probe = folder / ".room"
    chunk = bytes(2**20)
    try:
        with probe.open("wb") as file:
            for start in range(0, size, len(chunk)):
                file.write(chunk[: size - start])
            file.flush()
            os.fsync(file.fileno())
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()


class Staging(NamedTuple):
    """Two empty folders beside the destination: what will take its place, and room to work."""

    result: Path
    work: Path


@contextmanager
def written_atomically(destination: Path) -> Iterator[Staging]:
    """Give a temporary folder beside `destination` that takes its place when the block ends well.

    A block that raises, or a process that is killed, leaves what was at `destination` as it was.
    What a killed process left beside it is removed by the next.

    Raises:
        InputError: the parent cannot be written, another process is writing the same folder, or
            `destination` exists and is no artifact or build folder.
    """
    destination = destination.absolute()
    _refuse_foreign(destination)
    partial = destination.with_name(f".{destination.name}.partial")
    old = destination.with_name(f".{destination.name}.old")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        lock = partial.with_suffix(".lock").open("w")
    except OSError as error:
        raise InputError(f"cannot write {destination}: {error.strerror}") from None
    with lock:
        _lock(lock.fileno(), Path(lock.name), destination)
        try:
            _restore(destination, old)
            shutil.rmtree(partial, ignore_errors=True)
            staging = Staging(partial / "result", partial / "work")
            for folder in (partial, *staging):
                folder.mkdir()
            yield staging
            _exchange(staging.result, destination, old)
        except OSError as error:
            raise InputError(f"cannot write {destination}: {error.strerror or error}") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            with contextlib.suppress(OSError):
                Path(lock.name).unlink()


def _refuse_foreign(destination: Path) -> None:
    """Never replace a folder that vadexport did not write."""
    if destination.is_symlink() or (destination.exists() and not destination.is_dir()):
        raise InputError(f"{destination} exists and is no folder")
    if not destination.is_dir():
        return
    from vadexport.artifact.folder import foreign_file

    foreign = foreign_file(destination)
    if foreign is not None:
        raise InputError(
            f"{destination} holds something else than a vadexport artifact ({foreign}): "
            "name a new folder, or move that away"
        )


def _lock(descriptor: int, path: Path, destination: Path) -> None:
    """Keep other builds out; on Windows two builds into one folder are not told apart."""
    if sys.platform == "win32":
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # A file that was opened before its last owner removed it locks nothing any more.
        held = os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        held = False
    if not held:
        raise InputError(f"another process is writing {destination}")


def _restore(destination: Path, old: Path) -> None:
    """Undo an exchange that was killed between its two renames."""
    if not old.exists():
        return
    if destination.exists():
        shutil.rmtree(old)
    else:
        old.rename(destination)


def _exchange(result: Path, destination: Path, old: Path) -> None:
    if destination.exists():
        destination.rename(old)
    try:
        result.rename(destination)
    except OSError:
        if old.exists():
            old.rename(destination)
        raise
    shutil.rmtree(old, ignore_errors=True)
