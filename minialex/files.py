"""Files that are written whole or not at all, locks, and where what is made once is kept."""

import contextlib
import os
import stat
from pathlib import Path
from typing import IO

from .errors import UserError, shown


def user_cache() -> Path:
    """The user's own folder for compiled kernels, listings and the built-in pictures, which need not be there yet; $MINIALEX_CACHE
    names another."""
    try:
        return Path(os.environ.get("MINIALEX_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "minialex"))
    except RuntimeError:      # of Path.home
        raise UserError("there is no home folder to keep compiled kernels and listings in (HOME is not set, and the system does not know this user): set "
                        "MINIALEX_CACHE to a folder that can be written") from None


def write_beside(path: str | os.PathLike, data: bytes | memoryview | str) -> None:
    """Writes bytes or text to `path` so that a reader, or a kill at any moment, sees the old file or the new one.

    Of a link, what it leads to is written. What is there and no file, such as a pipe or a terminal, takes the bytes as they are.
    """
    path, content = Path(path), data.encode() if isinstance(data, str) else data
    beside = None
    try:
        if not is_replaced(path):
            number = stream_to(path)
            with open(path if number is None else os.dup(number), "wb") as file:
                file.write(content)
            return
        target = Path(os.path.realpath(path))
        beside = target.with_name(f".{target.name}.{os.getpid()}")
        with open(beside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, target)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): free space or give another folder" + "; what was there before is still there" * bool(beside)) from None
    finally:
        if beside:
            with contextlib.suppress(OSError):
                beside.unlink(missing_ok=True)


def is_replaced(path: str | os.PathLike) -> bool:
    """Whether a new file takes the place of what is there: of a file, or of nothing."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode) and stream_to(path) is None
    except FileNotFoundError:
        return True


def stream_to(path: str | os.PathLike) -> int | None:
    """1 or 2 where `path` is what standard output or error leads to: opened anew, a file would be written from its beginning."""
    for number in 1, 2:
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(number), os.stat(path)):
                return number
    return None


def take_lock(file: IO | int, sentence: str) -> None:
    """Locks a file or folder, open, until it is closed or the process ends; a UserError with this sentence if another process has it."""
    try:
        import fcntl
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(sentence) from None
    except (ImportError, OSError):      # a system or a network file system without such locks
        pass


def require_place(option: str, path: str) -> None:
    """A UserError if a file cannot be written there: before the work, not after it."""
    if os.path.isdir(path):
        raise UserError(f"{option} {shown(path)}: it is a folder, so name a file in it")
    try:
        replaced = is_replaced(path)
    except OSError as error:
        raise UserError(f"{option} {shown(path)}: {error.strerror}") from None
    if not replaced:
        if not os.access(path, os.W_OK):
            raise UserError(f"{option} {shown(path)}: it cannot be written")
        return
    folder = os.path.dirname(os.path.realpath(path))
    if not os.path.isdir(folder):
        raise UserError(f"{option} {shown(path)}: there is no folder {shown(folder)}")
    if not os.access(folder, os.W_OK):
        raise UserError(f"{option} {shown(path)}: the folder {shown(folder)} cannot be written, so name a file in another")
