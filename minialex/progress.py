"""Progress bars. What takes long is handed one of these, and calls it with tqdm's arguments: `with bar(total=10) as b: b.update()`."""

import sys
import warnings
from collections.abc import Callable
from typing import Any

Bar = Callable[..., Any]


def silent(**about: Any) -> Any:
    """No bar: what the library takes unless it is given one."""
    from tqdm import tqdm
    return tqdm(**{**about, "disable": True})


def on_terminal(**about: Any) -> Any:
    """A bar where standard error is a terminal, and nothing elsewhere: that of the commands."""
    from tqdm import tqdm
    return tqdm(**{"disable": None, "leave": False, **about})


def anywhere(**about: Any) -> Any:
    """A bar in a notebook or on a terminal, and nothing elsewhere: that of `minialex.fit`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")      # without ipywidgets it says so, and draws a bar of text
        from tqdm.auto import tqdm
    return tqdm(**{"disable": False if "ipykernel" in sys.modules else None, "leave": False, "mininterval": 0.5, **about})
