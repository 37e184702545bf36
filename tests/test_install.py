"""Installed in each way that pip knows, the package is found and finds its kernels."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def clone(tmp_path):
    """A copy of what a clone has for an install, in a folder called minialex."""
    for name in ("minialex", "kernels"):
        shutil.copytree(ROOT / name, tmp_path / "minialex" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / "minialex")
    return tmp_path / "minialex"


@pytest.mark.slow
@pytest.mark.parametrize("way", ["editable", "strict", "compat", "wheel", "sdist"])
def test_a_command_runs_beside_its_clone_however_it_was_installed(way, clone):
    beside = clone.parent
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", beside / "venv"], check=True)
    (site,), python = beside.glob("venv/lib/*/site-packages"), beside / "venv/bin/python"
    (site / "dependencies.pth").write_text("\n".join(path for path in sys.path if path.endswith("-packages")))      # those of this environment
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps"]
    what = ["-e", str(clone), *(["--config-settings", f"editable_mode={way}"] if way != "editable" else [])]
    if way == "wheel":
        what = [str(clone)]
    if way == "sdist":
        pytest.importorskip("setuptools", reason="setuptools is not installed: no source distribution is made")
        made = "import setuptools.build_meta as build; build.build_sdist('..')"
        subprocess.run([sys.executable, "-c", made], cwd=clone, check=True, capture_output=True)
        what = [str(*beside.glob("minialex-*.tar.gz"))]
    subprocess.run([*install, *what], check=True)

    # The folder called minialex is in the working directory, which is the first place where Python looks.
    program = "import minialex; from minialex.device.kernel import sources; print(minialex.__file__); print(sources())"
    found, kernels = subprocess.run([python, "-c", program], cwd=beside, text=True, capture_output=True, check=True).stdout.splitlines()
    if way in ("wheel", "sdist"):
        assert (found, kernels) == (str(site / "minialex/__init__.py"), str(site / "minialex/kernels"))
        assert not (site / "kernels").exists() and not (site / "tests").exists()
    else:
        assert Path(found).resolve() == clone / "minialex/__init__.py" and kernels == str(clone / "kernels")
    assert sorted(os.listdir(kernels)) == sorted(os.listdir(ROOT / "kernels"))
    for command in ("train", "selftest"):
        done = subprocess.run([python, "-m", f"minialex.{command}", "--help"], cwd=beside, text=True, capture_output=True)
        assert done.returncode == 0 and f"usage: python -m minialex.{command}" in done.stdout, done.stderr
    done = subprocess.run([python, "-m", "minialex", "gradcheck", "relu", "--device", "cpu"], cwd=beside, text=True, capture_output=True)
    assert "\nok " in done.stdout, done.stderr
