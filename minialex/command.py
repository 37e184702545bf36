"""How commands read, speak and end. The library below them prints nothing: it is handed `say`, `warn` or a progress bar where it has something to tell."""

import argparse
import contextlib
import math
import os
import sys

from . import interrupts
from .errors import UserError

BROKEN_PIPE = 141      # 128 + SIGPIPE, as the shell says of a program that the signal ends; Python has it ignored


def run_command(main):
    """Runs a command's main() and exits: a UserError is its one sentence on stderr and code 2, Ctrl-C code 130, and BROKEN_PIPE where the reader
    of a pipe has gone."""
    interrupts.listen()
    try:
        code = ended(main)
    except UserError as error:
        warn(f"error: {error}")
        code = 2
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        hush(sys.stdout)
        code = BROKEN_PIPE
    interrupts.leave()      # what is yet to be joined may take a while
    try:
        sys.stderr.flush()
    except OSError:
        hush(sys.stderr)
    sys.exit(code)


def ended(main):
    """-> the exit code of main(), all of whose output was written"""
    for name, mode in ("stdin", "r"), ("stdout", "w"), ("stderr", "w"):
        stream = getattr(sys, name)
        if stream is None:      # it was closed, and the next file that is opened would take its number
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))
            if name == "stdout":
                raise UserError("standard output is closed: send it to /dev/null where nobody is to read it")
        elif mode == "w" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")      # a name that its encoding cannot hold
    try:
        code = main()
    except SystemExit as end:      # argparse's
        code = end.code
    with writing():
        sys.stdout.flush()
    return code


@contextlib.contextmanager
def writing():
    """While standard output is written: a UserError where it cannot be, BrokenPipeError where nobody reads it any more."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        hush(sys.stdout)
        raise UserError(f"standard output cannot be written ({error.strerror})") from None


def hush(stream):
    """Sends a stream to nowhere: what is left in it would fail again at the end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class Parser(argparse.ArgumentParser):
    """Refuses what is given and yet says nothing: an empty text, counts below 1, numbers that are none. zero: the counts that may be 0."""

    def __init__(self, *args, zero=(), **more):
        super().__init__(*args, **more)
        self.zero = zero

    def parse_known_args(self, args=None, namespace=None):
        found, rest = super().parse_known_args(args, namespace)
        for action in self._actions:
            given = getattr(found, action.dest, None)
            name = action.option_strings[-1] if action.option_strings else action.metavar or action.dest
            for value in [] if action.nargs == argparse.REMAINDER else given if isinstance(given, list) else [given]:
                if value == "":
                    raise UserError(f"{name} is empty: give it a value" + ", or leave it out" * bool(action.option_strings))
                least = 0 if action.dest in self.zero else 1
                if action.type is int and value is not None and value < least:
                    raise UserError(f"{name} {value}: expected at least {least}")
                if action.type is float and value is not None and not math.isfinite(value):
                    raise UserError(f"{name} {value}: expected a number")
        return found, rest

    def _print_message(self, message, file=None):      # argparse's own makes nothing of a disk that is full
        with writing() if file is sys.stdout else contextlib.suppress(OSError):
            (file or sys.stderr).write(message or "")


def parser_of(command, description, **more):
    """The parser of `minialex COMMAND`, whose usage names the command as it was called."""
    called = os.path.basename(sys.argv[0])
    name = f"minialex {command}" if called in ("minialex", "minialex.exe") else f"python -m minialex.{command}"
    return Parser(prog=name, description=description, **more)


DEVICE_HELP = "auto, cpu, cuda, numpy, or of several GPUs cuda:0, cuda:1, ... (default auto: a working GPU, else the CPU)"


def add_device(parser):
    """The options of where to compute."""
    parser.add_argument("--device", default="auto", help=DEVICE_HELP)
    parser.add_argument("--threads", type=int, help="CPU threads (default: the cores, a container's share of them, or OMP_NUM_THREADS if less)")


def say(text):
    """A line on standard output; progress bars step aside for it."""
    from tqdm import tqdm
    with writing():
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()


def warn(text):
    """A line on standard error, where that can be written; progress bars step aside for it."""
    from tqdm import tqdm
    with contextlib.suppress(OSError):
        tqdm.write(text, file=sys.stderr)
