"""What is only on some systems: the package imports where it is not, and says in a sentence what does not run there."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from minialex.device import cpu
from minialex.device.compiler import FLAGS, NATIVE
from minialex.device.kernel import sources

# A Windows as far as this package asks. Other packages, and what Python needs to start a process, are loaded before: they know the real one.
WINDOWS = """
import builtins, contextlib, importlib, io, os, pkgutil, shutil, signal, sys
import ctypes, matplotlib.figure, numpy, PIL.Image, safetensors.numpy, tqdm
with contextlib.suppress(ModuleNotFoundError):
    import onnx.backend.base

disk = shutil.disk_usage(".")      # the real one asks Windows in another way
shutil.disk_usage = lambda path: disk
for name in "fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty":
    sys.modules[name] = None
for module, gone in {
    os: "chown chroot ctermid fchmod fchown fork forkpty getegid geteuid getgid getgroups getloadavg getpgid getpriority getuid killpg link_fd "
        "lchown mkfifo nice openpty posix_fadvise posix_fallocate pread pwrite register_at_fork sched_getaffinity sched_setaffinity "
        "setpgid setsid setuid statvfs sync sysconf uname wait3 wait4 O_CLOEXEC O_DIRECTORY O_NOFOLLOW O_NONBLOCK RTLD_GLOBAL",
    signal: "SIGALRM SIGBUS SIGCHLD SIGCONT SIGHUP SIGKILL SIGPIPE SIGQUIT SIGSTOP SIGTSTP SIGUSR1 SIGUSR2 SIGWINCH SIGXCPU alarm pthread_kill "
            "pthread_sigmask setitimer siginterrupt sigpending sigwait",
}.items():
    for name in gone.split():
        if hasattr(module, name):
            delattr(module, name)

def without_system_files(function):
    def opened(path, *arguments, **named):
        if str(path).startswith(("/proc", "/sys", "/dev")):
            raise FileNotFoundError(2, "No such file or directory", path)
        if function is os_open and os.path.isdir(path):
            raise PermissionError(13, "Permission denied", path)
        return function(path, *arguments, **named)
    return opened

os_open = os.open
os.open, builtins.open = map(without_system_files, (os.open, builtins.open))
io.open = builtins.open
sys.platform = "win32"
"""

EVERYTHING = WINDOWS + """
import minialex
for module in pkgutil.walk_packages(minialex.__path__, "minialex."):
    if "onnx" in sys.modules or module.name not in ("minialex.onnx", "minialex.run.model"):      # which are of use with it alone
        importlib.import_module(module.name)

from minialex import command, nets, predict, train
from minialex.data import __main__ as data
from minialex.run import page
page.write = lambda folder, *arguments, **named: None      # to draw takes longer than all the rest
pictures, packed, run = sys.argv[1:]
data.main(["pack", pictures, packed, "--size", "73"])
minialex.fit(packed, net=nets.build("half", 3, 64, fewer=16), device="numpy", epochs=1, batch=16, out=run, progress=False)
predict.main([run, pictures + "/val/red/00.jpg", "--device", "numpy"])
with train.Interrupts():
    pass
print("all else runs")
from minialex.device import cuda
cuda.why_not = lambda number=0: "CuPy is not installed"
try:
    minialex.open_device()
except minialex.UserError as error:
    print(error)
command.run_command(lambda: train.main(["--data", packed, "--device", "cpu"]))
"""
REFUSED = ("the CPU of a Windows machine computes only under WSL, the Linux in Windows{}; "
           "--device cuda is for NVIDIA GPUs, --device numpy works anywhere, slowly")


def test_where_the_cpu_cannot_compute_all_else_does(own_pictures, tmp_path):
    """Every module imports, pictures are packed, a small net is trained by numpy, and the one sentence is said."""
    done = subprocess.run([sys.executable, "-c", EVERYTHING, own_pictures, tmp_path / "packed", tmp_path / "run"], text=True, capture_output=True, cwd=tmp_path)
    assert "all else runs" in done.stdout, done.stderr
    assert done.returncode == 2 and "Traceback" not in done.stderr and done.stderr.endswith("error: " + REFUSED.format("") + "\n"), done.stderr
    assert done.stdout.splitlines()[-1] == REFUSED.format(", and no GPU was found: CuPy is not installed")
    assert (tmp_path / "run/last.safetensors").exists()


@pytest.mark.slow
@pytest.mark.parametrize("target", ["aarch64-macos", "x86_64-macos", "aarch64-linux-gnu"])
def test_the_cpu_device_compiles_and_links_for_other_systems(target, tmp_path):
    pytest.importorskip("ziglang", reason="the extra minialex[compiler] is not installed: nothing is compiled for other systems")
    device = cpu.CPU.__new__(cpu.CPU)      # opened, it would compile for this one
    texts = {file.stem: device.text(file) for file in sources().glob("*.cu")} | {"queue": Path(cpu.__file__).with_name("queue.cpp").read_text(encoding="utf-8")}

    def compiled(name):
        (tmp_path / f"{name}.cpp").write_text(texts[name], encoding="utf-8")
        done = subprocess.run([sys.executable, "-m", "ziglang", "c++", "-nostdlib++", "-target", target, *(flag for flag in FLAGS if flag != NATIVE), "-Werror",
                               f"{name}.cpp", "-o", f"{name}.so"], cwd=tmp_path, text=True, capture_output=True)
        return name, done.returncode, done.stderr

    with ThreadPoolExecutor(2) as pool:
        failed = [result for result in pool.map(compiled, texts) if result[1:] != (0, "")]
    assert not failed, failed
    kind = b"\xcf\xfa\xed\xfe" if target.endswith("macos") else b"\x7fELF"
    assert len(texts) > 10 and all((tmp_path / f"{name}.so").read_bytes()[:4] == kind for name in texts)
