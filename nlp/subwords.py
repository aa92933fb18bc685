"""The vocabularies of translation: texts to source and target ids, and target ids back to texts.

    Hugging Face Marian    source.spm, target.spm, vocab.json and, for separate vocabularies, target_vocab.json
    T5, BART               tokenizer.json, or the older files of `nlp.tokenizer_files`; T5 also spiece.model alone
    Marian's own files     one *vocab*.spm for both sides, or two; a piece's place is its id
    trained here           as Hugging Face Marian; padding is 0, the end 1, what is unknown 2

Texts are data: `</s>` in a text of a Marian or trained vocabulary is five characters and never the end token. Only a
language code that the vocabulary knows, as in ">>fra<< A text", is read at the beginning of a text. transformers'
MarianTokenizer replaces typographic punctuation where the package sacremoses is installed; that is not done here.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from tokenizers import Tokenizer, decoders

from nlp.sentence_pieces import (
    BYTE,
    CONTROL,
    META,
    UNKNOWN,
    Kind,
    SentencePieceModel,
    read_sentence_pieces,
    sample,
    train_sentence_pieces,
)
from nlp.tokenization import TextTokenizer
from nlp.tokenizer_files import encodable, read_settings
from shared.pretrained import read_json

_TOKENS = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
_CODE = re.compile(r">>(.*?)<<", re.DOTALL)
# For a tokenizer.json that says nothing of the way back.
_DECODERS = {"byte_pair": decoders.ByteLevel, "unigram": decoders.Metaspace}
# As many sentinels as T5 has where its settings do not say.
_SENTINELS = 100
# Rows of an embedding; a damaged vocabulary asks for more.
_LARGEST_ID = 10_000_000


class PieceVocabulary:
    """One side of a translation: a SentencePiece model and the id of each piece.

    Args:
        model: splits texts into pieces.
        ids: ids by piece; they may hold more pieces than `model` has. A piece without an id is unknown.
        tokens: names of the special tokens: `eos_token`, `unk_token` and `pad_token`. Where `ids` has no such
            padding token, the end token's id fills rows up, and a mask has to hide it.
        control: more pieces that are no text.

    Raises:
        ValueError: where an id is no whole number in range, or the end token or the unknown token has none.
    """

    def __init__(
        self,
        model: SentencePieceModel,
        ids: Mapping[str, int],
        tokens: Mapping[str, str] = _TOKENS,
        control: Iterable[str] = (),
    ) -> None:
        self.model, self.ids = model, dict(ids)
        broken = [(text, i) for text, i in self.ids.items() if type(i) is not int or not 0 <= i < _LARGEST_ID]
        if broken:
            raise ValueError(
                f"The ids of a vocabulary must be whole numbers from 0; {broken[0][0]!r} has {broken[0][1]!r}"
            )
        self.tokens = {**_TOKENS, **tokens}
        missing = [token for role in ("eos_token", "unk_token") if (token := self.tokens[role]) not in self.ids]
        if missing:
            raise ValueError(
                f"The vocabulary lacks the special token {missing[0]!r}. Name its own in tokenizer_config.json "
                "(`eos_token`, `unk_token`)"
            )
        self.end_id, self.unknown_id = self.ids[self.tokens["eos_token"]], self.ids[self.tokens["unk_token"]]
        self.pad_id = self.ids.get(self.tokens["pad_token"], self.end_id)
        self.size = max(self.ids.values()) + 1
        self.languages = {text[2:-2]: i for text, i in self.ids.items() if _CODE.fullmatch(text)}
        listed = {text for text, _, kind in model.pieces if kind in (CONTROL, UNKNOWN)}
        self.special = {*self.tokens.values(), *listed, *control, *(f">>{code}<<" for code in self.languages)}

    @cached_property
    def id_of_piece(self) -> list[int]:
        """The id of each piece of the model, by its number."""
        return [self.ids.get(text, self.unknown_id) for text, _, _ in self.model.pieces]

    @cached_property
    def surfaces(self) -> dict[str, int]:
        """Entries that are no piece of the model: an unknown run of characters that is one of them gets its id."""
        known = self.model.numbers
        return {text: i for text, i in self.ids.items() if text not in known and text not in self.special}

    @cached_property
    def spelling(self) -> list[bytes]:
        """What each id adds to a text, UTF-8; nothing for special tokens and for ids that are not given out."""
        spelled = [b""] * self.size
        of_byte = {text for text, _, kind in self.model.pieces if kind == BYTE}
        for text, number in self.ids.items():
            if text in of_byte:
                spelled[number] = bytes([int(text[3:5], 16)])
            elif text not in self.special:
                spelled[number] = text.replace(META, " ").encode("utf-8", "replace")
        return spelled

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, the end token last; `texts` are valid Unicode."""
        processor, unknown = self.model.processor, self.model.unknown
        rows = []
        for text, numbers in zip(texts, processor.encode(list(texts), out_type=int), strict=True):
            ids = [self.id_of_piece[number] for number in numbers]
            if self.surfaces and unknown in numbers:
                places = [place for place, number in enumerate(numbers) if number == unknown]
                pieces = processor.encode(text, out_type=str)
                for place in places:
                    ids[place] = self.surfaces.get(pieces[place], self.unknown_id)
            rows.append([*ids, self.end_id])
        return rows

    def decode(self, rows: Iterable[Sequence[int]]) -> list[str]:
        """The text of each row of ids, without spaces around it."""
        spelling = self.spelling
        parts = (b"".join(spelling[i] for i in row if 0 <= i < len(spelling)) for row in rows)
        return [part.strip(b" ").decode("utf-8", "replace") for part in parts]


class TranslationTokenizer:
    """Texts to the ids of an encoder and a decoder, and back; never changed, and good for many threads.

    Attributes:
        source_size: rows of the encoder's embedding table.
        target_size: rows of the decoder's.
        shared: whether both are one vocabulary.
        pad_id: what fills rows up, of the target side; where there is no such token, the id of the end.
        end_id: ends every target, and every source; of the target side.
        unknown_id: what is not in the vocabulary, of the target side.

    Example:
        >>> pairs = [("the cat sat on the mat", "die Katze sitzt auf der Matte")] * 9
        >>> tokenizer = TranslationTokenizer.train(pairs, vocab_size=320)
        >>> tokenizer.decode(tokenizer.encode_targets(["die Katze"]))
        ['die Katze']
    """

    def __init__(self, sides: tuple[PieceVocabulary, PieceVocabulary] | TextTokenizer, *, shared: bool = True) -> None:
        self.shared = shared
        if isinstance(sides, TextTokenizer):
            self.sides: tuple[PieceVocabulary, PieceVocabulary] | None = None
            self._text: _TextVocabulary | None = _TextVocabulary(sides)
            target: PieceVocabulary | _TextVocabulary = self._text
            source = target
        else:
            self.sides, self._text = sides, None
            source, target = sides
        self.source_size, self.target_size = source.size, target.size
        self.pad_id, self.end_id = target.pad_id, target.end_id
        self.source_pad_id, self.source_end_id = source.pad_id, source.end_id
        self.unknown_id: int | None = target.unknown_id

    @classmethod
    def from_directory(cls, directory: str | Path) -> Self:
        """What `save` wrote, or the tokenizer of a Hugging Face Marian, T5 or BART directory, or Marian's own files.

        Raises:
            FileNotFoundError: where the directory has no tokenizer; the message says what was looked for.
            ValueError: for files that cannot be read, or do not fit together.
        """
        directory = Path(directory)
        own = sorted(directory.glob("*vocab*.spm"))
        if all((directory / name).exists() for name in ("source.spm", "target.spm", "vocab.json")):
            return cls._from_marian(directory)
        if own:
            return cls._from_own_files(directory, own)
        if (directory / "spiece.model").exists() and not (directory / "tokenizer.json").exists():
            return cls._from_t5(directory)
        try:
            return cls(TextTokenizer.from_directory(directory))
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{directory} has no tokenizer for translation: no source.spm with target.spm and vocab.json, no "
                "*vocab*.spm, no spiece.model, no tokenizer.json, no vocab.json with merges.txt. Copy the tokenizer's "
                "files beside the weights."
            ) from error

    @classmethod
    def train(
        cls,
        pairs: Iterable[tuple[str, str]],
        *,
        vocab_size: int,
        kind: Kind = "unigram",
        shared: bool = True,
        languages: Sequence[str] = (),
        max_pairs: int = 1_000_000,
        seed: int = 0,
    ) -> Self:
        """Vocabularies learned from pairs of texts; the same pairs, options and seed give the same ones.

        Args:
            pairs: source and target texts, read once.
            vocab_size: most pieces of each vocabulary; it is smaller where the texts have less, which the log says.
            kind: `unigram` or `bpe`.
            shared: one vocabulary for both sides, rather than one each.
            languages: codes of target languages, for which there shall be a token `>>code<<`.
            max_pairs: so many are learned from; of more, a sample.
            seed: of the sample.

        Raises:
            TypeError: where a text is no `str`.
            ValueError: where there is no text on a side, or `vocab_size` has no room for bytes and characters.
        """
        rows = sample(((encodable(source), encodable(target)) for source, target in pairs), max_pairs, seed)
        columns: list[list[str]] = [[row[side] for row in rows] for side in (0, 1)]
        if shared:
            columns = [list(itertools.chain.from_iterable(columns))]
        made = [
            train_sentence_pieces(column, vocab_size=vocab_size, kind=kind, languages=languages) for column in columns
        ]
        source, target = PieceVocabulary(made[0], made[0].numbers), PieceVocabulary(made[-1], made[-1].numbers)
        return cls((source, target), shared=shared)

    def save(self, directory: str | Path) -> None:
        """Write the files that `from_directory` and transformers read; those of T5 and BART as tokenizer.json."""
        directory = Path(directory)
        if self._text is not None:
            self._text.tokenizer.save(directory)
            return
        source, target = self._both
        (directory / "source.spm").write_bytes(source.model.data)
        (directory / "target.spm").write_bytes(target.model.data)
        _write_json(directory / "vocab.json", source.ids)
        if not self.shared:
            _write_json(directory / "target_vocab.json", target.ids)
        tokens = (
            target.tokens
            if target.tokens["pad_token"] in target.ids
            else {**target.tokens, "pad_token": target.tokens["eos_token"]}
        )
        settings = {"tokenizer_class": "MarianTokenizer", "separate_vocabs": not self.shared, **tokens}
        _write_json(directory / "tokenizer_config.json", settings)

    @property
    def languages(self) -> tuple[str, ...]:
        """Codes of the target languages that a multilingual model knows, without the marks `>>` and `<<`."""
        return () if self.sides is None else tuple(self.sides[0].languages)

    def encode(self, texts: Sequence[str], *, language: str = "") -> list[list[int]]:
        """Source ids of each text with the end token; BART's begin with `<s>`.

        Args:
            texts: any strings; lone surrogates are read as U+FFFD.
            language: the code of the language to translate into, for multilingual models, with or without its marks.
                A text that begins with a code of its own (`>>fra<< A text`) keeps that.

        Raises:
            TypeError: where `texts` is one string, or a text is no `str`.
            ValueError: where the model does not know the language; the message names those that it knows.
        """
        texts = _valid(texts)
        before = [] if not language else [self.language_id(language)]
        if self._text is not None:
            return self._text.encode(texts)
        source, _ = self._both
        if not source.languages:
            return source.encode(texts)
        heads, rest = zip(*(self._without_code(text, before) for text in texts), strict=True) if texts else ((), ())
        return [[*head, *ids] for head, ids in zip(heads, source.encode(rest), strict=True)]

    def encode_targets(self, texts: Sequence[str]) -> list[list[int]]:
        """Target ids of each text with the end token, without a start token.

        Raises:
            TypeError: where `texts` is one string, or a text is no `str`.
        """
        texts = _valid(texts)
        return self._text.encode_targets(texts) if self._text is not None else self._both[1].encode(texts)

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """The text of each row of target ids; special tokens, and ids that the vocabulary lacks, are left out."""
        rows = [np.asarray(row, np.int64).reshape(-1).tolist() for row in ids]
        return self._text.decode(rows) if self._text is not None else self._both[1].decode(rows)

    def knows(self, source_ids: Sequence[int]) -> bool:
        """Whether any of a source's ids stands for something that the vocabulary knows, white space aside."""
        if self._text is not None:
            known = [i for i in source_ids if i != self.unknown_id]
            return bool(self._text.decode([known])[0].strip())
        source = self._both[0]
        return bool(source.decode([[i for i in source_ids if i != source.unknown_id]])[0].strip())

    def language_id(self, language: str) -> int:
        """The source id of a language's token.

        Raises:
            ValueError: where the model does not know the language; the message names those that it knows.
        """
        code = language.removeprefix(">>").removesuffix("<<")
        known = {} if self.sides is None else self.sides[0].languages
        if code not in known:
            named = f"it knows {', '.join(known)}" if known else "it is for one language; leave `language` out"
            raise ValueError(f"The model does not know the language {language!r}: {named}.")
        return known[code]

    def without_language(self, text: str) -> str:
        """What of a source text is cut into pieces: all but a language's code, known to the model, at its beginning."""
        return text if self.sides is None else self._without_code(text, [])[1]

    @property
    def _both(self) -> tuple[PieceVocabulary, PieceVocabulary]:
        assert self.sides is not None
        return self.sides

    def _without_code(self, text: str, before: list[int]) -> tuple[list[int], str]:
        found = _CODE.match(text)
        known = self._both[0].languages
        if found is None or found[1] not in known:
            return before, text
        return [known[found[1]]], text[found.end() :]

    @classmethod
    def _from_marian(cls, directory: Path) -> Self:
        settings = read_settings(directory)
        models = [read_sentence_pieces(directory / name) for name in ("source.spm", "target.spm")]
        files = [directory / "vocab.json", directory / "vocab.json"]
        separate = bool(settings.get("separate_vocabs", False))
        if separate:
            files[1] = directory / "target_vocab.json"
            if not files[1].exists():
                raise FileNotFoundError(
                    f"{files[1]} is missing, which tokenizer_config.json asks for (`separate_vocabs`). Copy it beside "
                    "vocab.json."
                )
        tokens = {role: str(settings[role]) for role in _TOKENS if settings.get(role)}
        control = {text for model in models for text, _, kind in model.pieces if kind == CONTROL}
        sides = [_side(file, model, tokens, control) for file, model in zip(files, models, strict=True)]
        return cls((sides[0], sides[1]), shared=not separate)

    @classmethod
    def _from_own_files(cls, directory: Path, files: list[Path]) -> Self:
        files = _in_order(directory, files)
        models = [read_sentence_pieces(file) for file in files]
        sides = []
        for file, model in zip(files, models, strict=True):
            try:
                sides.append(PieceVocabulary(model, model.numbers))
            except ValueError as error:
                raise ValueError(f"{file}: {error}.") from error
        return cls((sides[0], sides[-1]), shared=len(files) == 1)

    @classmethod
    def _from_t5(cls, directory: Path) -> Self:
        """Pieces in their order, and after them T5's sentinels, the last one first."""
        settings, file = read_settings(directory), directory / "spiece.model"
        model = read_sentence_pieces(file)
        count = int(settings.get("extra_ids", _SENTINELS))
        sentinels = [f"<extra_id_{number}>" for number in reversed(range(count))]
        ids = {**model.numbers, **{text: len(model.pieces) + i for i, text in enumerate(sentinels)}}
        tokens = {role: str(settings[role]) for role in _TOKENS if settings.get(role)}
        try:
            side = PieceVocabulary(model, ids, tokens, sentinels)
        except ValueError as error:
            raise ValueError(f"{file}: {error}.") from error
        return cls((side, side))


class _TextVocabulary:
    """Both sides by one tokenizer of the `tokenizers` library."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self.tokenizer = tokenizer
        self._inner = Tokenizer.from_str(tokenizer.to_json())
        if self._inner.decoder is None and tokenizer.kind in _DECODERS:
            self._inner.decoder = _DECODERS[tokenizer.kind]()
        named = {role: str(tokenizer.settings.get(role) or token) for role, token in _TOKENS.items()}
        end, pad = tokenizer.id_of(named["eos_token"]), tokenizer.id_of(named["pad_token"])
        if end is None:
            raise ValueError(
                f"The tokenizer has no token {named['eos_token']!r} to end a text with. Name its own in "
                "tokenizer_config.json (`eos_token`)."
            )
        self.end_id, self.pad_id = end, end if pad is None else pad
        self.unknown_id = tokenizer.id_of(named["unk_token"])
        self.size = tokenizer.vocab_size
        before, after = tokenizer.template().runs
        self._before, self._after = list(before), list(after) if end in after else [*after, end]

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [[*self._before, *ids, *self._after] for ids in self._ids(texts)]

    def encode_targets(self, texts: Sequence[str]) -> list[list[int]]:
        return [[*ids, self.end_id] for ids in self._ids(texts)]

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        inside = [[i for i in row if 0 <= i < self.size] for row in rows]
        return list(self._inner.decode_batch(inside, skip_special_tokens=True))

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._inner.encode_batch(list(texts), add_special_tokens=False)]


def _valid(texts: Sequence[str]) -> list[str]:
    if isinstance(texts, str | bytes):
        raise TypeError(f"`texts` must be a sequence of texts; received one {type(texts).__name__}. Put it in a list.")
    return [encodable(text) for text in texts]


def _side(file: Path, model: SentencePieceModel, tokens: Mapping[str, str], control: Iterable[str]) -> PieceVocabulary:
    try:
        return PieceVocabulary(model, read_json(file), tokens, control)
    except ValueError as error:
        raise ValueError(f"{file}: {error}.") from error


def _in_order(directory: Path, files: list[Path]) -> list[Path]:
    """One file for both sides, or that of the source and that of the target."""
    if len(files) == 1:
        return files
    by_name = {file.name: file for file in files}
    for settings in sorted(directory.glob("*.yml")):
        listed = re.search(r"^vocabs:\s*\n((?:\s*-.*\n?)+)", settings.read_text("utf-8", "replace"), re.MULTILINE)
        names = re.findall(r"-\s*[\"']?([^\s\"']+)", listed[1]) if listed else []
        if len(names) == 2 and all(Path(name).name in by_name for name in names):
            chosen = [by_name[Path(name).name] for name in names]
            return chosen[:1] if chosen[0] == chosen[1] else chosen
    source, target = (
        [file for file in files if re.search(word, file.name)] for word in ("src|source", "trg|tgt|target")
    )
    if len(source) == len(target) == 1 and source != target:
        return [*source, *target]
    raise ValueError(
        f"{directory} has the vocabularies {', '.join(by_name)}, and nothing says which is the source's. Name them "
        "srcvocab.spm and trgvocab.spm, or keep the .yml file that lists them under `vocabs:`."
    )


def _write_json(file: Path, values: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(values, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
