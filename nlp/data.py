"""Readers: text files on disk to raw (input, target) examples.

A text is a str, a pair of texts a tuple of two, a text that was split into words a tuple of these; each stands as it
does in the file. Labels are the user's own names. Lines end at line feeds only: Unicode has other line breaks, which
are part of a text. Files may be gzipped.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from nlp.tables import (
    Cells,
    Columns,
    Record,
    UnreadableRecordError,
    cell,
    decoded,
    delimited_records,
    find_columns,
    good_cells,
    json_records,
    label_cell,
    numbered_lines,
    object_keys,
    suffix,
    take_header,
    text_cell,
)
from nlp.tags import split_tag
from shared.examples import BadRecord, Examples, tolerated

logger = logging.getLogger(__name__)

_SPAN_NAMES = ("spans", "entities", "label", "labels")
_START_NAMES, _END_NAMES, _TYPE_NAMES = ("start", "start_offset"), ("end", "end_offset"), ("label", "type")

_Span: TypeAlias = tuple[int, int, str]
_Line: TypeAlias = tuple[int, str]


def read_text_table(
    path: str | Path,
    *,
    text: str | int | None = None,
    pair: str | int | None = None,
    label: str | int | None = None,
    header: bool | None = None,
    encoding: str = "utf-8",
    delimiter: str | None = None,
    quoted: bool | None = None,
    label_separator: str | None = None,
    split: str | None = None,
    max_bad_share: float = 0.01,
) -> Examples:
    """Texts and labels of a table: CSV, TSV, JSON lines, or a JSON file of records.

    What is not said is found out, and logged: columns by their usual names (text, sentence, ...; label, class, ...;
    sentence1 and sentence2, premise and hypothesis, ... are a pair); in two columns without names, the one with the
    longer entries is the text. Records of JSON are objects, or arrays, whose places are columns without names.

    Args:
        path: the file; its suffix tells the format (.csv, .tsv, .jsonl, .json; anything else is taken for TSV).
        text: column of the texts, by name or by number from 0.
        pair: column of second texts; the inputs are then pairs.
        label: column of the labels; where there is none, the targets are None.
        header: whether the first line holds names; to be said where they are none of the usual.
        encoding: of a file without byte order mark.
        delimiter: between the cells of a line.
        quoted: whether quotation marks around a cell belong to the format (RFC 4180) and not to the text; left out,
            they do if more cells are quoted well than have quotation marks otherwise.
        label_separator: splits a label into several (an empty one: none); the targets are then tuples, as they are
            for JSON arrays of labels.
        split: which one of the arrays in a JSON file that holds several by name.
        max_bad_share: share of unreadable records above which the file is refused; below, they are reported.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: for a column that is not there or cannot be told, no records, or too many bad ones; the message
            names file and line.
    """
    file, said = Path(path), Columns(text, pair, label)
    content = decoded(file, encoding)
    if suffix(file) in (".json", ".jsonl", ".ndjson"):
        records = list(json_records(file, content, split=split))
        names = object_keys(records)
    else:
        records = list(delimited_records(file, content, delimiter=delimiter, quoted=quoted))
        names = take_header(records, expected=True if header is None and said.named else header)
        if names is None and header is None:
            _warn_of_header(records)
    columns = find_columns(file, names, good_cells(records), said)
    logger.info("%s: %s", file, columns)
    return collected(file, records, lambda cells: _table_example(cells, columns, label_separator), max_bad_share)


def _table_example(cells: Cells, columns: Columns, label_separator: str | None) -> tuple[Any, Any]:
    assert columns.text is not None
    found: Any = text_cell(cell(cells, columns.text), "text")
    if columns.pair is not None:
        found = (found, text_cell(cell(cells, columns.pair), "second text"))
    if columns.label is None:
        return found, None
    label = cell(cells, columns.label)
    if isinstance(label, list):
        return found, tuple(label_cell(one) for one in label)
    if label_separator is None:
        return found, label_cell(label)
    parts = () if label is None else str(label).split(label_separator)
    return found, tuple(label_cell(part) for part in parts if part.strip())


def _warn_of_header(records: Sequence[Record | BadRecord]) -> None:
    """Say it where the first line is read as data and looks unlike the rest."""
    rows = [row for row in good_cells(records) if len(row) > 1]
    for column in range(len(rows[0]) if len(rows) > 2 else 0):
        counts = Counter(row[column] for row in rows if isinstance(row, list))
        first = rows[0][column] if isinstance(rows[0], list) else ""
        if counts.pop(first) == 1 and counts and min(counts.values()) > 1:
            logger.warning(
                "the first line is read as data, but its %r occurs in no other; if it holds names, say header=True.",
                first,
            )


def read_conll(
    path: str | Path,
    *,
    token_column: int = 0,
    tag_column: int | None = -1,
    delimiter: str | None = None,
    encoding: str = "utf-8",
    max_bad_share: float = 0.01,
) -> Examples:
    """Sentences of a column file: tuples of words, and tuples of their tags as they stand there.

    A line has a word and its tag among its columns; an empty line ends a sentence. Comments (`# ...`) and -DOCSTART-
    lines are passed over. Whether tags follow their scheme is for `nlp.tags` to say.

    Args:
        path: the file.
        token_column: column of the words, from 0.
        tag_column: column of the tags, -1 for the last; None where there are none: the targets are then None.
        delimiter: between columns; left out, a tab where the first word's line has one, else any spaces and tabs.
        encoding: of a file without byte order mark.
        max_bad_share: share of unreadable sentences above which the file is refused; below, they are reported.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: for no sentences, or too many bad ones; the message names file and line.
    """
    file = Path(path)
    tagged = tag_column is not None
    lines = [line for line in numbered_lines(decoded(file, encoding)) if not _is_comment(line[1], tagged=tagged)]
    first = next((line for _, line in lines if line.strip(" \t")), "")
    if delimiter is None and "\t" in first.strip():
        delimiter = "\t"
    width = len(_fields(first, delimiter))
    for name, column in (("token_column", token_column), ("tag_column", tag_column)):
        if first and column is not None and not -width <= column < width:
            raise ValueError(f"{file} has {width} columns; `{name}` is {column}. Columns are numbered from 0.")

    def word_and_tag(number: int, line: str) -> tuple[str, str | None]:
        try:
            return _word_and_tag(_fields(line, delimiter), width, token_column, tag_column)
        except ValueError as error:
            raise UnreadableRecordError(str(error), f"{file}:{number}") from error

    def example(sentence: Sequence[_Line]) -> tuple[Any, Any]:
        words, tags = zip(*(word_and_tag(*line) for line in sentence), strict=True)
        return words, tags if tagged else None

    return collected(file, _sentences(file, lines), example, max_bad_share, things="sentences")


def _is_comment(line: str, *, tagged: bool) -> bool:
    """Whether a line begins with # and is no word with its tag: tweets have words like "#" and "#photography"."""
    if not line.startswith("#"):
        return line.startswith("-DOCSTART-")
    fields = line.split()
    if len(fields) > 1:
        return not (tagged and _is_tag(fields[-1]))
    # A ruler of nothing but #; without tags even that may be a word.
    return tagged and not line.strip("# \t")


def _is_tag(field: str) -> bool:
    try:
        split_tag(field)
    except ValueError:
        return False
    return True


def _fields(line: str, delimiter: str | None) -> list[str]:
    if delimiter is not None:
        return [field.strip(" ") for field in line.split(delimiter)]
    # Not split(), which takes a no-break space for a space.
    return re.split(r"[ \t]+", line.strip(" \t"))


def _sentences(file: Path, lines: Iterable[_Line]) -> Iterator[tuple[str, list[_Line]]]:
    sentence: list[_Line] = []
    for number, line in [*lines, (0, "")]:
        if line.strip(" \t"):
            sentence.append((number, line))
        elif sentence:
            yield f"{file}:{sentence[0][0]}", sentence
            sentence = []


def _word_and_tag(
    fields: Sequence[str], width: int, token_column: int, tag_column: int | None
) -> tuple[str, str | None]:
    if len(fields) != width:
        raise UnreadableRecordError(f"{len(fields)} columns, where the first line has {width}")
    word = text_cell(fields[token_column], "word")
    if tag_column is None:
        return word, None
    split_tag(fields[tag_column])
    return word, fields[tag_column]


def read_spans(
    path: str | Path,
    *,
    text: str = "text",
    spans: str | None = None,
    encoding: str = "utf-8",
    max_bad_share: float = 0.01,
) -> Examples:
    """Texts and their entities from JSON lines (or a JSON file): tuples of (start, end, type), in order.

    A record is `{"text": ..., "spans": [...]}`, as Prodigy and doccano write it; a span is an array [start, end, type]
    or an object with `start`, `end` and `label`. `end` is exclusive, and both count the characters of the text as
    Python does (code points).

    Args:
        path: the file.
        text: key of the texts.
        spans: key of the spans; left out, the first of spans, entities, label, labels that occurs. Where none does,
            the targets are None.
        encoding: of a file without byte order mark.
        max_bad_share: share of unreadable records above which the file is refused; below, they are reported.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: for no records, or too many bad ones (spans outside the text, empty, or overlapping); the message
            names file and line.
    """
    file = Path(path)
    records = list(json_records(file, decoded(file, encoding)))
    keys = object_keys(records) or ()
    if spans is None:
        spans = next((name for name in _SPAN_NAMES if name in keys), None)
    for name in (text, spans):
        if keys and name is not None and name not in keys:
            raise ValueError(f"{file} has no record with the key {name!r}; its keys are {', '.join(keys)}.")

    def example(cells: Cells) -> tuple[Any, Any]:
        whole = text_cell(cell(cells, text), "text")
        return whole, None if spans is None else _checked_spans(cell(cells, spans), whole)

    return collected(file, records, example, max_bad_share)


def _checked_spans(values: Any, text: str) -> tuple[_Span, ...]:
    if not isinstance(values, list):
        raise UnreadableRecordError(f"expected an array of spans; received {values!r:.40}")
    found = sorted(_span(value) for value in values)
    for number, (start, end, kind) in enumerate(found):
        if not 0 <= start < end <= len(text):
            problem = "is empty" if start == end else f"is not within the {len(text)} characters of the text"
            raise UnreadableRecordError(f"span {[start, end, kind]} {problem}")
        if number and start < found[number - 1][1]:
            raise UnreadableRecordError(f"spans {list(found[number - 1])} and {[start, end, kind]} overlap")
    return tuple(found)


def _span(value: Any) -> _Span:
    if isinstance(value, dict):
        value = [_first(value, names) for names in (_START_NAMES, _END_NAMES, _TYPE_NAMES)]
    if isinstance(value, list) and len(value) == 3:
        start, end, kind = value
        if type(start) is int and type(end) is int and isinstance(kind, str) and kind.strip():
            return start, end, text_cell(kind, "type of a span").strip()
    raise UnreadableRecordError(f"expected a span [start, end, type]; received {value!r:.60}")


def _first(values: dict[str, Any], names: Sequence[str]) -> Any:
    return next((values[name] for name in names if name in values), None)


def collected(
    file: Path,
    records: Iterable[Record | BadRecord],
    read: Callable[[Any], tuple[Any, Any]],
    max_bad_share: float,
    *,
    things: str = "records",
) -> Examples:
    """The examples that `read` makes of records; those that it cannot read are reported."""
    inputs: list[Any] = []
    targets: list[Any] = []
    bad: list[BadRecord] = []
    for record in records:
        if isinstance(record, BadRecord):
            bad.append(record)
            continue
        try:
            example = read(record[1])
        except UnreadableRecordError as error:
            bad.append(BadRecord(error.where or record[0], str(error)))
            continue
        inputs.append(example[0])
        targets.append(example[1])
    return tolerated(Examples(inputs, targets, tuple(bad)), file, max_bad_share, things=things)
