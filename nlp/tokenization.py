"""Text to tokens: windows of bounded length, each token with its place in the original string.

    T        tokens of a window, special tokens included
    offsets  characters of the original Python string, so that `text[start:end]` is what a token stands for

A text that does not fit in one window is spread over several that overlap; every token is in at least one of them, and
exactly one of them answers for it. The work is done by the `tokenizers` library, which releases the interpreter lock:
a `TextTokenizer` is never changed once it is made, and may be used from many threads.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from tokenizers import Encoding, Tokenizer, models

from nlp.tokenizer_files import (
    BERT_TOKENS,
    ROLES,
    bert_tokenizer,
    canonical,
    encodable,
    learn_word_pieces,
    read_tokenizer,
)

KINDS = {"WordPiece": "word_piece", "BPE": "byte_pair", "Unigram": "unigram", "WordLevel": "word_level"}
# Settings that name files or code of the machine where a tokenizer was made.
_LOCAL_SETTINGS = ("name_or_path", "special_tokens_map_file", "tokenizer_file", "vocab_file", "auto_map")
# U+3000 is the last white space.
_IS_SPACE = np.array([chr(code).isspace() for code in range(0x3002)])
# transformers writes a huge number where a tokenizer has no limit.
_NO_LIMIT = 1_000_000


@dataclass(frozen=True)
class Window:
    """Tokens that go through the model together, special tokens included; all arrays have T rows.

    Attributes:
        token_ids: int32 (T,).
        segment_ids: int32 (T,), 0 or 1, as the model was trained with; all 0 for RoBERTa's relatives.
        sides: int32 (T,): 0 for tokens of the text, 1 for those of its pair, -1 for special tokens.
        offsets: int32 (T, 2): start and end of the token in its own string, without surrounding white space; 0, 0 for
            special tokens. Where the input was words, they count within the token's word.
        word_ids: int32 (T,): number of the token's word, -1 for special tokens. Words are those that were given, or
            those that the tokenizer splits a text into.
        context: int32 (T,): tokens between this one and the nearest edge where the window cuts its text. The ends of
            the text itself are no edges; where nothing is cut, it is the number of tokens of the text.
        owned: bool (T,): whether this window answers for the token. Of the windows that a token is in, it is the one
            where the token has most context. False for special tokens.
    """

    token_ids: np.ndarray
    segment_ids: np.ndarray
    sides: np.ndarray
    offsets: np.ndarray
    word_ids: np.ndarray
    context: np.ndarray
    owned: np.ndarray

    @property
    def special(self) -> np.ndarray:
        """True for special tokens that the tokenizer added: bool (T,)."""
        return self.sides < 0

    def __len__(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True)
class Template:
    """The special tokens around a text, or around a text and its pair.

    `runs[i]` are the special tokens before side i, `runs[-1]` those at the end; `run_segments` and `side_segments`
    are the segments of the special tokens and of the sides.
    """

    runs: tuple[tuple[int, ...], ...]
    run_segments: tuple[tuple[int, ...], ...]
    side_segments: tuple[int, ...]

    @property
    def num_special(self) -> int:
        """How many special tokens there are."""
        return sum(len(run) for run in self.runs)


class TextTokenizer:
    """A text tokenizer with its special tokens.

    Args:
        text: a tokenizer as tokenizer.json holds it (`tokenizers.Tokenizer.to_str`).
        settings: what tokenizer_config.json holds, of which `pad_token`, `unk_token`, `cls_token`, `sep_token`,
            `mask_token`, `bos_token`, `eos_token` and `model_max_length` are used.

    Example:
        >>> tokenizer = TextTokenizer.train(["the cat sat on the mat"] * 9, vocab_size=100)
        >>> (window,) = tokenizer.windows("The cat", max_length=16)
        >>> window.offsets.tolist()
        [[0, 0], [0, 3], [4, 7], [0, 0]]
    """

    def __init__(self, text: str, settings: dict[str, Any] | None = None) -> None:
        self.settings = dict(settings or {})
        # Kept as it was read: the library writes some scores otherwise than it reads them.
        self._text = canonical(text)
        self._tokenizer = Tokenizer.from_str(self._text)
        self._templates = (_template(self._tokenizer, pair=False), _template(self._tokenizer, pair=True))
        self._spaces_in_tokens = self.kind != "word_piece"

    @classmethod
    def from_directory(cls, directory: str | Path) -> Self:
        """The tokenizer of a Hugging Face directory, or one that `save` wrote; see `nlp.tokenizer_files`.

        Raises:
            FileNotFoundError: where the directory has no tokenizer; the message says what was looked for.
            ValueError: for files that cannot be read.
        """
        return cls(*read_tokenizer(Path(directory)))

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, *, lower_case: bool = True) -> Self:
        """A WordPiece tokenizer learned from `texts`; the same texts give the same tokenizer.

        Args:
            texts: read once.
            vocab_size: largest number of tokens; the five special tokens and single characters count.
            lower_case: upper and lower case are the same, and accents are dropped.

        Raises:
            ValueError: where `texts` has no words.
        """
        settings: dict[str, Any] = {f"{role}_token": token for role, token in BERT_TOKENS.items()}
        settings |= {"do_lower_case": lower_case, "tokenizer_class": "PreTrainedTokenizerFast"}
        vocabulary = learn_word_pieces(texts, vocab_size, settings)
        model = models.WordPiece(vocabulary, unk_token=BERT_TOKENS["unk"])
        return cls(bert_tokenizer(model, BERT_TOKENS, settings).to_str(), settings)

    def save(self, directory: str | Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, which `from_directory` and transformers read."""
        directory = Path(directory)
        (directory / "tokenizer.json").write_text(self.to_json(), encoding="utf-8")
        settings = {key: value for key, value in self.settings.items() if key not in _LOCAL_SETTINGS}
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", **settings}
        text = json.dumps(settings, ensure_ascii=False, indent=2, sort_keys=True)
        (directory / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")

    def to_json(self) -> str:
        """The whole tokenizer as text, as in tokenizer.json; equal for equal tokenizers."""
        return self._text

    # What a model and a batch need to know.

    @property
    def kind(self) -> str:
        """`word_piece`, `byte_pair`, `unigram` or `word_level`."""
        return KINDS[type(self._tokenizer.model).__name__]

    @cached_property
    def vocab_size(self) -> int:
        """One more than the largest token id: rows that an embedding needs."""
        return int(max(self._tokenizer.get_vocab(with_added_tokens=True).values())) + 1

    @cached_property
    def special_tokens(self) -> dict[str, str]:
        """Special tokens by role: those of `pad`, `unk`, `cls`, `sep`, `mask`, `bos`, `eos` that there are."""
        named = {role: self.settings.get(f"{role}_token") for role in ROLES}
        return {role: token for role, token in named.items() if token and self.id_of(token) is not None}

    @property
    def pad_id(self) -> int:
        """The id to fill rows up with; 0 where there is no padding token. A mask hides it from the model."""
        return self._role_id("pad") or 0

    @property
    def unk_id(self) -> int | None:
        """The id of unknown tokens, where there is one."""
        return self._role_id("unk")

    @property
    def mask_id(self) -> int | None:
        """The id of the mask of masked language models, where there is one."""
        return self._role_id("mask")

    @property
    def max_length(self) -> int | None:
        """The longest window that the model was made for, special tokens included, where the settings say it."""
        limit = self.settings.get("model_max_length")
        return int(limit) if limit and limit < _NO_LIMIT else None

    def id_of(self, token: str) -> int | None:
        """The id of a token; None where there is no such token."""
        number: int | None = self._tokenizer.token_to_id(token)
        return number

    def token_of(self, token_id: int) -> str | None:
        """The token with this id; None where there is no such id."""
        token: str | None = self._tokenizer.id_to_token(token_id)
        return token

    def normalize(self, text: str) -> str:
        """`text` as the tokenizer cleans it before it is split."""
        normalizer = self._tokenizer.normalizer
        return text if normalizer is None else str(normalizer.normalize_str(encodable(text)))

    def template(self, *, pair: bool = False) -> Template:
        """The special tokens around a text, or around a text and its pair."""
        return self._templates[pair]

    def num_special(self, *, pair: bool = False) -> int:
        """How many special tokens are added to a text, or to a text and its pair."""
        return self._templates[pair].num_special

    # From text to windows.

    def windows(
        self, text: str, pair: str | None = None, *, max_length: int, overlap: int = 0, keep: int | None = None
    ) -> list[Window]:
        """`text`, or `text` with its `pair`, as windows of at most `max_length` tokens, in the order of the text.

        Where everything fits there is one window. Otherwise:

        - One text: windows are full; each shares at least `overlap` tokens with the one before (at most half of a
          window). The last is full as well, and so shares more.
        - A pair: the shorter side is whole in every window as long as it takes no more than half of the room; the
          longer side is spread over windows in the rest, as a single text is. If both are longer than half of the
          room, each has one half and both are spread, the side of fewer windows going more slowly. The first window
          is what transformers' truncation `longest_first` keeps.

        Args:
            text: any string; lone surrogates are read as U+FFFD.
            pair: a second text.
            max_length: most tokens of a window, special tokens included.
            overlap: tokens that neighbouring windows share.
            keep: only that many windows, the first ones; 1 cuts the text where the first window ends.

        Raises:
            TypeError: where a text is no `str`.
            ValueError: where `max_length` has no room for tokens beside the special ones.
        """
        texts = (text,) if pair is None else (text, pair)
        return self._cut([self._side_of_text(part) for part in texts], max_length, overlap, keep)

    def windows_of_batch(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        *,
        max_length: int,
        overlap: int = 0,
        keep: int | None = None,
    ) -> list[list[Window]]:
        """`windows` of each text; quicker for many, which are then split on all cores."""
        columns = [texts] if pairs is None else [texts, pairs]
        if pairs is not None and len(pairs) != len(texts):
            raise ValueError(f"`pairs` must be as many as `texts`; received {len(pairs)} and {len(texts)}.")
        sides = []
        for column in columns:
            encodings = self._tokenizer.encode_batch([encodable(text) for text in column], add_special_tokens=False)
            sides.append([self._side(encoding, text) for encoding, text in zip(encodings, column, strict=True)])
        return [self._cut(parts, max_length, overlap, keep) for parts in zip(*sides, strict=True)]

    def windows_of_words(
        self, words: Sequence[str], *, max_length: int, overlap: int = 0, keep: int | None = None
    ) -> list[Window]:
        """As `windows`, for a text that comes as words: `word_ids` number them and `offsets` count within each.

        A word of which nothing is left when it is cleaned (an empty one, a lone control character) has no token.
        Byte-level tokenizers read each word with a space before it, as with transformers' `add_prefix_space`.

        Raises:
            TypeError: where `words` is one string, or a word is no `str`.
            ValueError: where `max_length` has no room for tokens beside the special ones.
        """
        if isinstance(words, str):
            raise TypeError("`words` must be a sequence of words; received one string. Call `windows`, or split it.")
        return self._cut([self._side_of_words([encodable(word) for word in words])], max_length, overlap, keep)

    def _role_id(self, role: str) -> int | None:
        token = self.special_tokens.get(role)
        return None if token is None else self.id_of(token)

    def _side_of_text(self, text: str) -> _Side:
        return self._side(self._tokenizer.encode(encodable(text), add_special_tokens=False), text)

    def _side(self, encoding: Encoding, text: str) -> _Side:
        side = _arrays(encoding)
        if self._spaces_in_tokens and len(side.offsets):
            _trim(side.offsets, text)
        return side

    def _side_of_words(self, words: list[str]) -> _Side:
        spaced = [f" {word}" if self._reads_spaces and word and word[0] != " " else word for word in words]
        side = _arrays(self._tokenizer.encode(spaced, is_pretokenized=True, add_special_tokens=False))
        if not len(side.offsets):
            return side
        # As characters of all words after one another, and back.
        lengths = np.array([len(word) for word in spaced])
        starts = (np.cumsum(lengths) - lengths)[side.words][:, None]
        added = np.array([len(s) - len(w) for s, w in zip(spaced, words, strict=True)])[side.words][:, None]
        side.offsets[:] += starts.astype(np.int32)
        _trim(side.offsets, "".join(spaced))
        side.offsets[:] = np.maximum(side.offsets - starts - added, 0)
        return side

    @cached_property
    def _reads_spaces(self) -> bool:
        pre_tokenizer = json.loads(self.to_json()).get("pre_tokenizer") or {}
        parts = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
        return any(part.get("type") == "ByteLevel" for part in parts)

    def _cut(self, sides: Sequence[_Side], max_length: int, overlap: int, keep: int | None) -> list[Window]:
        template = self._templates[len(sides) - 1]
        room = max_length - template.num_special
        if room < len(sides):
            raise ValueError(
                f"`max_length` must be at least {template.num_special + len(sides)}, of which {template.num_special} "
                f"are special tokens; received {max_length}."
            )
        if overlap < 0:
            raise ValueError(f"`overlap` must be at least 0; received {overlap}.")
        rows = spans([len(side.ids) for side in sides], room, overlap)[:keep]
        return [_window(template, sides, row) for row in rows]


def spans(lengths: Sequence[int], room: int, overlap: int) -> list[tuple[Span, ...]]:
    """Where the windows of one or two sides of these lengths lie, a span of each side per window.

    Args:
        lengths: number of tokens of the text, and of its pair.
        room: tokens of a window without special tokens.
        overlap: tokens that neighbouring windows share; at most half of a window.
    """
    if len(lengths) == 1:
        return [(span,) for span in _spans(lengths[0], room, overlap)]
    first, second = lengths
    text, pair = _shares(first, second, room)
    columns = _spans(first, text, overlap), _spans(second, pair, overlap)
    count = max(len(column) for column in columns)
    return [tuple(_at(column, row, count) for column in columns) for row in range(count)]


@dataclass(frozen=True)
class Span:
    """Tokens from `start` to `stop` of a side, of which those from `owned_start` to `owned_stop` are answered for."""

    start: int
    stop: int
    owned_start: int
    owned_stop: int


def _shares(first: int, second: int, room: int) -> tuple[int, int]:
    """Room for the text and for its pair; where both are long, an odd token goes to the longer, else to the pair."""
    if first + second <= room:
        return first, second
    short = min(first, second, room // 2)
    return (room - short, short) if first > second else (short, room - short)


def _spans(length: int, width: int, overlap: int) -> list[Span]:
    if length <= width:
        return [Span(0, length, 0, length)]
    step = width - min(overlap, width // 2)
    count = 1 + -(-(length - width) // step)
    starts = [min(row * step, length - width) for row in range(count)]
    # In the middle of what two windows share, a token has as much context in one as in the other.
    borders = [0, *((starts[row] + width + starts[row + 1] + 1) // 2 for row in range(count - 1)), length]
    return [Span(starts[row], starts[row] + width, borders[row], borders[row + 1]) for row in range(count)]


def _at(column: Sequence[Span], row: int, count: int) -> Span:
    """The span of window `row` of `count`, of a side that has fewer spans; it answers only where it is first shown."""
    number = row * len(column) // count
    span = column[number]
    if row and (row - 1) * len(column) // count == number:
        return Span(span.start, span.stop, span.owned_start, span.owned_start)
    return span


@dataclass(frozen=True)
class _Side:
    """All tokens of a text, without special tokens added."""

    ids: np.ndarray
    offsets: np.ndarray
    words: np.ndarray


def _arrays(encoding: Encoding) -> _Side:
    ids, words = encoding.ids, encoding.word_ids
    # Twice as quick as to make an array of pairs.
    offsets = np.fromiter(itertools.chain.from_iterable(encoding.offsets), np.int32, 2 * len(ids)).reshape(-1, 2)
    if None in words:
        words = [-1 if word is None else word for word in words]
    return _Side(np.array(ids, np.int32), offsets, np.array(words, np.int32))


def _trim(offsets: np.ndarray, text: str) -> None:
    """Take white space off both ends of each token, in place; a token of white space alone is left empty.

    Byte-level and SentencePiece tokens begin with the space before their word.
    """
    characters = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    is_space = _IS_SPACE[np.minimum(characters, len(_IS_SPACE) - 1)]
    if not is_space.any():
        return
    places = np.arange(len(text), dtype=np.int32)
    following = np.minimum.accumulate(np.where(is_space, np.int32(len(text)), places)[::-1])[::-1]
    before = np.maximum.accumulate(np.where(is_space, np.int32(-1), places)) + 1
    starts, ends = offsets[:, 0], offsets[:, 1]
    some = ends > starts
    starts[some] = np.minimum(following[starts[some]], ends[some])
    ends[some] = np.maximum(before[ends[some] - 1], starts[some])


def _window(template: Template, sides: Sequence[_Side], row: Sequence[Span]) -> Window:
    length = template.num_special + sum(span.stop - span.start for span in row)
    window = Window(
        token_ids=np.empty(length, np.int32),
        segment_ids=np.empty(length, np.int32),
        sides=np.full(length, -1, np.int32),
        offsets=np.zeros((length, 2), np.int32),
        word_ids=np.full(length, -1, np.int32),
        context=np.zeros(length, np.int32),
        owned=np.zeros(length, bool),
    )
    place = 0
    for number, run in enumerate(template.runs):
        window.token_ids[place : place + len(run)] = run
        window.segment_ids[place : place + len(run)] = template.run_segments[number]
        place += len(run)
        if number < len(row):
            _place(window, place, number, sides[number], row[number])
            window.segment_ids[place : place + row[number].stop - row[number].start] = template.side_segments[number]
            place += row[number].stop - row[number].start
    return window


def _place(window: Window, place: int, number: int, side: _Side, span: Span) -> None:
    here = slice(place, place + span.stop - span.start)
    window.token_ids[here] = side.ids[span.start : span.stop]
    window.sides[here] = number
    window.offsets[here] = side.offsets[span.start : span.stop]
    window.word_ids[here] = side.words[span.start : span.stop]
    window.owned[place + span.owned_start - span.start : place + span.owned_stop - span.start] = True
    window.context[here] = _context(len(side.ids), span)


def _context(length: int, span: Span) -> np.ndarray | int:
    if span.stop - span.start == length:
        return length
    places = np.arange(span.start, span.stop)
    before = places - span.start if span.start else length
    after = span.stop - 1 - places if span.stop < length else length
    return np.minimum(before, after)


def _template(tokenizer: Tokenizer, *, pair: bool) -> Template:
    """What the post-processor adds, found by trying it on a text of one or more tokens."""
    sample = next((text for text in "a.1" if tokenizer.encode(text, add_special_tokens=False).ids), None)
    if sample is None:
        raise ValueError("The tokenizer gives no tokens for 'a', '.' or '1'; its vocabulary must have characters.")
    done = tokenizer.encode(sample, sample if pair else None)
    runs: list[list[int]] = [[]]
    run_segments: list[list[int]] = [[]]
    side_segments: list[int] = []
    for token, segment, side in zip(done.ids, done.type_ids, done.sequence_ids, strict=True):
        if side is None:
            runs[-1].append(token)
            run_segments[-1].append(segment)
        elif side == len(side_segments):
            side_segments.append(segment)
            runs.append([])
            run_segments.append([])
    return Template(tuple(map(tuple, runs)), tuple(map(tuple, run_segments)), tuple(side_segments))
