"""The machine's C++ compiler: found, and asked once for each text."""

import contextlib
import ctypes
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from ..errors import UserError
from ..files import user_cache

# The processor of this machine. Clang knows -march=native on ARM only from version 15 on, Apple's until 2023 not at all.
NATIVE = "-mcpu=native" if platform.machine().lower() in ("arm64", "aarch64") else "-march=native"
# NaN must be seen, so -ffinite-math-only and -ffast-math stay out; the rest is what vectorises sums and square roots.
FLAGS = ["-std=c++17", "-O3", NATIVE, "-fno-math-errno", "-fno-trapping-math", "-fassociative-math",
         "-fno-signed-zeros", "-fopenmp-simd", "-Wno-psabi", "-Wno-pass-failed", "-fno-exceptions", "-fPIC", "-shared", "-pthread"]


def find_compiler():
    """The command of a C++ compiler, as a list; none at all is a user's error."""
    if os.environ.get("CXX"):
        return os.environ["CXX"].split()
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name):
            return [shutil.which(name)]
    if importlib.util.find_spec("ziglang"):
        # Kernels need no C++ library; without this zig would first build one, for most of a minute.
        return [sys.executable, "-m", "ziglang", "c++", "-nostdlib++"]
    raise UserError("no C++ compiler found (looked for $CXX, c++, g++, clang++): install one, or `pip install 'minialex[compiler]'`; "
                    "--device numpy works without, slowly")


def cache_folder():
    """The user's own folder for compiled kernels; others may neither read nor write it."""
    folder = user_cache() / "compiled"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise not_kept(folder, error) from None
    state = folder.stat()
    if state.st_uid != os.getuid():
        raise UserError(f"{folder} belongs to another user: compiled kernels are only loaded from a folder of your own; set MINIALEX_CACHE")
    if state.st_mode & 0o077:
        folder.chmod(0o700)
    return folder


def not_kept(folder, error):
    return UserError(f"compiled kernels cannot be kept in {folder} ({error.strerror}): set MINIALEX_CACHE to a folder that can be written")


def processor():
    """What NATIVE depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.machine() + platform.processor()
    return "".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))}))


def checksum(data):
    return hashlib.sha256(data).hexdigest()[:24]


class Builder:
    """Compiles a C++ text to a shared library, once per text, flags, compiler and processor.

    A library's name ends in the checksum of its bytes: one that a full disk or a lost power supply has cut short is never loaded, as
    reading beyond its end would kill the process, but built again.
    """

    def __init__(self, flags):
        self.compiler, self.flags, self.folder = find_compiler(), flags, cache_folder()
        try:
            version = subprocess.run([*self.compiler, "--version"], capture_output=True, text=True, check=True).stdout
        except (OSError, subprocess.CalledProcessError) as error:
            raise UserError(f"the C++ compiler {' '.join(self.compiler)!r} does not run ({error}): set CXX to one that does") from None
        self.version = version.splitlines()[0] if version else ""
        self.key = "\n".join([*self.compiler, version, processor(), *flags])

    def stem(self, name, text):
        return f"{name}-{checksum((self.key + text).encode())}-"

    def find(self, name, text):
        """The path of the library, if it is there and whole, or None."""
        for path in sorted(self.folder.glob(self.stem(name, text) + "*.so")):
            with contextlib.suppress(OSError):      # another process may be removing it
                if path.stem.endswith(checksum(path.read_bytes())):
                    return path
                path.unlink()
        return None

    def build(self, name, text):
        path = self.find(name, text)
        if path is None:
            try:
                path = self.compile(name, text)
            except OSError as error:
                raise not_kept(self.folder, error) from None
        try:
            return ctypes.CDLL(str(path))
        except OSError as error:
            raise UserError(f"{path} is as it was compiled and does not load ({str(error).removeprefix(f'{path}: ')}): if programs in that folder may not "
                            "be run (a disk mounted noexec), set MINIALEX_CACHE to a folder where they may") from None

    def compile(self, name, text):
        with tempfile.TemporaryDirectory(dir=self.folder) as scratch:
            source, library = Path(scratch) / f"{name}.cpp", Path(scratch) / f"{name}.so"
            source.write_text(text, encoding="utf-8")
            done = subprocess.run([*self.compiler, *self.flags, str(source), "-o", str(library)], capture_output=True, text=True)
            if done.returncode:
                raise UserError(f"{' '.join(self.compiler)} could not compile {name}:\n{done.stderr.strip()}")
            with open(library, "rb+") as file:
                target = self.folder / f"{self.stem(name, text)}{checksum(file.read())}.so"
                os.fsync(file.fileno())
            return library.replace(target)      # another process may have been faster: both files are the same
