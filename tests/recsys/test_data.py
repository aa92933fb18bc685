from __future__ import annotations

import gzip
import logging
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recsys import Interactions, read_interactions


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def columns(data: Interactions) -> list[Any]:
    return [None if c is None else c.tolist() for c in (data.users, data.items, data.ratings, data.timestamps)]


FULL = [[1, 2], [10, 20], [4.0, 3.5], [100, 200]]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("ratings.csv", "userId,movieId,rating,timestamp\r\n1,10,4.0,100\r\n2,20,3.5,200\r\n", FULL),
        ("r.csv", "\ufeffTimestamp;Item_ID;User ID;score\n100;10;1;4.0\n200;20;2;3.5\n", FULL),
        ("u.data", "1\t10\t4\t100\n2\t20\t3.5\t200\n", FULL),
        ("ratings.dat", "1::10::4::100\n\n2::20::3.5::200\n", FULL),
        ("r.tsv", "1\t10\t4\n2\t20\t3.5", [*FULL[:3], None]),
        ("pairs.txt", "1 10\n2 20\n", [*FULL[:2], None, None]),
        ("sequences.txt", "1 10 20 30\n2 20\n", [[1, 1, 1, 2], [10, 20, 30, 20], None, None]),
        ("quoted.csv", 'user,item\n"a,b",x\n"c\nd",y\n', [["a,b", "c\nd"], ["x", "y"], None, None]),
        ("zeros.csv", "user,item\n007,1\n8,2\n", [["007", "8"], [1, 2], None, None]),
        ("mixed.csv", "user,item\n1,1\nann,2\n", [["1", "ann"], [1, 2], None, None]),
        ("large.csv", "user,item\n99999999999999999999,1\n", [["99999999999999999999"], [1], None, None]),
        ("time.csv", "user,item,rating,timestamp\n1,2,3,1.5e9\n", [[1], [2], [3.0], [1_500_000_000]]),
        ("twice.csv", "user,item\n1,1\n1,1\n", [[1, 1], [1, 1], None, None]),
    ],
)
def test_layouts_are_found_out(name: str, content: str, expected: list[Any], tmp_path: Path) -> None:
    assert columns(read_interactions(written(tmp_path / name, content))) == expected


def test_what_is_said_goes_before_what_is_found_out(tmp_path: Path) -> None:
    table = written(tmp_path / "t.csv", "who,what,extra\n1,10,7\n")
    assert columns(read_interactions(table, user="what", item="who", rating="extra")) == [[10], [1], [7.0], None]
    plain = written(tmp_path / "p.csv", "10,1,0.5\n")
    assert columns(read_interactions(plain, user=1, item=0, rating=2, ids="str")) == [["1"], ["10"], [0.5], None]
    same = written(tmp_path / "s.txt", "1 10\n2 20\n")
    assert len(read_interactions(same, layout="sequences")) == 2
    bars = written(tmp_path / "b.txt", "1#10\n")
    assert columns(read_interactions(bars, delimiter="#"))[:2] == [[1], [10]]


def test_gzip_and_movielens_directories(tmp_path: Path) -> None:
    (tmp_path / "ml").mkdir()
    written(tmp_path / "ml" / "u.data", "1\t10\t4\t100\n")
    assert len(read_interactions(tmp_path / "ml")) == 1
    zipped = written(tmp_path / "r.csv.gz", gzip.compress(b"user,item\n1,2\n"))
    assert columns(read_interactions(zipped))[:2] == [[1], [2]]


def test_bad_rows_are_left_out_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = ["user,item,rating,timestamp"] + [f"{n},{n},3,{n}" for n in range(2, 60)]
    rows[10], rows[20], rows[30] = "10,10,nan,10", "20,20", ",30,3,30"
    rows[40], rows[45], rows[50] = "40,40,high,40", "45,45,inf,45", "50,50,3,1.5"
    file = written(tmp_path / "r.csv", "\n".join(rows))
    data = read_interactions(file, max_bad_share=0.2)
    assert len(data) == 52
    assert [str(record) for record in data.bad_records] == [
        f"{file}:11: the rating must be finite; it is 'nan'",
        f"{file}:21: expected at least 4 cells, received 2",
        f"{file}:31: the user is empty",
        f"{file}:41: the rating must be a number; it is 'high'",
        f"{file}:46: the rating must be finite; it is 'inf'",
        f"{file}:51: the timestamp must be a whole number, such as seconds; it is '1.5'",
    ]
    assert "6 of 58 interactions cannot be used" in caplog.text
    with pytest.raises(ValueError, match=r"6 of 58 interactions cannot be used; the first: .*r\.csv:11"):
        read_interactions(file)


def test_bytes_that_are_no_text_and_ids_of_another_kind_are_bad_rows(tmp_path: Path) -> None:
    file = written(tmp_path / "r.csv", b"user,item\n1,2\n\xff\xfe,3\n4,5\n")
    data = read_interactions(file, max_bad_share=0.5)
    assert columns(data)[:2] == [[1, 4], [2, 5]]
    assert str(data.bad_records[0]) == f"{file}:3: the user is not valid UTF-8"
    odd = read_interactions(written(tmp_path / "o.csv", "user,item\n1,2\nx,3\n"), ids="int", max_bad_share=0.5)
    assert "must be a whole number; it is 'x'" in str(odd.bad_records[0])


def test_rows_over_several_lines_are_counted_as_records(tmp_path: Path) -> None:
    file = written(tmp_path / "r.csv", 'user,item,rating\n"a\nb",1,3\nc,2,nan\nd,3,4\n')
    (record,) = read_interactions(file, max_bad_share=0.5).bad_records
    assert record.where == f"{file}, record 3"


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("", "has no interactions"),
        ("\n\n", "has no interactions"),
        ("user,item,rating\n", "has no interactions"),
        ("a,b,c\nx,y,z\n", "no column of users was found; its header is a, b, c"),
        ("user\n1\n2\n", "no column of items was found"),
    ],
)
def test_files_without_interactions(content: str, part: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=part):
        read_interactions(written(tmp_path / "r.csv", content))


def test_wrong_paths_and_columns(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_interactions(tmp_path / "nowhere.csv")
    with pytest.raises(ValueError, match="directory without"):
        read_interactions(tmp_path)
    file = written(tmp_path / "r.csv", "user,item\n1,2\n")
    with pytest.raises(ValueError, match="no column 'who' for `user`; the file has the header user, item"):
        read_interactions(file, user="who")
    with pytest.raises(ValueError, match="`rating` must be a column from 0 to 1; received 7"):
        read_interactions(file, rating=7)


def test_what_was_found_out_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        read_interactions(written(tmp_path / "r.csv", "1,2,3\n"))
    assert "user in column 0, item in column 1, rating in column 2 (no header)" in caplog.text


def test_a_hundred_thousand_rows_take_about_a_second_at_most(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = zip(rng.integers(0, 600, 100_000), rng.integers(0, 9000, 100_000), strict=True)
    file = written(
        tmp_path / "r.csv", "userId,movieId,rating,timestamp\n" + "".join(f"{u},{i},3.5,964982703\n" for u, i in rows)
    )
    start = time.process_time()
    assert len(read_interactions(file)) == 100_000
    assert time.process_time() - start < 3  # about 0.3 s on an idle core


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"needs pyarrow: pip install 'triptych\[parquet\]'"):
        read_interactions(written(tmp_path / "r.parquet", b"PAR1"))


@pytest.mark.parametrize("dictionary", [False, True])
def test_parquet(dictionary: bool, tmp_path: Path) -> None:
    import pyarrow as arrow
    from pyarrow import parquet

    file = tmp_path / "r.parquet"
    users = arrow.array(["a", "b", None, "", "c"])
    table = arrow.table(
        {
            "user_id": users.dictionary_encode() if dictionary else users,
            "item_id": arrow.array([1, 2, 3, 4, None]),
            "rating": arrow.array([1.0, float("nan"), 3.0, 4.0, 5.0]),
            "timestamp": arrow.array([1, 2, 3, 4, 5]),
        }
    )
    parquet.write_table(table, file)
    data = read_interactions(file, max_bad_share=0.9)
    assert columns(data) == [["a"], [1], [1.0], [1]]
    assert [record.where for record in data.bad_records] == [f"{file}, row {n}" for n in (1, 2, 3, 4)]
    with pytest.raises(ValueError, match="cannot be read as Parquet"):
        read_interactions(written(tmp_path / "no.parquet", b"nothing"))


def test_parquet_of_many_batches_has_one_str_for_each_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow as arrow
    from pyarrow import parquet

    monkeypatch.setattr("recsys.parquet._BATCH", 7)
    users, items = [f"u{n % 5}" for n in range(50)], np.arange(50, dtype=np.int32)
    times = arrow.array(np.arange(50), arrow.timestamp("ms"))
    parquet.write_table(arrow.table({"user": users, "item": items, "time": times}), tmp_path / "r.parquet")
    data = read_interactions(tmp_path / "r.parquet")
    assert columns(data) == [users, items.tolist(), None, list(range(50))]
    assert len(set(map(id, data.users.tolist()))) == 5


def test_parquet_ids_with_gaps_may_be_floats_but_no_fractions(tmp_path: Path) -> None:
    import pyarrow as arrow
    from pyarrow import parquet

    table = arrow.table({"user": arrow.array([1.0, None, 2.5, 4.0]), "item": ["a", "b", "c", "d"]})
    parquet.write_table(table, tmp_path / "r.parquet")
    data = read_interactions(tmp_path / "r.parquet", max_bad_share=0.9)
    assert columns(data)[:2] == [[1, 4], ["a", "d"]]
    assert [record.where for record in data.bad_records] == [f"{tmp_path / 'r.parquet'}, row {n}" for n in (1, 2)]
    assert "the user is missing or cannot be used: 2.5" in str(data.bad_records[1])
