"""Write a file so that it is there whole or not at all; what is no file is written into."""

import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

from vadexport.errors import InputError

_OWN_DESCRIPTORS: Final = Path("/proc/self/fd")
_MOST_LINKS: Final = 40
#: Of a temporary file's name that is the destination's; the rest is for what follows.
_NAME_BYTES: Final = 200


@contextmanager
def written_whole(destination: Path) -> Iterator[Path]:
    """Give a temporary, empty file that takes the place of `destination` when the block ends well.

    A block that raises leaves what was at `destination` as it was. Its mode is what the umask
    leaves of rw-rw-rw-. A link stays: the file that it points to is replaced. What is no regular
    file (a pipe, a terminal, `/dev/stdout`) is not replaced; the bytes are written into it.

    Raises:
        InputError: the destination cannot be written, or the block raised an OSError.
    """
    with _problems_named(destination):
        if is_stream(destination):
            with tempfile.TemporaryDirectory(prefix="vadexport-") as folder:
                temporary = Path(folder) / "whole"
                temporary.touch()
                yield temporary
                with temporary.open("rb") as file, _opened_stream(destination) as stream:
                    shutil.copyfileobj(file, stream)
        else:
            with _replacement(Path(os.path.realpath(destination))) as temporary:
                yield temporary


@contextmanager
def written_text(destination: Path) -> Iterator[IO[str]]:
    """Like `written_whole`, for text; a pipe or terminal gets each line as soon as it is written.

    Raises:
        InputError: the destination cannot be written, or the block raised an OSError.
    """
    if is_stream(destination):
        with _problems_named(destination), _opened_stream(destination) as stream:
            text = os.fdopen(os.dup(stream.fileno()), "w", encoding="utf-8", buffering=1)
            with text:
                yield text
    else:
        with written_whole(destination) as path, path.open("w", encoding="utf-8") as file:
            yield file


def is_stream(path: Path) -> bool:
    """Whether `path` is something to write into: a pipe, a device, or one of our descriptors."""
    if _own_descriptor(path) is not None:
        return True
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


@contextmanager
def _problems_named(destination: Path) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise  # whoever read it has enough, which is no fault of the destination
    except OSError as error:
        raise InputError(f"cannot write {destination}: {error.strerror or error}") from error


@contextmanager
def _replacement(place: Path) -> Iterator[Path]:
    """A temporary file beside `place`, as a rename works only within one file system.

    It is hidden, so that a folder listed meanwhile does not show it.
    """
    if place.is_dir():
        raise IsADirectoryError(f"{place} is a folder")
    if place.is_symlink():
        raise OSError("it is a link that leads to itself")
    name = os.fsdecode(os.fsencode(place.name)[:_NAME_BYTES])
    temporary = place.with_name(f".{name.removeprefix('.')}.{secrets.token_hex(8)}.tmp")
    temporary.touch(exist_ok=False)
    mode = stat.S_IMODE(temporary.stat().st_mode)
    try:
        yield temporary
        temporary.chmod(mode)  # safetensors puts a file of its own there, closed to others
        temporary.replace(place)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _opened_stream(path: Path) -> Iterator[IO[bytes]]:
    descriptor = _own_descriptor(path)
    # Opened by its name, a redirected output would be emptied, and written over from its start.
    own = os.open(path, os.O_WRONLY) if descriptor is None else os.dup(descriptor)
    with os.fdopen(own, "wb") as stream:
        yield stream


def _own_descriptor(path: Path) -> int | None:
    """The number of our descriptor that `/dev/stdout`, or a link to it, stands for."""
    own = _OWN_DESCRIPTORS.resolve()
    for _ in range(_MOST_LINKS):
        place = Path(os.path.realpath(path.parent)) / path.name
        if place.parent == own and place.name.isdecimal():
            return int(place.name)
        try:
            path = place.parent / place.readlink()
        except OSError:  # no link, or nothing there
            return None
    return None
