from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recsys import Features, read_criteo, read_features
from recsys.feature_encoder import FeatureEncoder
from recsys.features import Categories


def written(tmp_path: Path, text: str, name: str = "table.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    return path


def plain(table: Features) -> dict[str, list[Any]]:
    """Each column as a list of what a user would have written."""
    rows = list(table.rows())
    found = {name: [row[name] for row in rows] for name in table.columns}
    return {name: [v.tolist() if isinstance(v, np.ndarray) else v for v in values] for name, values in found.items()}


def test_kinds_are_found_out(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "item,price,code,genres,job\n1, 2.5,007,a|b,cook\n2,,012, c , clerk\n\n3,1e3,?,,cook\n4,-7,007,b| |a,\n",
    )
    table = read_features(path, id="item")
    assert table.ids is not None
    assert table.ids.tolist() == [1, 2, 3, 4]
    assert plain(table) == {
        "price": [2.5, None, 1000, -7],
        "code": ["007", "012", None, "007"],
        "genres": [["a", "b"], ["c"], [], ["b", "a"]],
        "job": ["cook", "clerk", "cook", None],
    }


def test_what_is_said_wins(tmp_path: Path) -> None:
    path = written(tmp_path, "12;a/b;1 2;x\n7;-;3 4;y\n", "table.txt")
    table = read_features(
        path, names=("zip", "tags", "vector", "rest"), kinds={"zip": "categorical"}, drop=["rest", "vector"],
        delimiter=";", separator="/", missing=("-",),
    )  # fmt: skip
    assert plain(table) == {"zip": ["12", "7"], "tags": [["a", "b"], []]}
    vectors = read_features(
        path, names=("zip", "tags", "vector", "rest"), kinds={"vector": "embedding"}, separator=" ", drop=["tags"]
    )
    assert plain(vectors)["vector"] == [[1, 2], [3, 4]]


def test_layouts(tmp_path: Path) -> None:
    expected = {"a": [1.0, 2.0], "b": ["x", "y"]}
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(b"\xef\xbb\xbfa,b\r\n1,x\r\n2,y\r\n"))
    for path in (
        written(tmp_path, "a\tb\n1\tx\n2\ty\n", "t.tsv"),
        written(tmp_path, "a|b\n1|x\n2|y", "t.txt"),
        written(tmp_path, 'a,b\n1,"x"\n2,y\n', "t.csv"),
        written(tmp_path, '{"a": 1, "b": "x"}\n\n{"b": "y", "a": 2}\n', "t.jsonl"),
        tmp_path / "t.csv.gz",
    ):
        assert plain(read_features(path)) == expected, path


@pytest.mark.parametrize(
    ("cells", "positive", "expected"),
    [
        ("0 1 1.0", None, [0, 1, 1]),
        ("no Yes TRUE", None, [0, 1, 1]),
        ("3.5 1 5", None, [3.5, 1, 5]),
        ("<=50K >50K >50K.", ">50K", [0, 1, 1]),
        ("a b c", "b", [0, 1, 0]),
    ],
)
def test_targets(tmp_path: Path, cells: str, positive: str | None, expected: list[float]) -> None:
    path = written(tmp_path, "x,y\n" + "".join(f"1,{cell}\n" for cell in cells.split()))
    table = read_features(path, target="y", positive=positive)
    assert table.targets is not None
    assert table.targets.tolist() == expected
    assert list(table.columns) == ["x"]


def test_bad_rows_are_named_by_line(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        'id,n,c,y\n1,5,a,1\n2,5,a\n3,inf,a,0\n4,5,\udcff,0\n5,5,b,\n6,5,b,0\n,5,b,0\n1,5,b,0\n8,"5\n",b,0\n9,x,b,0\n',
    )
    kinds: Any = {"n": "numeric"}
    table = read_features(path, id="id", target="y", kinds=kinds, max_bad_share=0.9)
    assert table.ids is not None
    assert table.ids.tolist() == [1, 6, 8]
    found = [str(bad).removeprefix(str(path)) for bad in table.bad_records]
    expected = [
        ":3: expected 4 cells, received 3", ":4: column 'n' must be finite", ":5: column 'c' is not valid UTF-8",
        ":6: the target (column 'y') is missing", ":8: the id (column 'id') is missing",
        ":9: the id '1' was there before", ":12: column 'n' must be a number; it is 'x'",
    ]  # fmt: skip
    assert len(found) == len(expected)
    for line, part in zip(found, expected, strict=True):
        assert line.startswith(part)
    with pytest.raises(ValueError, match=r"7 of 10 rows cannot be used; the first: .*:3: expected 4 cells"):
        read_features(path, id="id", target="y", kinds=kinds)


def test_a_stray_text_among_many_numbers_is_a_bad_row(tmp_path: Path) -> None:
    path = written(tmp_path, "n\n" + "5\n" * 150 + "five\n")
    table = read_features(path)
    assert table.kinds == {"n": "numeric"}
    assert [str(bad) for bad in table.bad_records] == [f"{path}:152: column 'n' must be a number; it is 'five'"]
    assert read_features(path, max_bad_share=0.0).kinds == {"n": "categorical"}


def test_bad_rows_of_json_lines(tmp_path: Path) -> None:
    rows = [
        '{"n": 1, "c": "a", "l": ["x", 3], "v": [1, 2.5], "id": "u1"}',
        "[1]",
        "{bad",
        '{"n": "1", "id": "u2"}',
        '{"n": 1, "c": 1.5, "id": "u3"}',
        '{"l": "x", "id": "u4"}',
        '{"v": [1.5], "id": "u5"}',
        '{"n": Infinity, "id": "u6"}',
        '{"n": null, "v": null, "c": "", "id": 7}',
    ]
    path = written(tmp_path, "\n".join(rows), "table.jsonl")
    table = read_features(path, id="id", max_bad_share=0.9)
    assert table.ids is not None
    assert table.ids.tolist() == ["u1", "7"]
    assert plain(table)["n"] == [1, None]
    assert plain(table)["l"] == [["x", "3"], []]
    assert [bad.where.rsplit(":", 1)[1] for bad in table.bad_records] == ["2", "3", "4", "5", "6", "7", "8"]
    reasons = " ".join(bad.reason for bad in table.bad_records)
    for part in ("expected a JSON object", "not valid JSON", "must be a number; it is \"1\"", "a bool; it is 1.5",
                 "must be a list; it is", "list of 2 finite numbers", "must be finite"):  # fmt: skip
        assert part in reasons


def test_parquet_files(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is an extra")
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is an extra")
    made = pyarrow.table(
        {
            "id": [5, 6, 7],
            "n": pyarrow.array([1, None, 3]),
            "c": pyarrow.array(["a", None, "b"]).dictionary_encode(),
            "b": [True, False, None],
            "l": [["x", "y"], [], None],
            "v": [[1.5, 2], None, [3, 4]],
            "y": [0, 1, 1],
        }
    )
    parquet.write_table(made, tmp_path / "t.parquet")
    table = read_features(tmp_path / "t.parquet", id="id", target="y")
    found = plain(table)
    assert (found["n"], found["c"], found["b"]) == ([1, None, 3], ["a", None, "b"], ["true", "false", None])
    assert found["l"] == [["x", "y"], [], []]
    assert found["v"] == [[1.5, 2], None, [3, 4]]
    assert table.targets is not None
    assert table.targets.tolist() == [0, 1, 1]


def test_parquet_types_and_missing_texts(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is an extra")
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is an extra")
    path = tmp_path / "t.parquet"
    made = {
        "id": [5.0, 6.0, 7.0],
        "at": pyarrow.array([1_500_000, None, 2_000_000], pyarrow.timestamp("us")),
        "c": ["NA", "a", "?"],
        "long": pyarrow.array([1, 2, 3], pyarrow.duration("s")),
    }
    parquet.write_table(pyarrow.table(made), path)
    table = read_features(path, id="id", drop=["long"])
    assert plain(table) == {"at": [1, None, 2], "c": [None, "a", None]}
    assert table.ids is not None
    assert table.ids.tolist() == [5, 6, 7]
    with pytest.raises(ValueError, match=r"column 'long' is of type duration\[s\], which is no feature"):
        read_features(path, id="id")


def test_kinds_of_ids(tmp_path: Path) -> None:
    path = written(tmp_path, "id,n\n1,5\n2,6\n")
    for ids, expected in (("auto", [1, 2]), ("int", [1, 2]), ("str", ["1", "2"])):
        table = read_features(path, id="id", ids=ids)  # type: ignore[arg-type]
        assert table.ids is not None
        assert table.ids.tolist() == expected
    mixed = written(tmp_path, "id,n\n1,5\nx,6\n0,7\n")
    table = read_features(mixed, id="id", ids="int", max_bad_share=0.5)
    assert table.ids is not None
    assert table.ids.tolist() == [1, 0]
    assert [bad.reason for bad in table.bad_records] == ["the id 'x' must be a whole number"]
    with pytest.raises(ValueError, match="`ids` must be one of auto, str, int; received 'text'"):
        read_features(path, id="id", ids="text")  # type: ignore[arg-type]
    whole = written(tmp_path, '{"id": 1.0, "n": 1}\n{"id": 2.0, "n": 1}\n', "t.jsonl")
    table = read_features(whole, id="id")
    assert table.ids is not None
    assert table.ids.tolist() == [1, 2]


def test_bools_and_whole_floats_are_spelled_as_values_are(tmp_path: Path) -> None:
    path = written(tmp_path, "member,zip,mixed\nTrue,10115.0,True\nFalse,,2.0\ntrue,7.0,maybe\n")
    table = read_features(path, kinds={"zip": "categorical"})
    assert plain(table) == {
        "member": ["true", "false", "true"], "zip": ["10115", None, "7"], "mixed": ["True", "2.0", "maybe"],
    }  # fmt: skip
    forms = {name: column.form for name, column in table.columns.items() if isinstance(column, Categories)}
    assert forms == {"member": "bool", "zip": "int", "mixed": "str"}
    encoder = FeatureEncoder.fit(table, min_count=1)
    values: Any = {"member": [True, False, True], "zip": [10115, None, 7.0], "mixed": [True, 2, "maybe"]}
    texts = {"member": ["True", "FALSE", "true"], "zip": ["10115.0", None, "7"], "mixed": ["True", "2.0", "maybe"]}
    for given in (values, texts):
        assert encoder.encode(given)["categories"].tolist() == encoder.encode(table)["categories"].tolist()


@pytest.mark.parametrize(
    ("text", "options", "part"),
    [
        ("", {}, "has no rows"),
        ("a,b\n", {}, "has no rows"),
        ("1,2\n3,4\n", {}, "first line is no header: '1'"),
        ("a,a\n1,2\n", {}, "'a' stands over more than one column"),
        ("a,b\n1,2\n", {"id": "c"}, r"no column 'c' \(`id`\); there are a, b"),
        ("a,b\n1,2\n", {"drop": ["c"]}, r"no column 'c' \(`drop`\)"),
        ("a,b\n1,2\n", {"kinds": {"c": "numeric"}}, r"no column 'c' \(`kinds`\)"),
        ("a,b\n1,2\n", {"kinds": {"a": "text"}}, "received 'text' for 'a'"),
        ("a,b\n1,x\n", {"target": "b"}, "the targets are texts: x.*--positive"),
        ("a,b\n1,x\n", {"target": "b", "positive": "z"}, "no target is 'z'; there are x"),
        ("a,b\n1,x\n", {"target": "b", "positive": "x", "drop": ["a"]}, "no column of features"),
    ],
)
def test_mistakes(tmp_path: Path, text: str, options: dict[str, Any], part: str) -> None:
    with pytest.raises(ValueError, match=part):
        read_features(written(tmp_path, text), **options)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing at"):
        read_features(tmp_path / "none.csv")
    with pytest.raises(ValueError, match="is a directory"):
        read_features(tmp_path)


# Criteo.

_ROW = ["5", *[""] * 12, *[f"{number:08x}" for number in range(26)]]
_HEADER = [*(f"I{number}" for number in range(1, 14)), *(f"C{number}" for number in range(1, 27))]


@pytest.mark.parametrize(
    ("lines", "targets"),
    [
        ([["label", *_HEADER], ["1", *_ROW]], [1]),
        ([["Id", "Label", *_HEADER], ["77", "0", *_ROW]], [0]),
        ([["1", *_ROW], ["0", *_ROW]], [1, 0]),
        ([_ROW], None),
    ],
)
def test_criteo_layouts(tmp_path: Path, lines: list[list[str]], targets: list[int] | None) -> None:
    for mark in ",\t":
        table = read_criteo(written(tmp_path, "\n".join(mark.join(line) for line in lines)))
        assert list(table.columns) == _HEADER
        assert table.kinds["I1"] == "numeric"
        assert table.kinds["C1"] == "categorical"  # though it is written in digits
        assert plain(table)["I1"][0] == 5
        assert plain(table)["I2"][0] is None
        assert (None if table.targets is None else table.targets.tolist()) == targets


def test_criteo_mistakes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected Criteo's 39 columns.* its first line has 2 cells"):
        read_criteo(written(tmp_path, "a,b\n"))
    with pytest.raises(ValueError, match="its header lacks C1,"):
        read_criteo(written(tmp_path, ",".join(_HEADER[:13])))
    unlabelled = "\n".join(["\t".join(["1", *_ROW])] * 199 + ["\t".join(["", *_ROW])])
    table = read_criteo(written(tmp_path, unlabelled))
    assert len(table) == 199
    assert "the target (column 'label') is missing" in str(table.bad_records[0])


@pytest.mark.skipif("TRIPTYCH_DATA" not in os.environ, reason="TRIPTYCH_DATA does not name a directory of data sets")
def test_real_files_are_read() -> None:
    data = Path(os.environ["TRIPTYCH_DATA"])
    counted = [len(read_criteo(data / "criteo-sample" / name)) for name in ("train.tiny.csv", "criteo_sample.txt")]
    assert counted == [1999, 200]


def test_json_lines_round_trip_numbers(tmp_path: Path) -> None:
    path = written(tmp_path, json.dumps({"zip": 12}) + "\n" + json.dumps({"zip": None}), "t.jsonl")
    assert plain(read_features(path, kinds={"zip": "categorical"})) == {"zip": ["12", None]}
