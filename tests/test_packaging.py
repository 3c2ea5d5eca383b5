"""The project's own description: version, dependencies and package data agree with the tree."""

import pathlib
import re
import tomllib
from importlib import metadata

import rlhf_jax

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "rlhf_jax"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]


def _names(requirements):
    return {re.match(r"[\w-]+", requirement)[0] for requirement in requirements}


def test_one_version_everywhere():
    assert metadata.version("rlhf-jax") == rlhf_jax.__version__
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {rlhf_jax.__version__}\n" in citation


def test_the_base_needs_three_packages_and_caps_none():
    assert _names(PROJECT["dependencies"]) == {"jax", "numpy", "jaxtyping"}
    assert not any("<" in requirement for requirement in PROJECT["dependencies"])


def test_the_installed_metadata_is_this_pyproject():
    installed = [each for each in metadata.requires("rlhf-jax") if "extra ==" not in each]
    assert _names(installed) == _names(PROJECT["dependencies"])
    assert set(metadata.metadata("rlhf-jax").get_all("Provides-Extra")) == set(PROJECT["optional-dependencies"])
    (script,) = metadata.entry_points(group="console_scripts", name="rlhf-jax")
    assert script.value == PROJECT["scripts"]["rlhf-jax"]


def test_every_module_stands_in_a_package():
    folders = {file.parent for file in PACKAGE.rglob("*.py")}
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []


def test_every_data_file_is_declared():
    patterns = PYPROJECT["tool"]["setuptools"]["package-data"]["rlhf_jax"]
    declared = {file for pattern in patterns for file in PACKAGE.glob(pattern)}
    data = {file for file in PACKAGE.rglob("*") if file.is_file() and file.suffix not in {".py", ".pyc"}}
    assert {PACKAGE / "py.typed", PACKAGE / "assets/base/tokenizer.json"} <= data <= declared


def test_the_bundled_assets_are_small():
    assert sum(file.stat().st_size for file in (PACKAGE / "assets").rglob("*") if file.is_file()) <= 10 * 2**20


def test_the_licence_is_the_whole_of_apache_2():
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License\n                           Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert PROJECT["license"] == "Apache-2.0"
