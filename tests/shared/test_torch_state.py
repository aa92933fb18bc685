from __future__ import annotations

import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from shared.torch_state import read_torch_state

_GOLDEN = Path(__file__).parents[1] / "golden"


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def numbers(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def storage(key: str = "0", count: int = 4, kind: str = "torch FloatStorage") -> bytes:
    name = b"c" + kind.replace(" ", "\n").encode() + b"\n"
    return b"(" + text("storage") + name + text(key) + text("cpu") + number(count) + b"tQ"


def tensor(of: bytes, *, offset: int = 0, shape: tuple[int, ...] = (4,), strides: tuple[int, ...] = (1,)) -> bytes:
    arguments = of + number(offset) + numbers(shape) + numbers(strides) + b"\x89"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"}tR"


def state(value: bytes, name: bytes | None = None) -> bytes:
    return b"\x80\x02}" + (name or text("w")) + value + b"s."


def written(path: Path, program: bytes, *, data: bytes = bytes(16), **entries: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/data/0", data)
        for name, content in entries.items():
            archive.writestr(f"archive/{name}", content)
    return path


@pytest.mark.parametrize("file", ["torch_state.pth", "torch_state_legacy.pth"])
def test_files_by_pytorch_in_both_formats(file: str) -> None:
    tensors = read_torch_state(_GOLDEN / file)
    expected = np.load(_GOLDEN / "torch_state.npz")
    assert set(tensors) == set(expected.files)
    for name in expected.files:
        wanted = np.float32 if name == "bfloat16" else tensors[name].dtype
        assert expected[name].dtype == wanted
        np.testing.assert_array_equal(tensors[name].astype(wanted), expected[name])
    assert tensors["bfloat16"].dtype.name == "bfloat16"


def test_each_tensor_has_memory_of_its_own() -> None:
    tensors = read_torch_state(_GOLDEN / "torch_state.pth")
    tensors["base"][:] = -1
    assert tensors["tied"].min() == 0


def test_our_own_file_reads(tmp_path: Path) -> None:
    program = state(tensor(storage(), offset=1, shape=(3,)))
    values = np.array([1, 2, 3, 4], "<f4")
    tensors = read_torch_state(written(tmp_path / "w.pth", program, data=values.tobytes(), byteorder=b"little"))
    assert tensors["w"].tolist() == [2, 3, 4]


CALLS = [
    ("posix system", b"\x80\x02cposix\nsystem\n" + text("touch stolen") + b"\x85R."),
    ("builtins eval", state(b"cbuiltins\neval\n" + text("open('stolen', 'w')") + b"\x85R")),
    ("builtins exec", b"\x80\x04" + text("builtins") + text("exec") + b"\x93" + text("open('stolen','w')") + b"\x85R."),
    ("_Tensor", state(tensor(storage()) + b")R")),  # calling what a program has made
    ("torch._utils _rebuild_tensor_v2", state(b"ctorch._utils\n_rebuild_tensor_v2\n" + text("no storage") + b"\x85R")),
    ("INST", b"\x80\x02(" + text("touch stolen") + b"iposix\nsystem\n."),
    ("OBJ", b"\x80\x02(cposix\nsystem\n" + text("touch stolen") + b"o."),
    ("NEWOBJ", b"\x80\x02cposix\nsystem\n)\x81."),
    ("EXT1", b"\x80\x02\x82\x01."),
    ("PERSID", b"\x80\x02Pstolen\n."),
]


@pytest.mark.parametrize(("named", "program"), CALLS)
def test_a_program_that_calls_is_refused_by_name_and_does_nothing(
    named: str, program: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=named):
        read_torch_state(written(tmp_path / "evil.pth", program))
    (tmp_path / "evil_legacy.pth").write_bytes(program)
    with pytest.raises(ValueError, match=named):
        read_torch_state(tmp_path / "evil_legacy.pth")
    assert not (tmp_path / "stolen").exists()


DISORDER = [
    b"",
    b".",
    b"}",
    b"\x80\x02}s.",
    state(b"N"),
    b"\x80\x02]" + text("w") + b"a.",  # a list, no state dict
    b"\x80\x02}" + text("x") + b"a.",  # append to a dict
    b"\x80\x02h\x07.",  # memo never filled
    b"\x80\x02(((((t.",
    b"\x80\x02" + text("w") + number(1) + number(2) + b"s.",  # item of a number
    state(tensor(storage()), name=b"]"),  # unhashable key
    state(tensor(storage()), name=numbers((1, 2))),
    state(number(1) + b"Q"),
    state(storage(kind="torch ComplexFloatStorage")),
    state(storage(kind="posix system")),
    state(storage(count=-4)),
    state(tensor(storage(count=5))),  # more than the file has
    state(tensor(storage(key="7"))),
    state(tensor(storage(key="../../data.pkl"))),
    state(tensor(storage(), shape=(5,))),
    state(tensor(storage(), offset=1)),
    state(tensor(storage(), offset=-1)),
    state(tensor(storage(), shape=(-4,))),
    state(tensor(storage(), strides=(-1,))),
    state(tensor(storage(), shape=(2, 2))),
    state(tensor(storage(), shape=(2**30, 2**30), strides=(0, 0))),
    state(tensor(storage(), strides=(2**30,))),
]


@pytest.mark.parametrize("program", DISORDER)
def test_a_program_in_disorder_is_refused(program: bytes, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"broken\.pth is"):
        read_torch_state(written(tmp_path / "broken.pth", program))
    (tmp_path / "legacy_broken.pth").write_bytes(program)
    with pytest.raises(ValueError, match=r"broken\.pth is"):
        read_torch_state(tmp_path / "legacy_broken.pth")


def test_nested_tuples_do_not_take_for_ever(tmp_path: Path) -> None:
    bomb = b")" + b"q\x01h\x01\x86" * 200
    for program in (state(number(0), name=bomb), state(bomb + b"Q"), state(bomb)):
        with pytest.raises(ValueError, match="bomb"):
            read_torch_state(written(tmp_path / "bomb.pth", program))


def test_compressed_entries_are_refused(tmp_path: Path) -> None:
    for name in ("archive/data.pkl", "archive/data/0"):
        path = tmp_path / "zipped.pth"
        with zipfile.ZipFile(path, "w") as archive:
            for entry, data in (
                ("archive/data.pkl", state(tensor(storage(count=1 << 20)))),
                ("archive/data/0", bytes(4 << 20)),
            ):
                kind = zipfile.ZIP_DEFLATED if entry == name else zipfile.ZIP_STORED
                archive.writestr(entry, data, compress_type=kind)
        with pytest.raises(ValueError, match=f"{name} .*uncompressed"):
            read_torch_state(path)


def test_other_files_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_torch_state(tmp_path / "nowhere.pth")
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.writestr("a.txt", b"a")
    with pytest.raises(ValueError, match=r"photos\.zip is not read: .*not one that PyTorch wrote"):
        read_torch_state(tmp_path / "photos.zip")
    big_endian = written(tmp_path / "big.pth", state(tensor(storage())), byteorder=b"big")
    with pytest.raises(ValueError, match="big-endian"):
        read_torch_state(big_endian)


@pytest.mark.parametrize("file", ["torch_state.pth", "torch_state_legacy.pth"])
def test_a_file_cut_anywhere_is_refused(file: str, tmp_path: Path) -> None:
    content = (_GOLDEN / file).read_bytes()
    cut = tmp_path / "cut.pth"
    for length in range(0, len(content) - 1, 97):
        cut.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"cut\.pth is"):
            read_torch_state(cut)


def test_a_file_changed_anywhere_gives_tensors_or_a_value_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for file in ("torch_state.pth", "torch_state_legacy.pth"):
        content = np.frombuffer((_GOLDEN / file).read_bytes(), np.uint8)
        for _ in range(300):
            changed = content.copy()
            changed[rng.integers(0, 1400, 3)] = rng.integers(0, 256, 3)
            (tmp_path / "changed.pth").write_bytes(changed.tobytes())
            try:
                tensors = read_torch_state(tmp_path / "changed.pth")
            except ValueError:
                continue
            assert all(isinstance(array, np.ndarray) for array in tensors.values())


def test_neither_pytorch_nor_unpickling_is_involved() -> None:
    code = (
        "import sys, builtins\n"
        "from shared.torch_state import read_torch_state\n"
        "import pickle\n"
        "def refuse(*arguments, **options): raise AssertionError('unpickled')\n"
        "pickle.load = pickle.loads = pickle.Unpickler = pickle._Unpickler = refuse\n"
        f"assert read_torch_state({str(_GOLDEN / 'torch_state.pth')!r})\n"
        "assert not {'torch', 'tensorflow', 'keras'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=_GOLDEN.parents[1])
