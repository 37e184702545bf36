"""What a user did wrong, in one clear sentence."""

import os


class UserError(Exception):
    """A user's mistake: commands print its sentence to stderr and exit 2, without a traceback."""


def shown(path: str | bytes | os.PathLike) -> str:
    """A path as a sentence may hold it: a newline or an undecodable byte in a name is escaped."""
    name = os.fspath(path)
    return name if isinstance(name, str) and name.isprintable() else repr(name)
