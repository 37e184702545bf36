"""How commands read, speak and end. The library below them prints nothing: it is handed `say`, `warn` or a progress bar where it has something to tell."""

import argparse
import os
import sys

from .device import DEVICES
from .errors import UserError


def run_command(main):
    """Runs a command's main() and exits: a UserError is its one sentence on stderr and code 2, Ctrl-C code 130."""
    try:
        code = main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:      # the reader of a pipe has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code)


def parser_of(command, description, **more):
    """The parser of `minialex COMMAND`, whose usage names the command as it was called."""
    called = os.path.basename(sys.argv[0])
    name = f"minialex {command}" if called in ("minialex", "minialex.exe") else f"python -m minialex.{command}"
    return argparse.ArgumentParser(prog=name, description=description, **more)


def add_device(parser):
    """The options of where to compute."""
    parser.add_argument("--device", default="auto", choices=DEVICES, help="default auto: a working GPU, else the CPU")
    parser.add_argument("--threads", type=int, help="CPU threads (default: all cores)")


def say(text):
    """A line on standard output; progress bars step aside for it."""
    from tqdm import tqdm
    try:
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())      # or what is left would fail again at the end
        raise UserError(f"standard output cannot be written ({error.strerror}): {text}") from None


def warn(text):
    """A line on standard error; progress bars step aside for it."""
    from tqdm import tqdm
    tqdm.write(text, file=sys.stderr)
