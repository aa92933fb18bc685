"""Texts cut into sentences, with nothing lost: the sentences and what stands between them are the text again.

The rules are few and the same for all languages. A sentence ends with a line, or behind marks such as . ! ? and their
like in other scripts, and the quotes and brackets that close after them. A full stop or an ellipsis ends it only where
white space and no small letter follows, and not behind an initial (J. Smith), a number that stands alone (3. Oktober),
one of a few titles (Dr. Smith), or a word that a number follows (No. 5). Marks of scripts without spaces need none
behind them. Mistakes are harmless: two sentences are then translated together, or one in two parts.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

# Marks that may stand inside a sentence: . and … of Latin scripts, ; in Greek is not among them.
_WEAK = ".…"
_STRONG = "!?؟۔।॥։።፧‼⁇⁈⁉"
_WITHOUT_SPACE = "。！？｡"
_CLOSING = "\"'”’»›)]}」』）】》〉"
_ENDS = re.compile(
    f"[{re.escape(_WITHOUT_SPACE)}]+[{re.escape(_CLOSING)}]*"
    rf"|[{re.escape(_WEAK + _STRONG)}]+[{re.escape(_CLOSING)}]*(?=\s)"
)
_LINE = re.compile(r"[^\n\r\u2028\u2029\x0b\x0c\x85]+")
# Titles and the like that a name or a number follows.
_TITLES = frozenset(
    ("mr", "mrs", "ms", "dr", "prof", "st", "sr", "jr", "vs", "cf", "ca", "approx", "dept", "gen", "col", "sgt", "lt",
     "capt", "rev", "hon", "hr", "fr", "bzw", "ggf", "sog", "vgl", "mme", "mlle", "sra", "srta", "dra")
)  # fmt: skip
_BEFORE_NUMBERS = frozenset(["no", "nr", "fig", "vol", "pp", "p", "art", "abs", "bd", "ch", "sec"])
# Where a sentence is best cut that is too long, the best first.
_CUTS = (re.compile(r"[;:；：]\s*"), re.compile(r"[,،，、]\s*"), re.compile(r"\s+"))


@dataclass(frozen=True)
class Piece:
    """A sentence, and what stands between it and the next: white space, line breaks. Either may be empty."""

    text: str
    after: str


def split_sentences(text: str, *, max_characters: int | None = None) -> list[Piece]:
    """The sentences of a text; their texts and what stands after them, put together, are the text.

    Args:
        text: any.
        max_characters: longer sentences are cut, at the last mark, space or character before so many.
    """
    return _pieces(text, [end for line in _LINE.finditer(text) for end in _ends(text, *line.span())], max_characters)


def split_lines(text: str) -> list[Piece]:
    """The lines of a text, as `split_sentences` gives sentences."""
    return _pieces(text, [line.end() for line in _LINE.finditer(text)], None)


def _pieces(text: str, ends: list[int], max_characters: int | None) -> list[Piece]:
    """Pieces that end at `ends`; white space around them goes to what stands between."""
    found: list[Piece] = []
    place = 0
    lead = len(text) - len(text.lstrip())
    if lead:
        found.append(Piece("", text[:lead]))
        place = lead
    for end in [*(end for end in ends if end > place), len(text)]:
        part = text[place:end]
        if not part:
            continue
        body = part.strip()
        start = part.index(body) if body else len(part)
        if start and found:
            found[-1] = Piece(found[-1].text, found[-1].after + part[:start])
        if body:
            found += _cut(body, part[start + len(body) :], max_characters)
        place = end
    return found


def _ends(text: str, start: int, stop: int) -> Iterator[int]:
    """Where sentences end in a line, `stop` last."""
    for mark in _ENDS.finditer(text, start, stop):
        if mark.end() < stop and (mark[0][0] not in _WEAK or _is_end(text, start, mark, stop)):
            yield mark.end()
    yield stop


def _is_end(text: str, start: int, mark: re.Match[str], stop: int) -> bool:
    """Whether a full stop or an ellipsis ends a sentence."""
    following = text[mark.end() : mark.end() + 40].lstrip().lstrip("\"'“„«‹([{¿¡")
    if following[:1].islower():
        return False
    if mark[0][0] != "." or mark[0].startswith(".."):
        return True
    before = re.search(r"[\w.]*\Z", text[max(start, mark.start() - 40) : mark.start()])
    word = before[0] if before else ""
    last = word.rpartition(".")[2]
    if last.lower() in _BEFORE_NUMBERS and following[:1].isdecimal():
        return False
    return not ((len(last) == 1 and last.isalpha() and last.isupper()) or last.isdecimal() or last.lower() in _TITLES)


def _cut(sentence: str, after: str, max_characters: int | None) -> Iterator[Piece]:
    """A sentence in parts of at most so many characters."""
    place = 0
    while max_characters is not None and len(sentence) - place > max_characters:
        end = _best_cut(sentence, place, place + max(1, max_characters))
        while sentence[end].isspace():  # it ends with another character
            end += 1
        part = sentence[place:end]
        yield Piece(part.rstrip(), part[len(part.rstrip()) :])
        place = end
    part = sentence[place:]
    yield Piece(part, after)


def _best_cut(text: str, start: int, limit: int) -> int:
    """Where to cut between `start` and `limit`: at a mark in the second half, else a space, else between characters."""
    middle = start + (limit - start) // 2
    for pattern in _CUTS:
        ends = [found.end() for found in pattern.finditer(text, middle, limit)]
        if ends:
            return ends[-1]
    end = limit
    while end > start + 1 and _joins(text, end):
        end -= 1
    return limit if end == start + 1 and limit > start + 1 else end


def _joins(text: str, place: int) -> bool:
    """Whether the characters around a place belong together: a mark over a letter, parts of one emoji."""
    following, before = text[place], text[place - 1]
    return (
        unicodedata.combining(following) != 0
        or unicodedata.category(following) in ("Mn", "Me", "Mc")
        or following in "\u200d\ufe0f"
        or before == "\u200d"
        or "\U0001f3fb" <= following <= "\U0001f3ff"
    )
