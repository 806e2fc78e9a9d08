"""Puts the checkout's built library beside the package, so that what pip installs works outside the checkout."""

import os
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithLibrary(build_py):
    """Takes LATENTKV_LIBRARY or build/release/lib/liblatentkv.so; without either, set the former later."""

    def run(self) -> None:
        super().run()
        built = Path(__file__).resolve().parent.parent / "build/release/lib/liblatentkv.so"
        library = Path(os.environ.get("LATENTKV_LIBRARY") or built)
        if library.is_file():
            shutil.copyfile(library, Path(self.build_lib) / "latentkv/liblatentkv.so")


setup(cmdclass={"build_py": BuildWithLibrary})
