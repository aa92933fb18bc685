"""What holds for the whole project: who may import whom, what stays light, what is documented, what is never done."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOMAINS = ("vision", "nlp", "recsys")
PACKAGES = ("shared", *DOMAINS, "scripts")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
LONGEST_FILE = 550


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported_modules(source: str) -> Iterator[str]:
    """Every module named by an import statement, wherever in the file it stands."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def forbidden_for(package: str) -> tuple[str, ...]:
    """Top-level packages that `package` must not import."""
    if package == "scripts":
        return ()
    if package == "shared":
        return (*DOMAINS, "scripts")
    return (*(domain for domain in DOMAINS if domain != package), "scripts")


def test_there_is_something_to_check():
    assert len(SOURCES) > 20
    assert {path.relative_to(ROOT).parts[0] for path in SOURCES} >= {"shared", "vision", "scripts"}


@pytest.mark.parametrize(
    ("source", "modules"),
    [
        ("", []),
        ("import keras", ["keras"]),
        ("def f():\n    from vision.data import read_idx", ["vision.data", "vision.data.read_idx"]),
    ],
)
def test_imports_are_found_at_any_depth(source, modules):
    assert list(imported_modules(source)) == modules


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_dependencies_point_one_way(path):
    package = path.relative_to(ROOT).parts[0]
    tops = {module.split(".")[0] for module in imported_modules(path.read_text(encoding="utf-8"))}
    assert not tops & set(forbidden_for(package))


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_nothing_is_unpickled_and_keras_is_keras_3(path):
    modules = set(imported_modules(path.read_text(encoding="utf-8")))
    tops = {module.split(".")[0] for module in modules}
    if path.parent.name == "peers":
        tops -= {"torch", "tf_keras"}  # what we are compared with runs in processes of its own
    if relative(path) == "recsys/legacy_keras.py":
        tops -= {"tf_keras"}  # which TensorFlow Recommenders is made for
    assert not tops & {"pickle", "dill", "joblib", "cloudpickle", "torch", "tf_keras"}
    assert not any(module.startswith("tensorflow.keras") for module in modules)
    attributes = {
        (node.value.id, node.attr)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    assert ("tf", "keras") not in attributes


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_arrays_are_never_read_with_pickle(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            assert isinstance(node.value, ast.Constant)
            assert node.value.value is False


def public_definitions(tree: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    """The module, its public functions and classes, and the public methods of those classes."""
    yield "the module", tree
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node.name, node
            if isinstance(node, ast.ClassDef):
                for method in node.body:
                    if isinstance(method, ast.FunctionDef) and not method.name.startswith("_"):
                        yield f"{node.name}.{method.name}", method


@pytest.mark.parametrize("path", [path for path in SOURCES if path.read_text(encoding="utf-8").strip()], ids=relative)
def test_what_is_public_is_documented(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert [name for name, node in public_definitions(tree) if not ast.get_docstring(node)] == []


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_files_stay_small_and_have_a_subject(path):
    assert path.read_text(encoding="utf-8").count("\n") <= LONGEST_FILE
    assert path.stem not in {"utils", "util", "helpers", "common", "misc"}


LIGHT_MODULES = "shared, shared.config, shared.runtime, shared.data, shared.artifact, shared.pipeline, shared.cli, \
shared.classification, vision, vision.classification, vision.data, vision.images, vision.presets, \
nlp, nlp.classification, nlp.ner, nlp.data, nlp.tags, nlp.metrics, nlp.presets, nlp.tokenization, \
recsys, recsys.collaborative_filtering, recsys.data, recsys.metrics, recsys.splitting, recsys.top_k, recsys.baselines, \
recsys.sequential, recsys.sequences, recsys.features, recsys.feature_encoder, recsys.feature_tables, \
recsys.retrieval, recsys.tfrs_config, recsys.ranking"


def test_light_modules_load_no_tensorflow_and_change_nothing():
    program = f"""
import logging, os, sys
import cv2  # sets LD_LIBRARY_PATH, whoever imports it
environment, handlers, level = dict(os.environ), list(logging.root.handlers), logging.root.level
import {LIGHT_MODULES}
heavy = {{"tensorflow", "keras", "keras_hub", "torch", "sklearn"}} & set(sys.modules)
assert not heavy, heavy
assert dict(os.environ) == environment
assert (list(logging.root.handlers), logging.root.level) == (handlers, level)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stderr
    assert (result.stdout, result.stderr) == ("", "")


@pytest.mark.parametrize("name", ["README.md", "CHANGELOG.md", "SECURITY.md", "pyproject.toml", "constraints.txt"])
def test_set_up_files_name_no_machine_and_no_registry(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert not [word for word in ("/root/", "/home/", "file://", "--index-url", "@ http") if word in text]
