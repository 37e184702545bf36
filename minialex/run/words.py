"""Sentences as Python has them: the library's name options as the command line does."""

import contextlib
import re
import sys
import warnings
from collections.abc import Iterator

from ..errors import UserError


def python_words(sentence: str) -> str:
    """Sentences name an option as the command line does (--weight-decay); a caller in Python knows it as weight_decay."""
    return re.sub(r"(?<![\w/.-])--([a-z][a-z-]*)", lambda option: option[1].replace("-", "_"), sentence)


@contextlib.contextmanager
def as_python() -> Iterator[None]:
    """A UserError inside is told in Python's words."""
    try:
        yield
    except UserError as error:
        raise UserError(python_words(str(error))) from None


def heard(sentence: str, topic: str = "warning") -> None:
    """What is not as expected, as a Python warning of the line that called into minialex."""
    if topic not in ("warning", "skipped"):
        return
    level, frame = 1, sys._getframe()
    while frame.f_back and frame.f_globals.get("__name__", "").split(".")[0] == __name__.split(".")[0]:
        level, frame = level + 1, frame.f_back
    warnings.warn(python_words(sentence), stacklevel=level)
