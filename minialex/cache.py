"""Where what is made once is kept: compiled kernels, listings, the built-in pictures."""

import os
from pathlib import Path


def user_cache():
    """The user's own folder for it, which need not be there yet; $MINIALEX_CACHE names another."""
    return Path(os.environ.get("MINIALEX_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "minialex"))
