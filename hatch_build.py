"""Compiles the kernels of two-byte entries and of few bf16 inputs into the package, where a C compiler is there.
Without it torch does the products, slower and with more memory.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from packaging.tags import platform_tags

KERNELS = Path("core/patchbay/execute/kernels")
SOURCES = ("rows.c", "linear.c")
FLAGS = ("-O3", "-fPIC", "-std=gnu11")


class CustomBuildHook(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """`_kernels.so` beside its sources: in the wheel, then for this platform alone, or in an editable tree."""
        if self.target_name != "wheel":
            return
        self.folder = TemporaryDirectory()
        library = Path(self.folder.name) / "_kernels.so"
        reason = _compile([Path(self.root) / KERNELS / source for source in SOURCES], library)
        if reason is not None:
            self.app.display_warning(f"products are left to torch: {reason}")
        elif version == "editable":
            # In one step: a process that runs has the old one, which is another file from then on.
            beside = (Path(self.root) / KERNELS / "_kernels.so.new").resolve()
            shutil.copyfile(library, beside)
            beside.replace(beside.with_suffix(""))
        else:
            build_data["force_include"][str(library)] = "patchbay/execute/kernels/_kernels.so"
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{next(iter(platform_tags()))}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if self.target_name == "wheel":
            self.folder.cleanup()


def _compile(sources: list[Path], library: Path) -> str | None:
    """Why it could not be done. OpenMP is used and not linked: the process has torch's, and two would fight."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not sys.platform.startswith("linux"):
        return "no C compiler is found" if compiler is None else f"not tried on {sys.platform}"
    with TemporaryDirectory() as folder:
        compiled = {str(source): str(Path(folder) / source.with_suffix(".o").name) for source in sources}
        for command in (
            *([compiler, *FLAGS, "-fopenmp", "-c", source, "-o", made] for source, made in compiled.items()),
            [compiler, "-shared", *compiled.values(), "-o", str(library)],
        ):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                return f"{' '.join(command)}: {done.stderr.strip()[-500:]}"
    return None
