"""What is installed from a built package is what runs in a checkout."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

PACKAGES = ("dstack", "kms", "replicator")
# Beside the programs, for whoever starts them in containers; no program reads them.
DEPLOYMENT = {"replicator/Dockerfile", "replicator/docker-compose.yaml"}


def test_package_holds_every_file_of_the_programs(project_root: Path, tmp_path: Path) -> None:
    """Pages and artifacts as well as modules: a checkout, in which most tests run, hides what is missing."""
    source = tmp_path / "source"
    for name in PACKAGES:
        shutil.copytree(project_root / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "requirements/product.in"):
        (source / name).parent.mkdir(exist_ok=True)
        shutil.copy(project_root / name, source / name)
    files = {
        path.relative_to(source).as_posix()
        for name in PACKAGES
        for path in (source / name).rglob("*")
        if path.is_file()
    }

    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation")
    subprocess.run([*pip, "--wheel-dir", tmp_path, source], check=True, capture_output=True)

    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.split("/")[0] in PACKAGES}
    assert packed == files - DEPLOYMENT
