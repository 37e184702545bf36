"""Imported before all else by a command: what Ctrl-C does in its process.

While modules are imported the system's own way holds: the process ends, without a traceback. From `listen` on an interrupt is a
KeyboardInterrupt, and one that follows it ends the process at once, whatever that is cleaning up or waiting for.
"""

import os
import signal
import sys

_spec = getattr(sys.modules.get("__main__"), "__spec__", None)
# Whether this process is one of our commands: python -m minialex.COMMAND, or the script. A library leaves signals alone.
OURS = (getattr(_spec, "name", "").split(".")[0] == "minialex" or os.path.basename(sys.argv[0] or "") in ("minialex", "minialex.exe")) \
    and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def once(number=None, frame=None):
    """The handler of an interrupt that the process cleans up after."""
    leave()
    raise KeyboardInterrupt


def listen():
    if OURS:
        signal.signal(signal.SIGINT, once)


def leave():
    if OURS:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


leave()
