"""The CPU device: finding a compiler, the cache of compiled kernels, threads."""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from minialex.device import cpu as module
from minialex.device import open_device
from minialex.device.cpu import CPU, FLAGS, Builder
from minialex.device.kernel import source_text, sources
from minialex.errors import UserError
from minialex.ops.relu import relu_in_place

ROOT = Path(__file__).resolve().parent.parent.parent


def test_no_compiler_is_one_sentence_that_names_the_extra(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(module.shutil, "which", lambda name: None)
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"no C\+\+ compiler.*minialex\[compiler\].*--device numpy"):
        open_device("cpu")
    assert open_device("numpy")[0].name == "numpy"


def test_zig_is_the_last_resort(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(module.shutil, "which", lambda name: None)
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: name == "ziglang")
    assert module.find_compiler()[:4] == [sys.executable, "-m", "ziglang", "c++"]


def test_a_compiler_that_does_not_run_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("MINIALEX_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", "/nowhere/c++")
    with pytest.raises(UserError, match="'/nowhere/c\\+\\+' does not run"):
        Builder(FLAGS)


def test_a_compile_error_shows_the_compilers_words(monkeypatch, tmp_path):
    monkeypatch.setenv("MINIALEX_CACHE", str(tmp_path))
    builder = Builder(FLAGS)
    with pytest.raises(UserError, match="(?s)could not compile broken.*undeclared_thing"):
        builder.build("broken", "int f() { return undeclared_thing; }")
    assert list((tmp_path / "compiled").iterdir()) == []


def test_the_cache_is_the_owners_alone(monkeypatch, tmp_path):
    monkeypatch.setenv("MINIALEX_CACHE", str(tmp_path))
    (tmp_path / "compiled").mkdir(mode=0o777)
    (tmp_path / "compiled").chmod(0o777)
    assert stat.S_IMODE(module.cache_folder().stat().st_mode) == 0o700
    monkeypatch.setattr(module.os, "getuid", lambda: 12345678)
    with pytest.raises(UserError, match="belongs to another user"):
        module.cache_folder()


def test_the_cache_sees_source_headers_flags_and_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("MINIALEX_CACHE", str(tmp_path))
    builder, other = Builder(FLAGS), Builder([*FLAGS, "-DX"])
    text = source_text(sources() / "dropout.cu")
    assert "0xD2511F53u" in text and "#include \"" not in text          # random.cuh is in it, and so in the key
    assert len({builder.path("a", text), builder.path("a", text + " "), other.path("a", text)}) == 3
    monkeypatch.setattr(module, "processor", lambda: "another one")
    assert Builder(FLAGS).path("a", text) != builder.path("a", text)


def test_two_processes_may_compile_at_once(tmp_path):
    program = "from minialex import functional as F; import numpy as np; print(F.relu(np.float32([-1, 2])).tolist())"
    environment = {**os.environ, "MINIALEX_CACHE": str(tmp_path)}
    both = [subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[0].strip() for process in both] == ["[0.0, 2.0]"] * 2
    files = [path.name for path in (tmp_path / "compiled").iterdir()]
    assert all(name.endswith(".so") for name in files) and len(files) == len(list(sources().glob("*.cu"))) + 1


def test_a_recording_splits_shares_over_threads_and_plays_again():
    device = CPU(threads=2)
    arrays = [device.array(np.linspace(-1, 1, 4096, dtype=np.float32)) for _ in range(3)]
    with device.record() as tape:
        device.launch(relu_in_place, 4, arrays[0], 4096)                  # all threads together
        for share in device.parallel(2):
            device.launch(relu_in_place, 4, arrays[1 + share], 4096)      # a thread each
    assert arrays[0].min() == -1
    seconds = np.zeros(4)
    tape.play(seconds)
    assert all((a == np.maximum(np.linspace(-1, 1, 4096, dtype=np.float32), 0)).all() for a in arrays)
    assert [command[3] for command in tape.commands] == ["relu_in_place"] * 4 and (seconds > 0).all()
    arrays[2][0] = -5
    tape.play()
    assert arrays[2][0] == 0
    with pytest.raises(ValueError, match="3 shares do not fit on 2 threads"):
        list(device.parallel(3))


def test_denormals_are_flushed_in_launches_and_kept_outside():
    device = CPU(threads=1)
    from minialex.optim import sgd_update
    w, v = sgd_update(np.float32([0]), np.float32([1e-38]), np.float32([0]), lr=0.0, momentum=0.5, device=device)
    assert v[0] == 0 and np.float32(1e-38) * np.float32(0.5) != 0


# The loops over LANES that move most bytes; those written with lanes() are vectors by their type.
HOT = {"im2col.cu": 2, "sgd.cu": 2, "adam.cu": 1, "lrn.cu": 3, "relu.cu": 2, "bias.cu": 1}


@pytest.mark.parametrize("name", HOT)
def test_the_compiler_reports_hot_loops_as_vectorised(name, tmp_path):
    builder = Builder(FLAGS)
    clang = "clang" in builder.version
    option = "-Rpass=loop-vectorize" if clang else "-fopt-info-vec-optimized"
    flags = [flag for flag in FLAGS if flag != "-shared"]      # zig keeps remarks to itself when it links
    done = subprocess.run([*builder.compiler, *flags, option, "-c", "-x", "c++", str(sources() / name), "-o", str(tmp_path / "x.o")],
                          capture_output=True, text=True, env={**os.environ, "ZIG_LOCAL_CACHE_DIR": str(tmp_path), "ZIG_GLOBAL_CACHE_DIR": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    lines = {line.split(":")[1] for line in done.stderr.splitlines() if name in line and "vectorized" in line}
    assert len(lines) >= HOT[name], done.stderr


@pytest.mark.slow
def test_zig_compiles_every_kernel_and_they_agree(tmp_path):
    pytest.importorskip("ziglang", reason="the extra minialex[compiler] is not installed")
    environment = {**os.environ, "MINIALEX_CACHE": str(tmp_path), "CXX": f"{sys.executable} -m ziglang c++ -nostdlib++"}
    done = subprocess.run([sys.executable, "-m", "minialex.gradcheck", "--device", "cpu"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "clang" in done.stdout and done.stdout.count("\nok ") == 7, done.stdout + done.stderr


@pytest.mark.slow
def test_a_wheel_carries_kernels_inside_the_package(tmp_path):
    for name in ("minialex", "kernels"):
        shutil.copytree(ROOT / name, tmp_path / "source" / name)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / "source")
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(tmp_path / "source")], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(tmp_path / "site"), str(wheel)], check=True)
    assert (tmp_path / "site/minialex/kernels/grid.cuh").exists() and not (tmp_path / "site/kernels").exists()
    program = "from minialex.device.kernel import sources; from minialex import gradcheck; print(sources()); gradcheck.main(['relu', '--device', 'cpu'])"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True,
                          env={**os.environ, "PYTHONPATH": str(tmp_path / "site"), "MINIALEX_CACHE": str(tmp_path / "cache")})
    assert str(tmp_path / "site/minialex/kernels") in done.stdout and "\nok " in done.stdout
