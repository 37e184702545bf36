"""All metadata is in setup.cfg; here is only how the kernels come into a wheel."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithKernels(build_py):
    """Copies kernels/ to minialex/kernels where a package is built. A package mapped in setup.cfg would do as much, and make an editable
    install an import hook, which a folder called minialex in the working directory hides; so it is a plain entry of the path."""

    def run(self):
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib, "minialex", "kernels")
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree("kernels", target)


setup(cmdclass={"build_py": BuildWithKernels})
