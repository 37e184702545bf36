"""What is ready for a machine with a GPU: the tests that are for it alone, and its measurements as one command, run here over the stand-in."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


# ---- The tests that need a GPU ----

def test_the_marker_is_for_real_gpus(request):
    """Of the tests of this run: those on cuda have it, and none on a stand-in."""
    for item in request.session.items:
        marked, asked = item.get_closest_marker("gpu"), getattr(item, "callspec", None)
        assert bool(marked) == bool(asked and "cuda" in (asked.params.get(name) for name in ("device", "place"))), item.nodeid
        assert not marked or not {"gpu", "gpu_in_processes"} & set(item.fixturenames), item.nodeid


@pytest.mark.slow
def test_without_a_gpu_all_of_them_are_skipped_for_that():
    """The others can't be: conftest.py fails what is skipped for that and has no marker."""
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-m", "gpu and not slow", "-p", "no:cacheprovider", "-W", "ignore"], cwd=ROOT,
                          capture_output=True, text=True)
    skipped, = re.findall(r"^SKIPPED \[(\d+)\] tests/conftest.py: no cuda here", done.stdout, re.M)
    others = sum(int(count) for count in re.findall(r"^SKIPPED \[(\d+)\] (?!tests/conftest)", done.stdout, re.M))
    assert re.search(rf"^{int(skipped) + others} skipped, \d+ deselected", done.stdout, re.M) and int(skipped) > 800, done.stdout[-2000:]
