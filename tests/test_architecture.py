"""The drawing in ARCHITECTURE.md is compared with the disk by a program that does see differences."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def check_tree(project_root: Path) -> ModuleType:
    """The program, loaded from its file."""
    spec = importlib.util.spec_from_file_location("check_tree", project_root / "scripts" / "check_tree.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_drawing_is_the_disk(check_tree: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    """Every module and folder is drawn, and nothing else."""
    code = check_tree.main()

    assert (code, capsys.readouterr().out) == (0, "")


def test_a_module_that_is_not_drawn_is_seen(check_tree: ModuleType) -> None:
    """A module on disk that the drawing lacks makes a difference."""
    drawn = check_tree.drawn_tree("```tree\ndstack/  library\n  errors.py  every error\n```\n")

    on_disk = check_tree.tree_on_disk(["dstack/errors.py", "dstack/keys/derivation.py", "docs/page.md"])

    assert on_disk - drawn == {"dstack/keys/", "dstack/keys/derivation.py", "docs/"}


def test_a_drawing_with_a_skipped_level_is_refused(check_tree: ModuleType) -> None:
    """A line deeper than its parent is an error, not a guess."""
    with pytest.raises(ValueError, match="want two blanks a level"):
        check_tree.drawn_tree("```tree\n    errors.py\n```\n")
