"""What the wheel says of itself."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import _erlang
import erlang

ROOT = Path(__file__).parents[2]


def test_one_version_everywhere() -> None:
    cargo = re.search(r'^version = "(.+)"', (ROOT / "Cargo.toml").read_text(), re.MULTILINE)
    application = re.search(r'{vsn, "(.+)"}', (ROOT / "erlang/py_reactor.app.src").read_text())
    assert cargo is not None
    assert application is not None
    versions = {cargo[1], application[1], _erlang.__version__}
    assert versions == {importlib.metadata.version("py_reactor")}


def test_what_is_tested_is_the_wheel() -> None:
    assert "site-packages" in str(erlang.__file__)
    assert "site-packages" in str(_erlang.__file__)


def test_it_is_typed() -> None:
    files = {str(file) for file in importlib.metadata.files("py_reactor") or ()}
    assert {"erlang/py.typed", "_erlang/__init__.pyi"} <= files
    assert not [file for file in files if file.startswith("test")]


def test_no_libpython_is_linked() -> None:
    (library,) = Path(str(_erlang.__file__)).parent.glob("_native*.so")
    needed = subprocess.run(["ldd", library], capture_output=True, text=True, check=True).stdout
    assert "libpython" not in needed


def test_a_tree_without_its_native_part_says_so() -> None:
    command = [sys.executable, "-c", "import erlang"]
    environment = {"PYTHONPATH": str(ROOT / "priv/python")}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 1
    assert "the native part of py_reactor is missing" in result.stderr.splitlines()[-1]
