"""What a user did wrong, in one clear sentence."""

import os
import shlex


class UserError(Exception):
    """A user's mistake: commands print its sentence to stderr and exit 2, without a traceback."""


def shown(path: str | bytes | os.PathLike) -> str:
    """A path as a sentence may hold it: a newline or an undecodable byte in a name is escaped."""
    name = os.fspath(path)
    return name if isinstance(name, str) and name.isprintable() else repr(name)


def typed(path: str | os.PathLike) -> str:
    """A path as a shell takes it, on one line."""
    name = os.fspath(path)
    name = f"./{name}" if name.startswith("-") else name      # it is no option
    if name.isprintable():
        return shlex.quote(name)
    return "$'" + "".join(c if c.isprintable() and c not in "\\'" else "".join(f"\\x{b:02x}" for b in os.fsencode(c)) for c in name) + "'"
