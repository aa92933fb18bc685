"""Records of text files: bytes to text, text to records with cells, and which cell means what.

A record that cannot be read becomes a `BadRecord`, which names file and line; only what concerns the whole file is an
error.
"""

from __future__ import annotations

import codecs
import gzip
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from shared.examples import BadRecord, existing_file

# The cells of a record by position or by name; a record with where it stands.
Cells: TypeAlias = list[Any] | dict[str, Any]
Record: TypeAlias = tuple[str, Any]

_PAIR_NAMES = (("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2"), ("text_a", "text_b"),
               ("text1", "text2"), ("text", "text_pair"))  # fmt: skip
_TEXT_NAMES = ("text", "sentence", "content", "review", "document", "tweet", "message", "question", "query",
               "utterance", "comment")  # fmt: skip
_LABEL_NAMES = ("label", "labels", "class", "category", "target", "intent", "sentiment")
_OTHER_NAMES = ("id", "idx", "index", "guid", "")

# Byte order marks, the longer before those that they begin with.
_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
          (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))  # fmt: skip
_SURROGATE = re.compile("[\ud800-\udfff]")


class UnreadableRecordError(ValueError):
    """What is wrong with a record; `where` it is, when that is known better than where the record begins."""

    def __init__(self, reason: str, where: str | None = None) -> None:
        super().__init__(reason)
        self.where = where


# Files and lines.


def decoded(file: Path, encoding: str) -> str:
    """The text of a file, plain or gzipped; bytes that are none become lone surrogates, which `text_cell` refuses.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: for a directory, a damaged gzip file, or an encoding that is not known or cannot be read at all.
    """
    data = existing_file(file).read_bytes()
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{file} is a truncated or damaged gzip file.") from error
    encoding = next((marked for mark, marked in _MARKS if data.startswith(mark)), encoding)
    try:
        text = data.decode(encoding, errors="surrogateescape")
    except LookupError as error:
        raise ValueError(f"`encoding` {encoding!r} is not known to Python. Try 'utf-8' or 'latin-1'.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not {encoding} text (byte {error.start}): {error.reason}.") from error
    return text if "\n" in text else text.replace("\r", "\n")


def numbered_lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines with their numbers from 1, without what ends them."""
    for number, line in enumerate(text.split("\n"), start=1):
        yield number, line.removesuffix("\r")


def suffix(file: Path) -> str:
    """The suffix that tells the format: in lower case, that of a compression left out."""
    return (file.with_suffix("") if file.suffix.lower() == ".gz" else file).suffix.lower()


# Records of CSV and TSV.


def delimited_records(
    file: Path, text: str, *, delimiter: str | None = None, quoted: bool | None = None
) -> Iterator[Record | BadRecord]:
    """Lists of cells, line by line; a quoted cell may hold line breaks.

    Own code, for the csv module keeps its limit on the length of a cell for the whole process, reads all the rest of a
    file into a cell whose quotation mark is missing, and splits lines at line breaks that belong to a text.
    """
    if delimiter is None:
        delimiter = _likely_delimiter(text) if suffix(file) == ".csv" else "\t"
    pattern = _cell_pattern(delimiter)
    quoted = _is_quoted(text, delimiter) if quoted is None else quoted
    width, position, line = 0, 0, 1
    while position < len(text):
        end = _end_of_line(text, position)
        row = text[position:end].removesuffix("\r")
        cells: list[str] | None = row.split(delimiter)
        if quoted and '"' in row:
            cells, stop = _quoted_cells(text, position, pattern)
            # A quotation mark too many may swallow lines up to the next: they get another chance.
            end = stop if cells is not None and len(cells) == (width or len(cells)) else end
        if not row.strip():
            pass
        elif cells is None:
            yield BadRecord(f"{file}:{line}", "a quotation mark opens a cell that is not closed")
        elif len(cells) != (width or len(cells)):
            yield BadRecord(f"{file}:{line}", f"{len(cells)} columns, where the first line has {width}")
        else:
            width = len(cells)
            yield f"{file}:{line}", cells
        line += text.count("\n", position, end) + 1
        position = end + 1


def _likely_delimiter(text: str) -> str:
    first = re.sub('"[^"]*"', "", text[: _end_of_line(text, 0)])
    return max(",;\t", key=first.count)


def _end_of_line(text: str, position: int) -> int:
    end = text.find("\n", position)
    return len(text) if end < 0 else end


def _cell_pattern(delimiter: str) -> re.Pattern[str]:
    if len(delimiter) != 1 or delimiter in '"\r\n':
        raise ValueError(f"`delimiter` must be one character and no quotation mark; received {delimiter!r}.")
    d = re.escape(delimiter)
    # A cell in quotation marks, doubled inside, up to a delimiter or the end of the line; or any other cell.
    return re.compile(rf'"((?:[^"]|"")*+)"(?={d}|\r?(?:\n|\Z))|([^{d}\n]*)')


def _is_quoted(text: str, delimiter: str) -> bool:
    """Whether more cells are quoted well than have quotation marks otherwise."""
    d = re.escape(delimiter)
    quoted_cells = re.compile(rf'((?:^|{d}))"(?:[^"]|"")*+"(?={d}|\r?(?:\n|\Z))', re.MULTILINE)
    rest, well = quoted_cells.subn(r"\1", text)
    otherwise = sum(1 for _ in re.finditer(rf'"[^{d}\n]*', rest))
    return well > otherwise


def _quoted_cells(text: str, position: int, pattern: re.Pattern[str]) -> tuple[list[str] | None, int]:
    """The cells of the record at `position`, or None, and where it ends."""
    cells: list[str] = []
    while True:
        match = pattern.match(text, position)
        assert match is not None  # the second half of the pattern matches anything
        position = match.end()
        inside, plain = match.groups()
        if inside is None and plain.startswith('"'):
            return None, position
        cells.append(plain if inside is None else inside.replace('""', '"'))
        if position == len(text) or text[position] in "\r\n":
            if inside is None:
                cells[-1] = cells[-1].removesuffix("\r")
            return cells, _end_of_line(text, position)
        position += 1


# Records of JSON.


def json_records(file: Path, text: str, *, split: str | None = None) -> Iterator[Record | BadRecord]:
    """Objects or arrays: of JSON lines, of a JSON array, or of the array named `split` in a JSON object.

    Raises:
        ValueError: for a JSON file that holds no such array.
    """
    try:
        whole = json.loads(text) if suffix(file) == ".json" else None
    except (ValueError, RecursionError) as error:
        # Many a .json file is made of JSON lines.
        if not isinstance(error, json.JSONDecodeError) or error.msg != "Extra data":
            raise ValueError(f"{file} is no JSON text: {error}.") from error
        whole = None
    if whole is not None:
        for number, record in enumerate(_chosen(file, whole, split)):
            yield _checked_json(f"{file}, record {number}", record)
        return
    if split is not None:
        raise ValueError(f"{file} has JSON lines and no splits; leave `split` out.")
    for line, row in numbered_lines(text):
        if row.strip():
            yield _parsed_json(f"{file}:{line}", row)


def _chosen(file: Path, whole: Any, split: str | None) -> list[Any]:
    if isinstance(whole, list) and split is None:
        return whole
    splits = {name: rows for name, rows in whole.items() if isinstance(rows, list)} if isinstance(whole, dict) else {}
    if split is None and len(splits) == 1:
        split = next(iter(splits))
    if split not in splits:
        known = f"holds {', '.join(splits)}" if splits else "holds no arrays by name"
        raise ValueError(f"{file} {known}; `split` is {split!r}. Name the one to read, or none for a plain array.")
    return splits[split]


def _parsed_json(where: str, row: str) -> Record | BadRecord:
    try:
        record = json.loads(row)
    except (ValueError, RecursionError) as error:
        return BadRecord(where, f"no JSON text ({error})")
    return _checked_json(where, record)


def _checked_json(where: str, record: Any) -> Record | BadRecord:
    if not isinstance(record, dict | list):
        return BadRecord(where, f"expected a JSON object or array; received {type(record).__name__}")
    return where, record


# What cells hold.


def good_cells(records: Iterable[Record | BadRecord]) -> list[Cells]:
    """The cells of the records that can be read."""
    return [record[1] for record in records if not isinstance(record, BadRecord)]


def cell(cells: Cells, column: int | str) -> Any:
    """The cell in a column, None where a record has no such cell."""
    if isinstance(cells, dict) and isinstance(column, str):
        return cells.get(column)
    if isinstance(cells, list) and isinstance(column, int):
        return cells[column] if column < len(cells) else None
    kinds = ("an array", "objects") if isinstance(cells, list) else ("an object", "arrays")
    raise UnreadableRecordError(f"{kinds[0]}, where other records are {kinds[1]}")


def text_cell(value: Any, what: str) -> str:
    """`value` as it is, if it is a text with more than white space in it."""
    if value is None or value == "" or (isinstance(value, str) and value.isspace()):
        raise UnreadableRecordError(f"no {what}")
    if not isinstance(value, str):
        raise UnreadableRecordError(f"expected a string as {what}; received {type(value).__name__} ({value!r:.40})")
    stray = _SURROGATE.search(value)
    if stray:
        code = ord(stray[0])
        if 0xDC80 <= code <= 0xDCFF:
            raise UnreadableRecordError(f"{what} with byte 0x{code & 0xFF:02x}, which the encoding does not have")
        raise UnreadableRecordError(f"{what} with half a character (U+{code:04X})")
    return value


def label_cell(value: Any) -> str:
    """A label without white space around it; numbers become text."""
    return text_cell(str(value) if isinstance(value, bool | int | float) else value, "label").strip()


@dataclass(frozen=True)
class Columns:
    """Where a record has its text, the second of a pair, and its label; None for what is not said or not there."""

    text: int | str | None = None
    pair: int | str | None = None
    label: int | str | None = None

    @property
    def named(self) -> bool:
        """Whether any column is called by a name."""
        return any(isinstance(column, str) for column in (self.text, self.pair, self.label))

    def __str__(self) -> str:
        columns = {"text": self.text, "pair": self.pair, "label": self.label}
        return ", ".join(f"{what} in column {column!r}" for what, column in columns.items() if column is not None)


def object_keys(records: Iterable[Record | BadRecord]) -> tuple[str, ...] | None:
    """All keys of JSON objects, in order; None where records are arrays."""
    rows = good_cells(records)
    if not rows or isinstance(rows[0], list):
        return None
    return tuple(dict.fromkeys(key for row in rows if isinstance(row, dict) for key in row))


def take_header(records: list[Record | BadRecord], *, expected: bool | None) -> tuple[str, ...] | None:
    """The names in the first record, which is then taken away; None where it holds no names.

    `expected` None: it holds names if one is usual for a text, and (in several columns) another usual for the rest.
    """
    if not records or isinstance(records[0], BadRecord) or expected is False:
        return None
    names = tuple(name.strip() for name in records[0][1])
    if expected is None and not _are_names([name.lower() for name in names]):
        return None
    del records[0]
    return names


def _are_names(folded: Sequence[str]) -> bool:
    firsts = {*_TEXT_NAMES, *(first for first, _ in _PAIR_NAMES)}
    others = {*_LABEL_NAMES, *_OTHER_NAMES, *(second for _, second in _PAIR_NAMES)}
    known = bool(firsts & set(folded))
    return known and (len(folded) == 1 or bool(others & set(folded)))


def find_columns(file: Path, names: tuple[str, ...] | None, rows: Sequence[Cells], said: Columns) -> Columns:
    """The columns that were said, completed by those that names and contents tell.

    Raises:
        ValueError: for a column that is not there, or a text column that cannot be told.
    """
    if not rows:
        return said
    if names is None:
        return _by_contents(file, rows, said)
    found = _by_names(file, names, said)
    if isinstance(rows[0], dict):
        return found
    return Columns(*(None if column is None else names.index(str(column)) for column in _all(found)))


def _all(columns: Columns) -> tuple[int | str | None, ...]:
    return columns.text, columns.pair, columns.label


def _by_names(file: Path, names: tuple[str, ...], said: Columns) -> Columns:
    text, pair, label = (_name(file, names, column) for column in _all(said))
    folded = {name.strip().lower(): name for name in reversed(names)}
    if text is None and pair is None:
        pairs = ((folded[first], folded[second]) for first, second in _PAIR_NAMES if {first, second} <= folded.keys())
        text, pair = next(pairs, (None, None))
    if text is None:
        usual = (folded[name] for name in _TEXT_NAMES if name in folded and folded[name] not in (pair, label))
        text = next(usual, names[0] if len(names) == 1 else None)
    if text is None:
        raise ValueError(f"{file}: which of the columns {', '.join(names)} holds the texts? Say it, as in text='text'.")
    if label is None:
        usual = (folded[name] for name in _LABEL_NAMES if name in folded and folded[name] not in (text, pair))
        label = next(usual, None)
    return Columns(text, pair, label)


def _name(file: Path, names: tuple[str, ...], column: int | str | None) -> str | None:
    if column is None:
        return None
    if isinstance(column, int):
        return names[_position(file, len(names), column)]
    if column not in names:
        raise ValueError(f"{file} has no column {column!r}; its columns are {', '.join(names)}.")
    return column


def _position(file: Path, width: int, column: int) -> int:
    if not -width <= column < width:
        raise ValueError(f"{file} has no column {column}; it has {width}, numbered from 0.")
    return column % width


def _by_contents(file: Path, rows: Sequence[Cells], said: Columns) -> Columns:
    if said.named:
        raise ValueError(f"{file} has no names of columns; received {said}. Give numbers, as in text=0.")
    width = len(rows[0])
    text, pair, label = (c if c is None else _position(file, width, int(c)) for c in _all(said))
    free = [column for column in range(width) if column not in (pair, label)]
    if text is None and len(free) == 1:
        text = free[0]
    elif text is None and width == 2:
        lengths = [sum(len(str(cell(row, column))) for row in rows if isinstance(row, list)) for column in free]
        text = free[lengths.index(max(lengths))]
    elif text is None:
        raise ValueError(f"{file} has {width} columns and no usual names. Say which is which, as in text=0, label=1.")
    if label is None and pair is None and width == 2:
        label = 1 - text
    return Columns(text, pair, label)
