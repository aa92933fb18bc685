"""Readers of parallel texts: two aligned files, tables, JSON lines and TMX to pairs of a text and its translation.

Lines end at line feeds only: Unicode has other line breaks, which are part of a text. Files may be gzipped.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any
from xml.parsers import expat

from nlp.data import collected
from nlp.tables import Record, UnreadableRecordError, decoded, delimited_records, json_records, numbered_lines, suffix
from nlp.tables import text_cell as checked_text
from shared.examples import BadRecord, Examples, existing_file

# Shorter texts may differ in length as they like: "Ja." is "Yes, of course I will."
_SHORTEST_COMPARED = 40
_BLOCK = 1 << 20


def read_parallel(
    path: str | Path,
    target: str | Path | None = None,
    *,
    source_language: str = "",
    target_language: str = "",
    encoding: str = "utf-8",
    max_ratio: float = 9.0,
    max_bad_share: float = 0.01,
) -> Examples:
    """Pairs of a text and its translation.

    Two files whose lines belong together, named by `path` and `target`; or by `path` alone and the languages at the end
    of their names: `read_parallel("data/train", source_language="en", target_language="de")` reads data/train.en and
    data/train.de, plain or with .gz behind. Or one file: .tsv with the source in the first column and the target in the
    second; .jsonl or .json with the keys `source` and `target`, or with the languages as keys, at the top or within
    `translation`; .tmx (TMX 1.4), of which the languages tell what is the source.

    Args:
        path: a file, or the common beginning of two.
        target: the file of the translations.
        source_language: of the file's name, the JSON key or the TMX segment, such as en.
        target_language: the same for the translations.
        encoding: of files without byte order mark.
        max_ratio: how many times as long as its translation a text may be, or the other way round, in characters;
            what has fewer than 40 is not compared.
        max_bad_share: share of unusable pairs above which the files are refused; below, they are reported.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: for files of unequal numbers of lines, languages that are missing, no pairs, or too many bad ones;
            the message names file and line.
    """
    if max_ratio < 1:
        raise ValueError(f"`max_ratio` must be at least 1; received {max_ratio}.")
    languages = source_language, target_language
    pair = _two_files(Path(path), target, languages)
    file = Path(path) if pair is None else pair[0]
    records = _records(existing_file(file), languages, encoding) if pair is None else _aligned(*pair, encoding)
    return collected(file, records, lambda cells: _good_pair(cells, max_ratio), max_bad_share, things="pairs")


def _two_files(path: Path, target: str | Path | None, languages: tuple[str, str]) -> tuple[Path, Path] | None:
    """The two files that a call names; None where it names one for both."""
    if target is not None:
        return path, Path(target)
    if path.is_file():
        return None
    if all(languages):
        found = [_with_language(path, language) for language in languages]
        if None not in found:
            return found[0], found[1]  # type: ignore[return-value]
        expected = " and ".join(f"{path}.{language}" for language in languages)
        raise FileNotFoundError(f"There is no {path}, and not both of {expected} (or with .gz). Check the path.")
    if path.parent.is_dir() and any(path.parent.glob(f"{path.name}.*")):
        raise ValueError(
            f"{path} is the beginning of several files. Say `source_language` and `target_language` (on the command "
            "line --source-language and --target-language), with which their names end."
        )
    raise FileNotFoundError(f"There is nothing at {path}. Check the path.")


def _with_language(path: Path, language: str) -> Path | None:
    names = (f"{path.name}.{language}", f"{path.name}.{language}.gz")
    return next((path.with_name(name) for name in names if path.with_name(name).is_file()), None)


def _aligned(source: Path, target: Path, encoding: str) -> Iterator[Record]:
    lines = [[line for _, line in numbered_lines(decoded(file, encoding))] for file in (source, target)]
    for side in lines:
        if side and not side[-1]:  # behind the last line feed
            side.pop()
    if len(lines[0]) != len(lines[1]):
        raise ValueError(
            f"{source} has {len(lines[0])} lines and {target} {len(lines[1])}; expected as many, line by line."
        )
    for number, pair in enumerate(zip(*lines, strict=True), start=1):
        yield f"{source}:{number}", list(pair)


def _records(file: Path, languages: tuple[str, str], encoding: str) -> Iterator[Record | BadRecord]:
    kind = suffix(file)
    if kind == ".tmx":
        yield from _translation_units(file, languages)
    elif kind in (".json", ".jsonl", ".ndjson"):
        for record in json_records(file, decoded(file, encoding)):
            yield record if isinstance(record, BadRecord) else _of_object(*record, languages)
    elif kind in (".tsv", ".csv", ".txt"):
        delimiter = None if kind == ".csv" else "\t"
        for row in delimited_records(file, decoded(file, encoding), delimiter=delimiter):
            yield row if isinstance(row, BadRecord) else _of_row(*row)
    else:
        raise ValueError(
            f"{file}: expected .tsv, .csv, .jsonl, .json or .tmx, or two aligned files; received {kind!r}."
        )


def _of_row(where: str, cells: Any) -> Record | BadRecord:
    if len(cells) < 2:
        return BadRecord(where, "one column, expected a text and its translation")
    return where, cells[:2]


def _of_object(where: str, record: Any, languages: tuple[str, str]) -> Record | BadRecord:
    if isinstance(record, dict) and isinstance(record.get("translation"), dict):
        record = record["translation"]
    if not isinstance(record, dict):
        return BadRecord(where, "expected a JSON object; received an array")
    keys = ("source", "target") if "source" in record and "target" in record else languages
    missing = [key or "source and target" for key in keys if key not in record]
    if missing:
        return BadRecord(where, f"no {missing[0]}, only {', '.join(record)}; say the languages to read")
    return where, [record[key] for key in keys]


def _good_pair(cells: Any, max_ratio: float) -> tuple[str, str]:
    source, target = cells
    pair = checked_text(source, "source").strip(), checked_text(target, "target").strip()
    shorter, longer = sorted(map(len, pair))
    if longer >= _SHORTEST_COMPARED and longer > max_ratio * shorter:
        raise UnreadableRecordError(f"{len(pair[0])} and {len(pair[1])} characters, a ratio above {max_ratio:g}")
    return pair


# TMX.


def _translation_units(file: Path, languages: tuple[str, str]) -> Iterator[Record | BadRecord]:
    """The units of a TMX file, read block by block."""
    if not all(languages):
        raise ValueError(f"{file}: say `source_language` and `target_language`, which a TMX file has in any order.")
    units = _Units(file, languages)
    with _opened(file) as stream:
        while True:
            block = _read(file, stream)
            yield from units.feed(block)
            if not block:
                return


def _opened(file: Path) -> IO[bytes] | gzip.GzipFile:
    with file.open("rb") as stream:
        packed = stream.read(2) == b"\x1f\x8b"
    return gzip.open(file) if packed else file.open("rb")


def _read(file: Path, stream: IO[bytes] | gzip.GzipFile) -> bytes:
    try:
        return stream.read(_BLOCK)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{file} is a truncated or damaged gzip file.") from error


class _Units:
    """The translation units of TMX text as it comes; declarations of entities are refused."""

    def __init__(self, file: Path, languages: tuple[str, str]) -> None:
        self._file, self._languages = file, languages
        self._parser = expat.ParserCreate()
        self._parser.buffer_text = True
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._text
        self._parser.EntityDeclHandler = self._entity
        self._found: list[Record | BadRecord] = []
        self._segments: dict[str, str] = {}
        self._language = ""
        self._parts: list[str] | None = None
        self._inner = 0  # depth within tags of the layout, whose text is none of the sentence

    def feed(self, block: bytes) -> Iterable[Record | BadRecord]:
        """The units that are complete with this block; an empty one is the end."""
        try:
            self._parser.Parse(block, not block)
        except expat.ExpatError as error:
            raise ValueError(f"{self._file}:{error.lineno}: no valid XML ({expat.ErrorString(error.code)}).") from error
        found, self._found = self._found, []
        return found

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        if name == "tu":
            self._segments = {}
        elif name == "tuv":
            self._language = attributes.get("xml:lang", attributes.get("lang", ""))
        elif name == "seg":
            self._parts = []
        elif self._parts is not None and name in ("bpt", "ept", "it", "ph", "ut"):
            self._inner += 1

    def _end(self, name: str) -> None:
        if name == "seg" and self._parts is not None:
            self._segments[self._language.lower()] = "".join(self._parts)
            self._parts = None
        elif name == "tu":
            where = f"{self._file}:{self._parser.CurrentLineNumber}"
            pair = [self._segment(language) for language in self._languages]
            missing = [lang for lang, text in zip(self._languages, pair, strict=True) if text is None]
            if missing:
                known = ", ".join(self._segments) or "nothing"
                self._found.append(BadRecord(where, f"no segment in {missing[0]}, only {known}"))
            else:
                self._found.append((where, pair))
        elif self._inner and name in ("bpt", "ept", "it", "ph", "ut"):
            self._inner -= 1

    def _segment(self, language: str) -> str | None:
        """The segment in a language, or in a variety of it: en for en-GB."""
        language = language.lower()
        exact = self._segments.get(language)
        varieties = (text for key, text in self._segments.items() if re.split("[-_]", key)[0] == language)
        return exact if exact is not None else next(varieties, None)

    def _text(self, text: str) -> None:
        if self._parts is not None and not self._inner:
            self._parts.append(text)

    def _entity(self, name: str, *_: Any) -> None:
        raise ValueError(
            f"{self._file}:{self._parser.CurrentLineNumber}: the entity {name!r} is declared, which is refused: it "
            "could read other files or fill the memory. Write the text in its place."
        )
