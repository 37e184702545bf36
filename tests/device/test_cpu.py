"""The CPU device: finding a compiler, the cache of compiled kernels, threads."""

import ctypes
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest

from minialex import nets
from minialex.data.augment import Input
from minialex.device import base, compiler, open_device
from minialex.device import cpu as module
from minialex.device.compiler import FLAGS, Builder
from minialex.device.cpu import CPU, onednn_wheel
from minialex.device.kernel import source_text, sources
from minialex.device.reference import Reference
from minialex.errors import UserError
from minialex.gradcheck import CASES
from minialex.network import Network
from minialex.ops import layer
from minialex.ops.relu import relu_in_place


def test_no_compiler_is_one_sentence_that_names_the_extra(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(compiler.shutil, "which", lambda name: None)
    monkeypatch.setattr(compiler.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"no C\+\+ compiler.*minialex\[compiler\].*--device numpy"):
        open_device("cpu")
    assert open_device("numpy")[0].name == "numpy"


def test_zig_is_the_last_resort(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(compiler.shutil, "which", lambda name: None)
    monkeypatch.setattr(compiler.importlib.util, "find_spec", lambda name: name == "ziglang")
    assert compiler.find_compiler()[:4] == [sys.executable, "-m", "ziglang", "c++"]


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
    assert stat.S_IMODE(compiler.cache_folder().stat().st_mode) == 0o700
    monkeypatch.setattr(compiler.os, "getuid", lambda: 12345678)
    with pytest.raises(UserError, match="belongs to another user"):
        compiler.cache_folder()


def test_the_cache_sees_source_headers_flags_and_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("MINIALEX_CACHE", str(tmp_path))
    builder, other = Builder(FLAGS), Builder([*FLAGS, "-DX"])
    text = source_text(sources() / "dropout.cu")
    assert "0xD2511F53u" in text and "#include \"" not in text          # random.cuh is in it, and so in the key
    assert len({builder.stem("a", text), builder.stem("a", text + " "), other.stem("a", text)}) == 3
    monkeypatch.setattr(compiler, "processor", lambda: "another one")
    assert Builder(FLAGS).stem("a", text) != builder.stem("a", text)


def test_a_damaged_library_is_built_again(monkeypatch, tmp_path):
    monkeypatch.setenv("MINIALEX_CACHE", str(tmp_path))
    builder, text = Builder(["-shared", "-fPIC"]), 'extern "C" int f() { return 7; }'
    assert builder.find("f", text) is None and builder.build("f", text).f() == 7
    (path,) = (tmp_path / "compiled").iterdir()
    whole = path.read_bytes()
    assert builder.find("f", text) == path
    for damaged in (b"", whole[:len(whole) // 2], whole[:-1], b"\0" * len(whole), whole[:5000] + b"\1" + whole[5001:]):
        path.unlink()                    # another file, as the one in use may not be cut
        path.write_bytes(damaged)
        assert builder.find("f", text) is None and not path.exists()
        path.write_bytes(damaged)
        assert builder.build("f", text).f() == 7 and [file.read_bytes() for file in (tmp_path / "compiled").iterdir()] == [whole]


def test_a_cache_that_cannot_be_used_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setenv("MINIALEX_CACHE", str(tmp_path))
    builder, text = Builder(["-shared", "-fPIC"]), 'extern "C" int f() { return 7; }'
    builder.build("f", text)

    def refused(path):
        raise OSError(f"{path}: failed to map segment from shared object: Operation not permitted")
    monkeypatch.setattr(compiler.ctypes, "CDLL", refused)
    with pytest.raises(UserError, match=r"f-[-0-9a-f]*.so is as it was compiled and does not load \(failed to map .*\): .*noexec\), set MINIALEX_CACHE"):
        builder.build("f", text)
    shutil.rmtree(tmp_path / "compiled")
    (tmp_path / "compiled").write_text("not a folder")
    with pytest.raises(UserError, match="compiled kernels cannot be kept in .*compiled .*: set MINIALEX_CACHE"):
        builder.build("f", text)
    for name in ("MINIALEX_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)

    def unknown(uid):
        raise KeyError(uid)
    monkeypatch.setitem(sys.modules, "pwd", SimpleNamespace(getpwuid=unknown))
    with pytest.raises(UserError, match="no home folder .*: set MINIALEX_CACHE"):
        compiler.cache_folder()


@pytest.mark.slow
def test_two_processes_may_compile_at_once(tmp_path):
    program = "from minialex import functional as F; import numpy as np; print(F.relu(np.float32([-1, 2])).tolist())"
    environment = {**os.environ, "MINIALEX_CACHE": str(tmp_path)}
    both = [subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[0].strip() for process in both] == ["[0.0, 2.0]"] * 2
    files = [path.name for path in (tmp_path / "compiled").iterdir()]
    assert all(name.endswith(".so") for name in files) and len(files) == len(list(sources().glob("*.cu"))) + 1


def test_a_recording_splits_shares_over_threads_and_plays_again():
    device, count = CPU(threads=2), 1 << 18      # takes longer than any clock's grain
    arrays = [device.array(np.linspace(-1, 1, count, dtype=np.float32)) for _ in range(3)]
    with device.record() as tape:
        device.launch(relu_in_place, count // 1024, arrays[0], count)                  # all threads together
        for share in device.parallel(2):
            device.launch(relu_in_place, count // 1024, arrays[1 + share], count)      # a thread each
    assert arrays[0].min() == -1
    seconds = np.zeros(4)
    tape.play(seconds)
    assert all((a == np.maximum(np.linspace(-1, 1, count, dtype=np.float32), 0)).all() for a in arrays)
    assert [command[3] for command in tape.commands] == ["relu_in_place"] * 4 and (seconds > 0).all()
    arrays[2][0] = -5
    tape.play()
    assert arrays[2][0] == 0
    with pytest.raises(ValueError, match="3 shares do not fit on 2 threads"):
        list(device.parallel(3))


@pytest.mark.parametrize("own, files, quota", [
    ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),                                                       # in a container with a name space of its own
    ("0::/\n", {"cpu.max": "max 100000\n"}, None), ("0::/\n", {}, None), ("", {}, None), ("nonsense\n", {"cpu.max": "x y"}, None),
    ("0::/a.slice/b\n", {"a.slice/b/cpu.max": "max 100000", "a.slice/cpu.max": "300000 100000"}, 3),        # of the group around it
    ("0::/a/b\n", {"a/b/cpu.max": "50000 100000", "a/cpu.max": "200000 100000", "c/cpu.max": "1 100000"}, 0.5),
    ("0::/docker/1f\n", {"cpu.max": "250000 100000"}, 2.5), ("0::/../../x\n", {"cpu.max": "250000 100000"}, 2.5),   # paths of the system around the container
    ("4:memory:/\n3:cpu,cpuacct:/g\n", {"cpu,cpuacct/g/cpu.cfs_quota_us": "400000\n", "cpu,cpuacct/g/cpu.cfs_period_us": "100000\n"}, 4),
    ("3:cpu:/docker/1f\n0::/\n", {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "50000"}, 2),
    ("3:cpuacct,cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
    ("4:cpuset:/\n", {"cpuset/cpu.cfs_quota_us": "1", "cpuset/cpu.cfs_period_us": "100000"}, None), ("0::/\n", {"cpu.max": "100000 0"}, None)])
def test_the_quota_of_a_container(tmp_path, own, files, quota):
    for name, text in files.items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(text)
    (tmp_path / "own").write_text(own)
    assert base.cpu_quota(str(tmp_path / "own"), str(tmp_path / "groups")) == quota


@pytest.mark.parametrize("quota, asked, count", [
    (None, None, 6), (2.5, None, 3), (0.2, None, 1), (9.0, None, 6), (None, "4", 4), (None, "4,2", 4), (None, " 3 ", 3), (2.5, "4", 3), (2.5, "1", 1),
    (None, "64", 6), (None, "", 6), (None, "0", 6), (None, "-2", 6), (None, "four", 6), (None, ",2", 6), (None, "2.5", 6)])
def test_the_cores_that_threads_are_made_for(monkeypatch, quota, asked, count):
    monkeypatch.setattr(base.os, "sched_getaffinity", lambda process: set(range(6)), raising=False)
    monkeypatch.setattr(base, "cpu_quota", lambda: quota)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if asked is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert base.cores() == count


def in_threads(*works):
    """Runs each in a thread, raises what one raised, and gives what they return."""
    with ThreadPoolExecutor(len(works)) as pool:
        return [done.result(timeout=60) for done in [pool.submit(work) for work in works]]


def relu_of(device, x, times=1):
    for _ in range(times):
        y = device.array(x)
        device.launch(relu_in_place, -(-y.size // 1024), y, y.size)
        assert (y == np.maximum(x, 0)).all()


@pytest.mark.parametrize("threads", [1, 3])
def test_python_threads_may_launch_on_one_device(threads):
    device = CPU(threads)
    in_threads(*(lambda seed=seed: relu_of(device, np.random.default_rng(seed).standard_normal(3000 + seed).astype(np.float32), 300) for seed in range(3)))


def test_a_recording_is_of_its_own_thread():
    device, x, meet = CPU(threads=2), np.linspace(-1, 1, 3000, dtype=np.float32), threading.Barrier(3, timeout=60)

    def recorded(place):
        y = device.array(x)
        with device.record() as tape:
            device.place = place
            for share in device.parallel(2):
                meet.wait()      # the others are at the same place, or launching
                if share == 1:
                    device.launch(relu_in_place, 3, y, y.size)
                meet.wait()
            assert (y == x).all()
            with pytest.raises(RuntimeError, match="already under way in this thread"), device.record():
                pass
        assert list(tape.play_timed()) == [place] and (y == np.maximum(x, 0)).all() and len(tape.phases) == 1

    def launched():
        for _ in range(4):
            relu_of(device, x, 5)
            meet.wait()
        assert device.place == ""

    in_threads(lambda: recorded("one"), lambda: recorded("other"), launched)


def test_threads_that_ask_for_a_device_first_get_the_same(monkeypatch):
    meet = threading.Barrier(2, timeout=60)
    monkeypatch.setattr(layer, "_devices", {})
    monkeypatch.setattr(layer, "open_device", lambda name: (meet.wait(), [object()])[1])
    one, other = in_threads(*[lambda: layer.device_of("cpu")] * 2)
    assert one is other


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("busy", [False, True])
def test_a_forked_process_starts_threads_of_its_own(busy):
    """Also where it was forked while another thread was in the middle of a launch, whose lock nobody in the child would open."""
    device, unused, x, done = CPU(threads=3), CPU(threads=2), np.linspace(-1, 1, 1 << 20 if busy else 3000, dtype=np.float32), threading.Event()
    relu_of(device, x)

    def play():
        while not done.is_set():
            device.launch(relu_in_place, x.size // 1024, y, x.size)

    y = device.array(x)
    other = threading.Thread(target=play) if busy else None
    if other:
        other.start()
    for _ in range(4):
        child = os.fork()
        if not child:
            code = 1
            try:
                signal.alarm(30)
                relu_of(device, x, 3)
                unused.__del__()
                del device
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
    done.set()
    if other:
        other.join()
    relu_of(device, x, 3)      # and the parent goes on


def test_a_system_without_more_threads_is_one_sentence(monkeypatch):
    """When a device is opened, and in a forked process, which asks again."""
    program = """if 1:
        import resource
        from minialex.device.cpu import CPU
        from minialex.errors import UserError
        CPU(1)
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), resource.RLIM_INFINITY))      # room for the stacks of a few threads
        for attempt in range(3):
            try:
                CPU(40)
            except UserError as error:
                print(error)
        CPU(2)
    """
    if sys.platform == "linux":
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
        assert done.stdout == "the system refuses 40 threads: use a smaller --threads\n" * 3 and done.returncode == 0, done
    device = CPU(2)
    monkeypatch.setattr(device, "library", SimpleNamespace(queue_play=lambda *arguments: 0, queue_close=device.library.queue_close))
    with pytest.raises(UserError, match="the system refuses 2 threads"):
        relu_of(device, np.ones(4, np.float32))


def test_denormals_are_flushed_in_launches_and_kept_outside():
    device = CPU(threads=1)
    from minialex.optim import sgd_update
    w, v = sgd_update(np.float32([0]), np.float32([1e-38]), np.float32([0]), lr=0.0, momentum=0.5, device=device)
    assert v[0] == 0 and np.float32(1e-38) * np.float32(0.5) != 0


@pytest.fixture(params=["openblas", "onednn"])
def products(request):
    if request.param == "onednn" and onednn_wheel() is None:
        pytest.skip("the extra minialex[onednn] is not installed")
    return request.param


@pytest.mark.parametrize("m, n, k", [(1, 1, 1), (2, 3, 5), (33, 31, 17), (64, 300, 129), (129, 16, 363)])
@pytest.mark.parametrize("transpose_a, transpose_b", [(False, False), (True, False), (False, True), (True, True)])
def test_products_of_each_library(products, m, n, k, transpose_a, transpose_b):
    random, device = np.random.default_rng(m), CPU(2, products=products)

    def drawn(rows, columns):
        wide = device.array(random.standard_normal((rows, columns + 3)).astype(np.float32))
        return wide, wide[:, :columns]      # a matrix with something beside it
    (_, a), (_, b), (around, c) = drawn(*(k, m)[::1 if transpose_a else -1]), drawn(*(n, k)[::1 if transpose_b else -1]), drawn(m, n)
    truth = (a.T if transpose_a else a).astype(np.float64) @ (b.T if transpose_b else b)
    before, beside = c.copy(), around[:, n:].copy()
    device.gemm(a, b, c, transpose_a, transpose_b, accumulate=True)
    assert np.abs(c - before - truth).max() < 1e-5 * k and (around[:, n:] == beside).all()
    c[...] = np.nan
    device.gemm(a, b, c, transpose_a, transpose_b)
    assert np.abs(c - truth).max() < 1e-5 * k and (around[:, n:] == beside).all()
    a[0, 0] = np.nan
    device.gemm(a, b, c, transpose_a, transpose_b)
    assert np.isnan(c[0]).all() and not np.isnan(c[1:]).any()


def test_both_libraries_train_alike_and_are_named(products):
    net = nets.build("paper", classes=7, size=67, fewer=8)
    random, device = np.random.default_rng(0), CPU(2, products=products)
    data = random.integers(0, 256, (9, 67, 67, 3), np.uint8), random.integers(0, 7, 9).astype(np.int32), Input(67, 67).cropped(np.zeros((9, 3)))
    both = [Network(net, place, 9, input=Input(67, 67)) for place in (device, Reference(np.float64))]
    for step in range(2):
        for network in both:
            network.train_step(*data, step, 1e-3)
    for name, value in both[0].parameters.items():
        assert np.abs(value - both[1].parameters[name]).max() < 1e-5, name
    assert {"openblas": "OpenBLAS", "onednn": "oneDNN"}[products] in str(device) and device.products.split()[1][0].isdigit()


def test_onednn_keeps_to_its_thread_and_a_refused_product_is_nan(products):
    if products != "onednn":
        pytest.skip("OpenBLAS has no setting of the calling thread")
    device = CPU(1, products=products)
    _, asked, set_threads = device.product_calls
    asked, set_threads = ctypes.CFUNCTYPE(ctypes.c_int)(asked), ctypes.CFUNCTYPE(None, ctypes.c_int)(set_threads)
    before, seen = asked(), []
    a, around = device.array(np.ones((3, 3), np.float32)), device.array(np.ones((3, 5), np.float32))
    sgemm = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char)(lambda transpose: seen.append(asked()) or 1)      # 1: out of memory
    set_threads(3)
    try:
        device.product_calls[0] = module.address_of(sgemm)
        device.gemm(a, a, around[:, :3])
        assert seen == [1] and asked() == 3
    finally:
        set_threads(before)
    assert np.isnan(around[:, :3]).all() and (around[:, 3:] == 1).all()


def test_a_missing_or_broken_onednn_is_one_sentence(monkeypatch):
    monkeypatch.setattr(module, "onednn_wheel", lambda: None)
    assert module.load_products()[0].startswith("OpenBLAS")
    with pytest.raises(UserError, match=r"oneDNN is not installed: pip install 'minialex\[onednn\]'"):
        module.load_products("onednn")
    monkeypatch.setattr(module, "onednn_wheel", lambda: SimpleNamespace(name="onednn-cpu-gomp", version="1", files=[]))
    with pytest.raises(UserError, match="onednn-cpu-gomp is installed and does not load .libdnnl.so.3 is not in it.: .*pip uninstall"):
        module.load_products()
    assert module.load_products("openblas")[1] == "run_openblas"


# The loops over LANES that move most bytes, and the file that has them; those written with lanes() are vectors by their type.
HOT = {"im2col.cu": ("grid.cuh", 3), "sgd.cu": ("sgd.cu", 2), "adam.cu": ("adam.cu", 1), "relu.cu": ("relu.cu", 2), "bias.cu": ("bias.cu", 1)}


@pytest.mark.parametrize("name", HOT)
def test_the_compiler_reports_hot_loops_as_vectorised(name, tmp_path):
    builder = Builder(FLAGS)
    clang = "clang" in builder.version
    option = "-Rpass=loop-vectorize" if clang else "-fopt-info-vec-optimized"
    flags = [flag for flag in FLAGS if flag != "-shared"]      # zig keeps remarks to itself when it links
    done = subprocess.run([*builder.compiler, *flags, option, "-c", "-x", "c++", str(sources() / name), "-o", str(tmp_path / "x.o")],
                          capture_output=True, text=True, env={**os.environ, "ZIG_LOCAL_CACHE_DIR": str(tmp_path), "ZIG_GLOBAL_CACHE_DIR": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    where, least = HOT[name]
    lines = {line.split(":")[1] for line in done.stderr.splitlines() if where in line and "vectorized" in line}
    assert len(lines) >= least, done.stderr


@pytest.mark.slow
def test_zig_compiles_every_kernel_and_they_agree(tmp_path):
    pytest.importorskip("ziglang", reason="the extra minialex[compiler] is not installed")
    environment = {**os.environ, "MINIALEX_CACHE": str(tmp_path), "CXX": f"{sys.executable} -m ziglang c++ -nostdlib++"}
    done = subprocess.run([sys.executable, "-m", "minialex.gradcheck", "--device", "cpu"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "clang" in done.stdout and done.stdout.count("\nok ") == len(CASES), done.stdout + done.stderr
