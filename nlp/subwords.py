"""The vocabularies of translation: texts of one language to token ids, token ids of the other to texts.

Four kinds of files are read: Hugging Face's of Marian (two SentencePiece models and vocab.json), Hugging Face's
tokenizer.json (BART, T5), Marian's own (SentencePiece models whose piece numbers are the ids), and those written here.
transformers also normalises punctuation for Marian where the package sacremoses is installed; here nothing does, as
there without it.
"""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, Self

from nlp.tokenizer_files import encodable, read_tokenizer

logger = logging.getLogger(__name__)

Kind = Literal["unigram", "bpe"]

_RECORD = "subwords.json"
_SOURCE_FILE, _TARGET_FILE = "source.spm", "target.spm"
# Ids of a vocabulary learned here.
_PAD, _END, _UNKNOWN = 0, 1, 2
# Models of vocabularies are a few MB; more is something else.
_LARGEST_FILE = 64 << 20
# Pairs of texts from which a vocabulary is learned.
_TRAINING_SAMPLE = 1_000_000
_LANGUAGE = re.compile(r">>([^<>]+)<<")


class Pieces(Protocol):
    """One language's texts to ids and back, without special tokens around them."""

    @property
    def size(self) -> int:
        """Ids, from 0."""

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of texts."""

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """Texts of ids; special tokens are left out."""

    def save(self, file: Path) -> None:
        """Write what `from_file` reads."""


class TranslationTokenizer:
    """Texts to source ids, translations to target ids, and target ids to texts.

    Attributes:
        source_size: rows of the source's embedding table.
        target_size: rows of the target's.
        shared: one vocabulary for both.
        pad_id: fills up shorter rows.
        end_id: stands at the end of each row.
        unknown_id: what the vocabulary has no other token for; None where there always is one.
        languages: the target languages that a multilingual model is asked for, by codes such as deu.
    """

    def __init__(self, source: Pieces, target: Pieces, record: Mapping[str, Any]) -> None:
        self._source, self._target = source, target
        self._record = dict(record)
        self.shared = bool(record["shared"])
        self.source_size = int(record.get("source_size") or source.size)
        self.target_size = int(record.get("target_size") or target.size)
        self.pad_id, self.end_id = int(record["pad_id"]), int(record["end_id"])
        self.unknown_id: int | None = record.get("unknown_id")
        self._language_ids: dict[str, int] = dict(record.get("languages", {}))
        self._first: tuple[int, ...] = tuple(record.get("first", ()))

    @property
    def languages(self) -> tuple[str, ...]:
        """Codes that `encode` takes; empty for a model of one target language."""
        return tuple(sorted(self._language_ids))

    def encode(self, texts: Sequence[str], *, language: str = "") -> list[list[int]]:
        """Source ids of texts, the end token last.

        Args:
            texts: any; what cannot be encoded (lone surrogates) becomes U+FFFD.
            language: of the translation, for a multilingual model.

        Raises:
            ValueError: for a language that the model does not know, or none where it needs one.
        """
        first = [*self._language(language), *self._first]
        return [[*first, *ids, self.end_id] for ids in self._source.encode([encodable(text) for text in texts])]

    def encode_targets(self, texts: Sequence[str]) -> list[list[int]]:
        """Target ids of translations, the end token last."""
        return [[*self._first, *ids, self.end_id] for ids in self._target.encode([encodable(text) for text in texts])]

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """Texts of target ids; special tokens are left out."""
        special = {self.pad_id, self.end_id, *self._first, *self._language_ids.values()}
        return self._target.decode([[token for token in row if token not in special] for row in rows])

    def knows(self, source_ids: Sequence[int]) -> bool:
        """Whether any of a source's ids stands for something that the vocabulary knows, white space aside."""
        known = [token for token in source_ids if token not in (self.unknown_id, self.end_id)]
        return bool(self._source.decode([known])[0].strip())

    def _language(self, language: str) -> list[int]:
        if not self._language_ids:
            if language:
                raise ValueError(f"The model has one target language; received `language` {language!r}.")
            return []
        if language not in self._language_ids:
            known = ", ".join(self.languages[:20])
            raise ValueError(f"The model translates into several languages: {known}; received {language!r}.")
        return [self._language_ids[language]]

    @classmethod
    def train(
        cls, pairs: Iterable[tuple[str, str]], *, vocab_size: int, kind: Kind = "unigram", shared: bool = True
    ) -> Self:
        """A vocabulary learned from pairs of texts, by SentencePiece (Kudo and Richardson 2018, arXiv:1808.06226).

        Characters that the pairs do not have are written as bytes, so that nothing is unknown. Where the texts are too
        few for `vocab_size`, the vocabulary is smaller, and the log says so.

        Raises:
            ValueError: where the pairs have no texts.
        """
        sides: tuple[list[str], list[str]] = ([], [])
        for number, pair in enumerate(pairs):
            if number == _TRAINING_SAMPLE:
                break
            for side, text in zip(sides, pair, strict=True):
                side.append(encodable(text))
        if not sides[0]:
            raise ValueError("A vocabulary cannot be learned from no texts.")
        if shared:
            source = target = _learned([*sides[0], *sides[1]], vocab_size, kind)
        else:
            source = _learned(sides[0], vocab_size, kind)
            target = _learned(sides[1], vocab_size, kind).named(_TARGET_FILE)
        record = {"kind": "pieces", "shared": shared, "pad_id": _PAD, "end_id": _END, "unknown_id": None}
        return cls(source, target, record)

    def save(self, directory: str | Path) -> None:
        """Write `subwords.json` and the vocabularies' own files."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        self._source.save(directory)
        if not self.shared or self._record["kind"] == "marian":
            self._target.save(directory)
        (directory / _RECORD).write_text(json.dumps(self._record, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_directory(cls, directory: str | Path) -> Self:
        """What `save` wrote, or the tokenizer of a Hugging Face or Marian directory.

        Raises:
            FileNotFoundError: where the directory has none of these.
            ValueError: for damaged files.
        """
        directory = Path(directory)
        if (directory / _RECORD).exists():
            record = _read_json(directory / _RECORD)
        elif (directory / "vocab.json").exists() and (directory / _SOURCE_FILE).exists():
            record = _marian_record(directory)
        elif (directory / "tokenizer.json").exists() and (directory / "config.json").exists():
            record = _fast_record(directory)
        elif any(directory.glob("*.spm")):
            return cls._from_marian_files(directory)
        else:
            raise FileNotFoundError(
                f"{directory} has no tokenizer of a translation model: expected {_RECORD}, or {_SOURCE_FILE} with "
                "vocab.json, or tokenizer.json, or Marian's vocab.*.spm."
            )
        return cls(*_sides(directory, record), record)

    @classmethod
    def _from_marian_files(cls, directory: Path) -> Self:
        """Marian's own: one file for both languages, or one each, in the order of their names `src...` and `trg...`."""
        files = sorted(directory.glob("*.spm"))
        if len(files) > 2:
            raise ValueError(f"{directory} has {len(files)} vocabularies (.spm); expected one, or one a language.")
        source = target = _Numbered.from_file(files[0])
        if len(files) == 2:
            target = _Numbered.from_file(files[1]).named(_TARGET_FILE)
        end, unknown = target.end_id, target.unknown_id
        if end < 0:
            raise ValueError(f"{files[-1]} has no token for the end of a text.")
        record = {"kind": "pieces", "shared": len(files) == 1, "end_id": end, "unknown_id": unknown}
        # A row behind the last stands for padding and for the start of a target, where Marian has zeros.
        record |= {"pad_id": target.size, "source_size": source.size + 1, "target_size": target.size + 1}
        return cls(source, target, record)


class _Numbered:
    """A SentencePiece model whose piece numbers are the ids."""

    def __init__(self, content: bytes, file: Path | str, name: str = _SOURCE_FILE) -> None:
        self._content, self._name = content, name
        self.processor = _processor(content, file)

    @classmethod
    def from_file(cls, file: Path) -> Self:
        return cls(_read_model(file), file, _TARGET_FILE if file.name == _TARGET_FILE else _SOURCE_FILE)

    @property
    def size(self) -> int:
        return int(self.processor.vocab_size())

    @property
    def end_id(self) -> int:
        return int(self.processor.eos_id())

    @property
    def unknown_id(self) -> int:
        return int(self.processor.unk_id())

    def named(self, name: str) -> Self:
        """The same, saved under another name."""
        return type(self)(self._content, name, name)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        ids: list[list[int]] = self.processor.encode(list(texts))
        return ids

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        size = self.size
        texts: list[str] = self.processor.decode([[int(i) for i in row if 0 <= i < size] for row in rows])
        return texts

    def save(self, directory: Path) -> None:
        (directory / self._name).write_bytes(self._content)


class _Listed:
    """A SentencePiece model whose pieces have their ids in a list, Hugging Face's vocab.json."""

    def __init__(self, pieces: _Numbered, ids: Mapping[str, int], unknown: int, name: str) -> None:
        self._pieces, self._ids, self._unknown, self._name = pieces, dict(ids), unknown, name
        self._names = {number: piece for piece, number in ids.items()}

    @property
    def size(self) -> int:
        return max(self._names) + 1

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        rows = self._pieces.processor.encode(list(texts), out_type=str)
        return [[self._ids.get(piece, self._unknown) for piece in row] for row in rows]

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        # A piece that the model does not have, <unk> among them, is written as it stands.
        texts: list[str] = self._pieces.processor.decode_pieces([[self._names.get(i, "") for i in row] for row in rows])
        return [text.strip() for text in texts]

    def save(self, directory: Path) -> None:
        self._pieces.save(directory)
        (directory / self._name).write_text(json.dumps(self._ids, ensure_ascii=False, indent=1) + "\n", "utf-8")


class _Fast:
    """A tokenizer.json of the tokenizers library; its own special tokens are left to the caller."""

    def __init__(self, text: str) -> None:
        from tokenizers import Tokenizer

        self._text = text
        self._tokenizer = Tokenizer.from_str(text)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    @property
    def size(self) -> int:
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [found.ids for found in self._tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        texts: list[str] = self._tokenizer.decode_batch([list(row) for row in rows], skip_special_tokens=True)
        return [text.strip() for text in texts]

    def id_of(self, token: str | None) -> int | None:
        found = None if token is None else self._tokenizer.token_to_id(token)
        return None if found is None else int(found)

    def save(self, directory: Path) -> None:
        (directory / "tokenizer.json").write_text(self._text, encoding="utf-8")


def _sides(directory: Path, record: Mapping[str, Any]) -> tuple[Pieces, Pieces]:
    kind = record.get("kind")
    if kind == "fast":
        text, _ = read_tokenizer(directory)
        both = _Fast(text)
        return both, both
    if kind == "marian":
        return _listed(directory, _SOURCE_FILE, record), _listed(directory, _TARGET_FILE, record)
    if kind != "pieces":
        raise ValueError(f"{directory / _RECORD}: expected `kind` pieces, marian or fast; found {kind!r}.")
    source = _Numbered.from_file(directory / _SOURCE_FILE)
    return source, source if record["shared"] else _Numbered.from_file(directory / _TARGET_FILE)


def _listed(directory: Path, file: str, record: Mapping[str, Any]) -> _Listed:
    name = "vocab.json"
    if file == _TARGET_FILE and not record["shared"]:
        name = "target_vocab.json"
    ids = _read_json(directory / name)
    if not ids or not all(isinstance(number, int) and number >= 0 for number in ids.values()):
        raise ValueError(f"{directory / name}: expected tokens with their ids.")
    return _Listed(_Numbered.from_file(directory / file), ids, int(record["unknown_id"]), name)


def _marian_record(directory: Path) -> dict[str, Any]:
    settings_file = directory / "tokenizer_config.json"
    settings = _read_json(settings_file) if settings_file.exists() else {}
    shared = not settings.get("separate_vocabs", False)
    ids = _read_json(directory / ("vocab.json" if shared else "target_vocab.json"))
    special = {key: ids.get(_token(settings.get(f"{key}_token"), default)) for key, default in _MARIAN_TOKENS.items()}
    missing = [_MARIAN_TOKENS[key] for key, number in special.items() if number is None]
    if missing:
        raise ValueError(f"{directory / 'vocab.json'} has no {', '.join(missing)}.")
    found = {match[1]: number for token, number in ids.items() if (match := _LANGUAGE.fullmatch(token))}
    return {
        "kind": "marian",
        "shared": shared,
        "pad_id": special["pad"],
        "end_id": special["eos"],
        "unknown_id": special["unk"],
        "languages": found,
    }


_MARIAN_TOKENS = {"eos": "</s>", "unk": "<unk>", "pad": "<pad>"}


def _fast_record(directory: Path) -> dict[str, Any]:
    config = _read_json(directory / "config.json")
    text, settings = read_tokenizer(directory)
    pieces = _Fast(text)
    end, pad = config.get("eos_token_id"), config.get("pad_token_id")
    if not isinstance(end, int) or not isinstance(pad, int):
        raise ValueError(f"{directory / 'config.json'} must say `eos_token_id` and `pad_token_id`.")
    # BART's texts begin with its token for that; T5's do not.
    first = [config["bos_token_id"]] if config.get("model_type") in ("bart", "mbart") else []
    return {
        "kind": "fast",
        "shared": True,
        "pad_id": pad,
        "end_id": end,
        "unknown_id": pieces.id_of(_token(settings.get("unk_token"), "<unk>")),
        "first": first,
        "source_size": config.get("vocab_size"),
        "target_size": config.get("vocab_size"),
    }


def _token(said: Any, default: str) -> str:
    return str(said["content"] if isinstance(said, dict) else said or default)


# SentencePiece.


def _learned(texts: Sequence[str], vocab_size: int, kind: Kind) -> _Numbered:
    content = _trained(texts, vocab_size, kind)
    if isinstance(content, int):
        logger.warning("the texts are enough for a vocabulary of %d tokens, not %d", content, vocab_size)
        content = _trained(texts, content, kind)
    assert isinstance(content, bytes)
    return _Numbered(content, "the learned vocabulary")


def _trained(texts: Iterable[str], vocab_size: int, kind: Kind) -> bytes | int:
    """A model's bytes, or the largest size for which the texts are enough."""
    import sentencepiece

    written = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_lines(texts),
            model_writer=written,
            vocab_size=vocab_size,
            model_type=kind,
            byte_fallback=True,
            character_coverage=0.9998,
            pad_id=_PAD,
            eos_id=_END,
            unk_id=_UNKNOWN,
            bos_id=-1,
            num_threads=1,  # the same pieces each time
            minloglevel=2,
        )
    except RuntimeError as error:
        limit = re.search(r"value <= (\d+)", str(error))
        if limit is None or int(limit[1]) >= vocab_size:
            raise ValueError(
                f"A vocabulary of {vocab_size} tokens cannot be learned from the texts: {error}"
            ) from error
        return int(limit[1])
    return written.getvalue()


def _lines(texts: Iterable[str]) -> Iterator[str]:
    # A line break or a NUL would end a sentence in the middle.
    return (re.sub(r"[\x00\r\n]+", " ", text) for text in texts)


def _read_model(file: Path) -> bytes:
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing: the vocabulary is not complete.")
    if file.stat().st_size > _LARGEST_FILE:
        raise ValueError(f"{file} has {file.stat().st_size >> 20} MiB, too much for a vocabulary.")
    return file.read_bytes()


def _processor(content: bytes, file: Path | str) -> Any:
    import sentencepiece

    try:
        return sentencepiece.SentencePieceProcessor(model_proto=content)
    except RuntimeError as error:
        raise ValueError(f"{file} is no SentencePiece model, or damaged. Copy it anew.") from error


def _read_json(file: Path) -> dict[str, Any]:
    from shared.pretrained import read_json

    return read_json(file)
