"""SentencePiece model files: read, checked, run by the `sentencepiece` library, and trained.

A file is a protocol buffer (google/sentencepiece: src/sentencepiece_model.proto). It is taken apart here before the
library sees it: a damaged file is a `ValueError` rather than a read past the end of a table, and what is found is what
tokenizers and graphs are made from.
"""

from __future__ import annotations

import functools
import io
import logging
import random
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import sentencepiece

# Numbers of sentencepiece_model.proto: kinds of models and of pieces.
UNIGRAM, BYTE_PAIRS = 1, 2
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
META = "▁"
Kind = Literal["unigram", "bpe"]
# Those of half a million pieces take about ten.
_LARGEST_FILE = 64 << 20
# As in the library.
_LONGEST_LINE = 4192
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SentencePieceModel:
    """A SentencePiece model.

    Attributes:
        data: the file.
        pieces: text, score and kind of each piece; its place is its number.
        model_type: `UNIGRAM`, `BYTE_PAIRS`, or 3 and 4 for models of words and of characters.
        unknown: number of the piece for what is unknown.
        byte_fallback: whether unknown characters are spelled as bytes.
        character_map: precompiled rules, or nothing; see `character_map_parts`.
        add_dummy_prefix: whether a text begins with a space.
        remove_extra_whitespaces: whether runs of spaces are one space, and none are at the ends.
        escape_whitespaces: whether a space is written as U+2581.
        suffix: whether that space is put behind words rather than before them.
    """

    data: bytes = field(repr=False)
    pieces: tuple[tuple[str, float, int], ...] = field(repr=False)
    model_type: int = UNIGRAM
    unknown: int = 0
    byte_fallback: bool = False
    character_map: bytes = field(default=b"", repr=False)
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True
    escape_whitespaces: bool = True
    suffix: bool = False

    @property
    def scored(self) -> list[tuple[str, float]]:
        """Text and score of each piece."""
        return [(text, score) for text, score, _ in self.pieces]

    @functools.cached_property
    def numbers(self) -> dict[str, int]:
        """Each piece's number."""
        return {text: number for number, (text, _, _) in enumerate(self.pieces)}

    @functools.cached_property
    def processor(self) -> Any:
        """The library's own object, which may be used from many threads."""
        return sentencepiece.SentencePieceProcessor(model_proto=self.data)


def read_sentence_pieces(file: Path) -> SentencePieceModel:
    """The model in a file.

    Raises:
        ValueError: where the file is damaged, of another kind, or larger than such files are.
    """
    size = file.stat().st_size
    if size > _LARGEST_FILE:
        raise ValueError(f"{file} has {size} bytes; a SentencePiece model has at most {_LARGEST_FILE}. Copy it again.")
    return parse_sentence_pieces(file.read_bytes(), str(file))


def parse_sentence_pieces(data: bytes, name: str) -> SentencePieceModel:
    """As `read_sentence_pieces`, for the bytes of a file; `name` is what errors call it."""
    try:
        model = _parsed(data)
        _check_pieces(model)
        if model.character_map:
            character_map_parts(model.character_map)
        # The library has checks of its own.
        sentencepiece.SentencePieceProcessor(model_proto=data)
    except (IndexError, KeyError, struct.error, ValueError, AttributeError, TypeError, RuntimeError) as error:
        raise ValueError(f"{name} is no SentencePiece model, or is damaged ({error}). Copy the file again.") from error
    return model


def _parsed(data: bytes) -> SentencePieceModel:
    pieces: list[tuple[str, float, int]] = []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    for number, value in _fields(data):
        if number == 1:
            piece = dict(_fields(value))
            pieces.append((piece[1].decode("utf-8"), _float(piece.get(2, b"\0\0\0\0")), piece.get(3, NORMAL)))
        elif number == 2:
            trainer |= dict(_fields(value))
        elif number == 3:
            normalizer |= dict(_fields(value))
    # The library goes by the kind of the piece, not by the number in its settings.
    unknown = [number for number, (_, _, kind) in enumerate(pieces) if kind == UNKNOWN]
    if len(unknown) != 1:
        raise ValueError(f"{len(pieces)} pieces, of which {len(unknown)} stand for what is unknown; expected one")
    return SentencePieceModel(
        data,
        tuple(pieces),
        model_type=trainer.get(3, UNIGRAM),
        unknown=unknown[0],
        byte_fallback=bool(trainer.get(35, 0)),
        character_map=normalizer.get(2, b""),
        add_dummy_prefix=bool(normalizer.get(3, 1)),
        remove_extra_whitespaces=bool(normalizer.get(4, 1)),
        escape_whitespaces=bool(normalizer.get(5, 1)),
        suffix=bool(trainer.get(24, 0)),
    )


def _check_pieces(model: SentencePieceModel) -> None:
    if len(model.numbers) < len(model.pieces) or "" in model.numbers:
        raise ValueError("a piece is empty, or there twice")
    if not np.isfinite([score for _, score, _ in model.pieces]).all():
        raise ValueError("a piece has a score that is no number")
    spelled = [text for text, _, kind in model.pieces if kind == BYTE]
    if spelled and sorted(spelled) != [f"<0x{byte:02X}>" for byte in range(256)]:
        raise ValueError(f"{len(spelled)} of 256 bytes")
    if model.byte_fallback and not spelled:
        raise ValueError("no pieces for bytes, which its settings ask for")


def _float(data: bytes) -> float:
    value: float = struct.unpack("<f", data)[0]
    return value


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Fields of a protocol buffer: (number, an integer for varints, else bytes)."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        kind = key & 7
        if kind == 0:
            value, position = _varint(data, position)
            yield key >> 3, value
            continue
        if kind == 2:
            length, position = _varint(data, position)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise IndexError(f"field kind {kind}")
        if position + length > len(data):
            raise IndexError("cut off")
        yield key >> 3, data[position : position + length]
        position += length


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position
        if shift > 63:
            raise IndexError("a number of more than ten bytes")


# The character map.


def character_map_parts(data: bytes) -> tuple[np.ndarray, bytes]:
    """A precompiled character map: a search tree over UTF-8, and what is put in the place of what is found.

    The tree is a double array (Aoe, 1989) as darts-clone lays it out: uint32 (M,). Its values are places in the texts,
    each of which is ended by a zero byte.

    Raises:
        ValueError: where the parts do not fit together, or the tree leads anywhere else.
    """
    if len(data) < 4:
        raise ValueError("a character map that is cut off")
    (size,) = struct.unpack_from("<I", data)
    if not 1024 <= size < len(data) - 4 or size % 1024 or data[-1]:
        raise ValueError("a character map whose parts do not fit together")
    units, texts = np.frombuffer(data, "<u4", size // 4, 4), data[4 + size :]
    places = character_map_values(units.astype(np.int64))
    if (places >= len(texts)).any():
        raise ValueError("a character map that points behind its end")
    texts.decode("utf-8")
    return units, texts


def character_map_values(units: np.ndarray) -> np.ndarray:
    """All values of a double array: int64. Looks at every place that a search can reach, once."""
    labels = np.arange(1, 256)
    seen = np.zeros(len(units), bool)
    nodes = np.zeros(1, np.int64)
    found = [np.zeros(0, np.int64)]
    while len(nodes):
        seen[nodes] = True
        values = units[nodes]
        bases = nodes ^ ((values >> 10) << ((values & 512) >> 6))
        if (bases >= len(units)).any():
            raise ValueError("a character map that leads nowhere")
        found.append(units[bases[values & 256 > 0]] & 0x7FFFFFFF)
        # A row of 256 units is whole, so no place is behind the end.
        places = bases[:, None] ^ labels
        nodes = np.unique(places[(units[places] & 0x800000FF) == labels])
        nodes = nodes[~seen[nodes]]
    return np.concatenate(found)


# Training.


def train_sentence_pieces(
    texts: Iterable[str], *, vocab_size: int, kind: Kind = "unigram", languages: Sequence[str] = ()
) -> SentencePieceModel:
    """A model learned from `texts`: unigram (Kudo, 2018) or byte pairs (Sennrich et al., 2016).

    Padding is piece 0, the end 1, what is unknown 2. Text is normalised as the library does it (`nmt_nfkc`), and a
    character that is not in the vocabulary is spelled as its bytes, so that nothing is ever unknown. The same texts
    give the same model.

    Args:
        texts: valid Unicode; lines of more than 4192 bytes are left out.
        vocab_size: most pieces. Where the texts do not have so many, the model has fewer, and the log says so.
        kind: `unigram` or `bpe`.
        languages: codes, for each of which there is a piece `>>code<<`.

    Raises:
        ValueError: where there is no text, or `vocab_size` has no room for bytes and characters.
    """
    if kind not in get_args(Kind):
        raise ValueError(f"`kind` must be one of {', '.join(get_args(Kind))}; received {kind!r}.")
    lines = [line for text in texts for line in text.splitlines() if line.strip()]
    if not any(len(line.encode()) <= _LONGEST_LINE for line in lines):
        raise ValueError(
            f"A vocabulary needs texts of 1 to {_LONGEST_LINE} bytes a line to learn from; received none. Give "
            "sentences, and see that neither side is empty."
        )
    file = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=file,
            model_type=kind,
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            byte_fallback=True,
            max_sentence_length=_LONGEST_LINE,
            control_symbols=[f">>{code}<<" for code in languages],
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            pad_piece="<pad>",
            eos_piece="</s>",
            unk_piece="<unk>",
            # Partial sums are added in the order of threads: another number would give other scores.
            num_threads=4,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(
            f"No vocabulary of {vocab_size} pieces can be learned from these texts: "
            f"{str(error).split('] ')[-1].strip()}"
        ) from error
    model = parse_sentence_pieces(file.getvalue(), "The trained model")
    if len(model.pieces) < vocab_size:
        _log.info("The texts have %d pieces; the vocabulary is smaller than %d.", len(model.pieces), vocab_size)
    return model


def sample(rows: Iterable[Any], size: int, seed: int) -> list[Any]:
    """At most `size` of `rows`, each with the same probability, in their order (reservoir sampling; Vitter, 1985)."""
    random_number = random.Random(seed)
    kept: list[tuple[int, Any]] = []
    for number, row in enumerate(rows):
        if number < size:
            kept.append((number, row))
        elif (place := random_number.randint(0, number)) < size:
            kept[place] = (number, row)
    return [row for _, row in sorted(kept, key=lambda entry: entry[0])]
