"""TensorFlow Recommenders needs a process of its own, with Keras 2: its tests (`tfrs_cases.py`) run in one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).parents[2]


def run(*arguments: str, legacy: bool | None) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "TF_USE_LEGACY_KERAS"}
    environment |= {"PYTHONPATH": str(_ROOT)} | ({"TF_USE_LEGACY_KERAS": "1"} if legacy else {})
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=_ROOT, env=environment, timeout=900)


def test_the_cases_pass_in_a_process_with_keras_2() -> None:
    options = ("-q", "-n", "0", "-p", "no:cacheprovider")
    child = run("-m", "pytest", *options, "tests/recsys/tfrs_cases.py", legacy=True)
    assert child.returncode == 0, child.stdout[-4000:] + child.stderr[-2000:]
    passed = re.search(r"(\d+) passed", child.stdout)
    assert passed is not None
    assert int(passed[1]) >= 70, child.stdout[-2000:]


def test_without_the_variable_the_error_says_what_to_set() -> None:
    child = run("-c", "import recsys.tfrs", legacy=False)
    assert child.returncode == 1
    assert (
        "ImportError: recsys.tfrs needs Keras 2. Set TF_USE_LEGACY_KERAS=1 in the environment before Tens"
        in child.stderr
    )


def test_too_late_is_said_too() -> None:
    program = (
        "import os, tensorflow\ntensorflow.keras.layers\nos.environ['TF_USE_LEGACY_KERAS'] = '1'\nimport recsys.tfrs\n"
    )
    child = run("-c", program, legacy=False)
    assert child.returncode == 1
    assert "TensorFlow has already taken Keras 3 in this process. Set TF_USE_LEGACY_KERAS=1" in child.stderr


def test_importing_recsys_imports_no_tfrs() -> None:
    program = (
        "import sys, recsys, recsys.retrieval, recsys.tfrs_config; print('tensorflow_recommenders' in sys.modules)"
    )
    assert run("-c", program, legacy=False).stdout.strip() == "False"


def test_help_of_the_script_needs_no_tensorflow() -> None:
    script = str(_ROOT / "scripts" / "tfrs_retrieval.py")
    child = run("-X", "importtime", script, "train", "--help", legacy=False)
    assert child.returncode == 0
    assert " tensorflow" not in child.stderr
