from __future__ import annotations

import json
import os
import random
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import shared.artifact as artifact
from shared.artifact import MANIFEST, check_target, load_manifest, read_artifact, save_artifact

ROOT = Path(__file__).parents[2]
NAMES = ("model.weights", "labels.vocab.txt", "parts/head")


def save(path: Path, word: str = "old") -> None:
    """A pipeline of three files, each of which says which version it is of."""

    def write(directory: Path) -> None:
        (directory / "parts").mkdir()
        for name in NAMES:
            (directory / name).write_text(word * 100, encoding="utf-8")

    save_artifact(path, {"task": "toy", "config": {}, "word": word}, write)


def assert_whole(path: Path) -> str:
    """The version at `path`, all of whose files are of that version."""
    word = load_manifest(path, task="toy")["word"]
    for name in NAMES:
        assert (path / name).read_text(encoding="utf-8") == word * 100
    return word


def change_manifest(path: Path, change: Any) -> None:
    manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    change(manifest)
    (path / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


# Saving and loading.


@pytest.mark.parametrize("name", ["model", "a directory", "model[1]", "модель", "deep/er/model"])
def test_what_is_saved_is_loaded(tmp_path, name):
    save(tmp_path / name, "one")
    assert assert_whole(tmp_path / name) == "one"
    save(tmp_path / name, "two")
    assert assert_whole(tmp_path / name) == "two"
    assert [entry.name for entry in (tmp_path / name).parent.iterdir()] == [Path(name).name]


def test_the_manifest_lists_files_and_versions(tmp_path):
    save(tmp_path / "model")
    manifest = json.loads((tmp_path / "model" / MANIFEST).read_text(encoding="utf-8"))
    assert manifest["schema_version"] == artifact.SCHEMA_VERSION
    assert set(manifest["files"]) == set(NAMES)
    assert manifest["files"]["parts/head"]["bytes"] == 300
    assert {"python", "numpy", "keras"} <= set(manifest["versions"])


def test_an_artifact_without_files(tmp_path):
    save_artifact(tmp_path / "model", {"task": "toy", "config": {}}, lambda directory: None)
    assert load_manifest(tmp_path / "model")["files"] == {}


def test_an_empty_directory_is_taken(tmp_path):
    (tmp_path / "model").mkdir()
    save(tmp_path / "model")
    assert assert_whole(tmp_path / "model") == "old"


def test_a_relative_path_is_taken_from_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(Path("model"))
    assert assert_whole(Path("model")) == assert_whole(tmp_path / "model") == "old"


def test_permissions_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        save(tmp_path / "model")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "model").stat().st_mode) == 0o750


def test_an_error_while_writing_leaves_the_old_version(tmp_path):
    def write(directory: Path) -> None:
        (directory / "model.weights").write_text("half")
        raise OSError("disk full")

    save(tmp_path / "model")
    with pytest.raises(OSError, match="disk full"):
        save_artifact(tmp_path / "model", {"task": "toy", "config": {}, "word": "new"}, write)
    assert assert_whole(tmp_path / "model") == "old"
    assert os.listdir(tmp_path) == ["model"]


# What is refused.


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no saved pipeline at .*nowhere"):
        load_manifest(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty is no saved pipeline: it has no pipeline.json"):
        load_manifest(tmp_path / "empty")


def test_another_task_is_named(tmp_path):
    save(tmp_path / "model")
    with pytest.raises(ValueError, match="for 'toy', not for 'translation'"):
        load_manifest(tmp_path / "model", task="translation")


@pytest.mark.parametrize("version", [None, 0, 2, "1", [1]])
def test_unknown_schema_versions(tmp_path, version):
    save(tmp_path / "model")
    change_manifest(tmp_path / "model", lambda manifest: manifest.update(schema_version=version))
    with pytest.raises(ValueError, match=r"has schema version .* reads 1"):
        load_manifest(tmp_path / "model")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"schema_version": 1}', "\udcff"])
def test_damaged_manifests(tmp_path, text):
    save(tmp_path / "model")
    (tmp_path / "model" / MANIFEST).write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(ValueError, match=r"pipeline.json is damaged"):
        load_manifest(tmp_path / "model")


@pytest.mark.parametrize(("key", "wrong"), [("task", 3), ("task", None), ("config", []), ("config", None)])
def test_manifests_without_their_keys(tmp_path, key, wrong):
    save(tmp_path / "model")
    change_manifest(tmp_path / "model", lambda manifest: manifest.update({key: wrong}))
    with pytest.raises(ValueError, match=f"pipeline.json is damaged: `{key}` must be there"):
        load_manifest(tmp_path / "model")
    change_manifest(tmp_path / "model", lambda manifest: manifest.pop(key))
    with pytest.raises(ValueError, match=f"pipeline.json is damaged: `{key}` must be there"):
        load_manifest(tmp_path / "model", task="toy")


@pytest.mark.parametrize("entry", [None, {}, 300, {"bytes": 300}, {"sha256": "0"}])
def test_damaged_entries(tmp_path, entry):
    save(tmp_path / "model")
    change_manifest(tmp_path / "model", lambda manifest: manifest["files"].update({"model.weights": entry}))
    with pytest.raises(ValueError, match=r"damaged: its entry for 'model.weights'"):
        load_manifest(tmp_path / "model")


@pytest.mark.parametrize("name", NAMES)
def test_changed_cut_and_missing_files(tmp_path, name):
    save(tmp_path / "model")
    file = tmp_path / "model" / name
    file.write_text("new" * 100)
    with pytest.raises(ValueError, match=f"{name} is damaged: its checksum"):
        load_manifest(tmp_path / "model")
    file.write_text("old" * 99)
    with pytest.raises(ValueError, match=f"{name} is damaged: it has 297 bytes, expected 300"):
        load_manifest(tmp_path / "model")
    file.unlink()
    with pytest.raises(ValueError, match=f"incomplete: {name} is missing"):
        load_manifest(tmp_path / "model")


@pytest.mark.parametrize("name", ["../secret", "parts/../../secret", "parts/../labels.vocab.txt", "{outside}/secret"])
def test_names_that_lead_outside(tmp_path, name):
    save(tmp_path / "model")
    (tmp_path / "secret").write_text("old" * 100)
    name = name.format(outside=tmp_path)
    change_manifest(
        tmp_path / "model", lambda manifest: manifest["files"].update({name: manifest["files"]["model.weights"]})
    )
    with pytest.raises(ValueError, match="names a file outside"):
        load_manifest(tmp_path / "model")


@pytest.mark.parametrize("linked", ["model.weights", "parts"])
def test_links_that_lead_outside(tmp_path, linked):
    save(tmp_path / "model")
    (tmp_path / "model" / linked).rename(tmp_path / "elsewhere")
    (tmp_path / "model" / linked).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="names a file outside"):
        load_manifest(tmp_path / "model")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"notes.txt": "mine"}, "holds other files and no saved pipeline"),
        ({"sub/notes.txt": "mine"}, "holds other files and no saved pipeline"),
        ({MANIFEST: "{}"}, "holds other files and no saved pipeline"),
        ({MANIFEST: '{"name": "a build pipeline"}', "main.py": "mine"}, "holds other files and no saved pipeline"),
        ({MANIFEST: "not json", "main.py": "mine"}, "holds other files and no saved pipeline"),
    ],
)
def test_foreign_directories_are_not_overwritten(tmp_path, files, message):
    for name, text in files.items():
        (tmp_path / "model" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "model" / name).write_text(text)
    for attempt in (save, check_target):
        with pytest.raises(ValueError, match=message):
            attempt(tmp_path / "model")
    assert os.listdir(tmp_path) == ["model"]
    for name, text in files.items():
        assert (tmp_path / "model" / name).read_text() == text


def test_files_that_were_added_to_a_saved_pipeline_are_not_deleted(tmp_path):
    save(tmp_path / "model")
    (tmp_path / "model" / "parts" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"not of its saved pipeline \(parts/notes.txt\).*Move them away"):
        save(tmp_path / "model", "new")
    assert assert_whole(tmp_path / "model") == "old"
    (tmp_path / "model" / "parts" / "notes.txt").unlink()
    save(tmp_path / "model", "new")
    assert assert_whole(tmp_path / "model") == "new"


def test_a_damaged_version_may_be_replaced(tmp_path):
    save(tmp_path / "model")
    (tmp_path / "model" / "model.weights").unlink()
    save(tmp_path / "model", "new")
    assert assert_whole(tmp_path / "model") == "new"


def test_files_and_links_in_the_way(tmp_path):
    (tmp_path / "file").write_text("mine")
    save(tmp_path / "model")
    (tmp_path / "link").symlink_to(tmp_path / "model")
    for name in ("file", "link"):
        with pytest.raises(ValueError, match=f"{name} is not a directory"):
            save(tmp_path / name, "new")
    assert (tmp_path / "file").read_text() == "mine"
    assert assert_whole(tmp_path / "link") == "old"


# Kills.


def test_without_exchange_two_renames_do(tmp_path, monkeypatch):
    monkeypatch.setattr(artifact, "_renameat2", lambda: None)
    save(tmp_path / "model", "one")
    save(tmp_path / "model", "two")
    assert assert_whole(tmp_path / "model") == "two"
    assert os.listdir(tmp_path) == ["model"]


def test_a_load_between_two_renames_does_not_make_a_save_fail(tmp_path, monkeypatch):
    monkeypatch.setattr(artifact, "_renameat2", lambda: None)
    save(tmp_path / "model", "one")
    rename, loads = Path.rename, []

    def renamed(self: Path, target: Path) -> Path:
        result = rename(self, target)
        if Path(target).name == ".model.old" and not loads:
            loads.append(assert_whole(tmp_path / "model"))
        return result

    monkeypatch.setattr(Path, "rename", renamed)
    save(tmp_path / "model", "two")
    assert loads == ["one"]
    assert assert_whole(tmp_path / "model") == "two"
    assert os.listdir(tmp_path) == ["model"]


def test_a_kill_between_two_renames_is_made_good_by_loading_and_by_saving(tmp_path):
    save(tmp_path / "model", "one")
    for recover in (assert_whole, save):
        (tmp_path / "model").rename(tmp_path / ".model.old")
        recover(tmp_path / "model")
        assert os.listdir(tmp_path) == ["model"]


def test_leftovers_of_other_paths_are_left_alone(tmp_path):
    (tmp_path / ".model1.new-abc").mkdir()
    (tmp_path / ".other.old").mkdir()
    save(tmp_path / "model[1]")
    save(tmp_path / "model[1]", "new")
    assert sorted(os.listdir(tmp_path)) == [".model1.new-abc", ".other.old", "model[1]"]


def test_what_another_running_process_writes_is_left_alone(tmp_path):
    running, dead = (subprocess.Popen(["sleep", "60"]) for _ in range(2))
    try:
        dead.kill()
        dead.wait()
        for pid in (running.pid, dead.pid):
            (tmp_path / f".model.new-{pid}-abc").mkdir()
        (tmp_path / ".model.new-of_an_older_version").mkdir()
        (tmp_path / f".model.new-{os.getpid()}-abc").mkdir()  # of an earlier process of our number
        save(tmp_path / "model")
        assert sorted(os.listdir(tmp_path)) == [f".model.new-{running.pid}-abc", "model"]
    finally:
        running.kill()
        running.wait()
    save(tmp_path / "model")
    assert os.listdir(tmp_path) == ["model"]


def test_what_another_thread_writes_is_left_alone(tmp_path):
    def write(directory: Path) -> None:
        save(tmp_path / "model", "meanwhile")
        (directory / "late").write_text("late")

    save_artifact(tmp_path / "model", {"task": "toy", "config": {}}, write)
    assert set(load_manifest(tmp_path / "model")["files"]) == {"late"}
    assert os.listdir(tmp_path) == ["model"]


# Forks before each operation on the file system, kills the fork there, and looks at what it left. Runs in a process of
# its own, since one with TensorFlow's threads should not be forked.
_KILLS = """
import os, shutil, signal, sys
from pathlib import Path
import shared.artifact as artifact
from tests.shared import test_artifact as tests

OPERATIONS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "os.scandir", "os.listdir"}
where, mode = Path(sys.argv[1]), sys.argv[2]
os.fsync = lambda descriptor: None  # a kill loses nothing that was written
if mode == "two renames":
    artifact._renameat2 = lambda: None

def killed_before(point, path):
    seen = 0
    def hook(event, arguments):
        nonlocal seen
        if event in OPERATIONS:
            seen += 1
            if seen > point:
                os.kill(os.getpid(), signal.SIGKILL)
    pid = os.fork()
    if pid == 0:
        sys.addaudithook(hook)
        tests.save(path, "new")
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0

found, alive = [], False
for point in range(500):
    path = where / str(point) / "model"
    path.parent.mkdir()
    if mode != "first":
        tests.save(path, "old")
    if not killed_before(point, path):
        break
    try:
        found.append(tests.assert_whole(path))
    except FileNotFoundError:
        found.append("none")
    tests.save(path, "newer")
    assert tests.assert_whole(path) == "newer"
    assert os.listdir(path.parent) == ["model"], os.listdir(path.parent)
    shutil.rmtree(path.parent)
print(" ".join(found))
"""


def run_child(program: str, *arguments: str) -> str:
    child = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert child.returncode == 0, child.stderr
    return child.stdout


@pytest.mark.parametrize(("mode", "before"), [("first", "none"), ("exchange", "old"), ("two renames", "old")])
def test_killed_at_any_point_the_old_or_the_new_version_loads(tmp_path, mode, before):
    found = run_child(_KILLS, str(tmp_path), mode).split()
    assert set(found) <= {before, "new"}
    # First only the old version, from one point on only the new one; and there were points enough.
    assert found == sorted(found, key=lambda word: word == "new")
    assert found.count(before) > 15
    if mode == "exchange":
        assert found.count("new") > 3


_SAVING_FOR_EVER = """
import sys
from pathlib import Path
from tests.shared import test_artifact as tests
print("ready", flush=True)
for number in range(10**6):
    tests.save(Path(sys.argv[1]), f"version {number}")
"""


def test_killed_at_random_times_a_whole_version_loads(tmp_path):
    save(tmp_path / "model", "version 0")
    for attempt in range(4):
        child = subprocess.Popen(
            [sys.executable, "-c", _SAVING_FOR_EVER, str(tmp_path / "model")], stdout=subprocess.PIPE, cwd=ROOT
        )
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(timeout=random.Random(attempt).uniform(0.01, 0.1))
        child.kill()
        child.wait()
        child.stdout.close()
        assert assert_whole(tmp_path / "model").startswith("version ")
    save(tmp_path / "model", "last")
    assert os.listdir(tmp_path) == ["model"]


def test_what_the_exchange_needs_is_there_where_it_is_tested(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    if not artifact._exchange(tmp_path / "one", tmp_path / "two"):
        pytest.skip("this file system cannot exchange two directories")
    assert os.listdir(tmp_path / "one") == ["two"]
    with pytest.raises(OSError, match="No such file"):
        artifact._exchange(tmp_path / "one", tmp_path / "three")
    shutil.rmtree(tmp_path / "one")


# Reading while others save.


def test_a_version_that_is_replaced_while_it_is_read_is_read_again(tmp_path):
    save(tmp_path / "model", "old")
    seen = []

    def read(directory: Path, manifest: dict[str, Any]) -> str:
        seen.append(manifest["word"])
        if len(seen) == 1:
            save(directory, "new")
        return manifest["word"] + " " + (directory / NAMES[0]).read_text(encoding="utf-8")[:3]

    assert read_artifact(tmp_path / "model", read, task="toy") == "new new"
    assert seen == ["old", "new"]


def test_an_error_of_a_replaced_version_is_none(tmp_path):
    save(tmp_path / "model", "old")
    seen = []

    def read(directory: Path, manifest: dict[str, Any]) -> str:
        seen.append(manifest["word"])
        if len(seen) == 1:
            save(directory, "new")
            raise ValueError("weights do not fit")
        return str(manifest["word"])

    assert read_artifact(tmp_path / "model", read) == "new"


def test_an_error_of_a_version_that_stays_is_raised_at_once(tmp_path):
    save(tmp_path / "model")
    seen = []

    def read(directory: Path, manifest: dict[str, Any]) -> str:
        seen.append(manifest["word"])
        raise ValueError("weights do not fit")

    with pytest.raises(ValueError, match="do not fit"):
        read_artifact(tmp_path / "model", read)
    assert seen == ["old"]


def test_a_directory_that_never_rests_is_an_error(tmp_path):
    save(tmp_path / "model")
    with pytest.raises(ValueError, match="replaced 5 times while it was read"):
        read_artifact(tmp_path / "model", lambda directory, manifest: save(directory, manifest["word"]))
