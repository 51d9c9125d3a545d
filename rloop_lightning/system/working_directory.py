"""Class paths may refer to modules in the working directory. Nothing else is imported from there.

    search_working_directory()

A folder of problem sets may hold a `scipy.py`. Were the folder on `sys.path`, whichever library tries `import scipy`
would run that file. So the folder is searched last, and only for an import by the code that resolves class paths, or
by a module in the folder itself.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import FrameType, ModuleType

_RESOLVERS = (
    os.path.join("rloop_lightning", "system", "imports.py"),
    os.path.join("rloop_lightning", "rewards", "worker.py"),
    os.path.join("jsonargparse", "_util.py"),
)


class WorkingDirectoryFinder:
    """Finds top-level modules in a folder, for the importers that may use it.

    Args:
        folder: the absolute path.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The module's spec; None if it is not there, or if the importer is another library."""
        if path is not None or not self._serves(sys._getframe(1)):
            return None
        return PathFinder.find_spec(name, [self.folder])

    def _serves(self, frame: FrameType | None) -> bool:
        while frame is not None and _is_importlib(frame.f_code.co_filename):
            frame = frame.f_back
        importer = "" if frame is None else frame.f_code.co_filename
        return importer.endswith(_RESOLVERS) or importer.startswith(os.path.join(self.folder, ""))


def search_working_directory(folder: str | None = None) -> None:
    """Search a folder, by default the working directory, for the modules of class paths."""
    folder = os.getcwd() if folder is None else folder
    if searched_folder() != folder:
        sys.meta_path.append(WorkingDirectoryFinder(folder))


def searched_folder() -> str | None:
    """The folder that is searched; None if there is none."""
    found = [finder.folder for finder in sys.meta_path if isinstance(finder, WorkingDirectoryFinder)]
    return found[-1] if found else None


def _is_importlib(filename: str) -> bool:
    return filename.startswith("<frozen importlib") or filename.endswith(os.path.join("importlib", "__init__.py"))
