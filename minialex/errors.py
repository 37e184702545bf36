"""What a user did wrong, in one clear sentence."""

import os
import sys


class UserError(Exception):
    """A user's mistake: commands print its sentence to stderr and exit 2, without a traceback."""


def shown(path):
    """A path as a sentence may hold it: a newline or an undecodable byte in a name is escaped."""
    name = os.fspath(path)
    return name if isinstance(name, str) and name.isprintable() else repr(name)


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
