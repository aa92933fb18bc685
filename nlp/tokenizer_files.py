"""Tokenizers as they lie in a directory: tokenizer.json, or the older files that it can be made from.

    tokenizer.json                                   any kind, as it is
    vocab.txt                                        WordPiece (BERT, ELECTRA, DistilBERT)
    vocab.json + merges.txt                          byte-level BPE (RoBERTa, GPT-2)
    spm.model, sentencepiece.bpe.model, spiece.model SentencePiece unigram (DeBERTa-v2, XLM-R, CamemBERT, ALBERT)

tokenizer_config.json and special_tokens_map.json name the special tokens. What is made from the older files follows
`transformers.convert_slow_tokenizer` (transformers 4 and 5), so that a checkpoint sees the ids that it was trained on.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from nlp.sentence_pieces import CONTROL, UNIGRAM, USER_DEFINED, SentencePieceModel, read_sentence_pieces
from shared.pretrained import read_json

ROLES = ("pad", "unk", "cls", "sep", "mask", "bos", "eos")

BERT_TOKENS = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
_ROBERTA_TOKENS = {"pad": "<pad>", "unk": "<unk>", "cls": "<s>", "sep": "</s>", "mask": "<mask>"}
_SENTENCEPIECE_FILES = ("spm.model", "sentencepiece.bpe.model", "spiece.model")
_SURROGATES = re.compile("[\ud800-\udfff]")


def read_tokenizer(directory: Path) -> tuple[str, dict[str, Any]]:
    """The tokenizer in `directory` as the text of a tokenizer.json, and its settings.

    The settings are what tokenizer_config.json holds, with special tokens as strings.

    Raises:
        FileNotFoundError: where there is no tokenizer; the message says what was looked for.
        ValueError: for a file that cannot be read, or a SentencePiece model of another kind than unigram.
    """
    settings = read_settings(directory)
    if (directory / "tokenizer.json").exists():
        return _from_json(directory / "tokenizer.json", settings), settings
    if (directory / "vocab.txt").exists():
        return _word_piece(directory / "vocab.txt", settings).to_str(), settings
    if (directory / "vocab.json").exists() and (directory / "merges.txt").exists():
        return _byte_pairs(directory, settings).to_str(), settings
    for name in _SENTENCEPIECE_FILES:
        if (directory / name).exists():
            return _sentence_piece(directory / name, settings).to_str(), settings
    raise FileNotFoundError(
        f"{directory} has no tokenizer: no tokenizer.json, no vocab.txt, no vocab.json with merges.txt, none of "
        f"{', '.join(_SENTENCEPIECE_FILES)}. Copy the tokenizer's files beside the weights."
    )


def read_settings(directory: Path) -> dict[str, Any]:
    """What tokenizer_config.json and special_tokens_map.json hold, with special tokens as strings."""
    settings: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (directory / name).exists():
            settings |= {key: value for key, value in read_json(directory / name).items() if value is not None}
    for role in ROLES:
        token = settings.get(f"{role}_token")
        if isinstance(token, Mapping):
            settings[f"{role}_token"] = token["content"]
    if "tokenizer_class" not in settings and (directory / "config.json").exists():
        settings["model_type"] = read_json(directory / "config.json").get("model_type", "")
    return settings


def _from_json(file: Path, settings: Mapping[str, Any]) -> str:
    record = read_json(file)
    _apply_settings(record, settings)
    text = json.dumps(record, ensure_ascii=False)
    try:
        Tokenizer.from_str(text)
    except Exception as error:  # the library raises plain Exception
        raise ValueError(f"{file} is no tokenizer that the `tokenizers` library can read: {error}.") from error
    return text


def canonical(text: str) -> str:
    """A tokenizer.json without what changes from call to call: truncation, padding and random merges."""
    record = json.loads(text)
    record |= {"truncation": None, "padding": None}
    if record["model"].get("dropout"):
        record["model"]["dropout"] = None
    return json.dumps(record, ensure_ascii=False, separators=(",", ":"))


def _apply_settings(record: dict[str, Any], settings: Mapping[str, Any]) -> None:
    """Let the settings that transformers lets win over tokenizer.json win here too."""
    normalizer, pre_tokenizer = record.get("normalizer") or {}, record.get("pre_tokenizer") or {}
    if normalizer.get("type") == "BertNormalizer":
        names = {"do_lower_case": "lowercase", "tokenize_chinese_chars": "handle_chinese_chars"}
        normalizer.update({names[key]: settings[key] for key in names if key in settings})
        if "strip_accents" in settings:
            normalizer["strip_accents"] = settings["strip_accents"]
    if pre_tokenizer.get("type") == "ByteLevel" and "add_prefix_space" in settings:
        pre_tokenizer["add_prefix_space"] = settings["add_prefix_space"]


def _with_defaults(settings: dict[str, Any], tokens: Mapping[str, str]) -> dict[str, str]:
    """The special tokens of a family, with the names that the settings give them; missing ones are added there."""
    for role, token in tokens.items():
        settings.setdefault(f"{role}_token", token)
    return {role: str(settings[f"{role}_token"]) for role in tokens}


def _special(token: str, *, takes_space: bool = False) -> AddedToken:
    return AddedToken(token, normalized=False, special=True, lstrip=takes_space)


# WordPiece.


def bert_tokenizer(model: models.WordPiece, tokens: Mapping[str, str], settings: Mapping[str, Any]) -> Tokenizer:
    """A tokenizer that splits and surrounds text as BERT does: [CLS] text [SEP] pair [SEP].

    Args:
        model: the WordPiece vocabulary, with all of `tokens` in it.
        tokens: special tokens by role.
        settings: `do_lower_case`, `tokenize_chinese_chars` and `strip_accents` as in tokenizer_config.json.
    """
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(
        lowercase=settings.get("do_lower_case", True),
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
        strip_accents=settings.get("strip_accents"),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    tokenizer.add_special_tokens([_special(token) for token in tokens.values()])
    tokenizer.post_processor = _template(tokenizer, "{cls}:0 $A:0 {sep}:0", " $B:1 {sep}:1", tokens)
    return tokenizer


def learn_word_pieces(texts: Iterable[str], vocab_size: int, settings: Mapping[str, Any]) -> dict[str, int]:
    """A WordPiece vocabulary of at most `vocab_size` tokens from `texts`, the same one each time.

    Characters are kept down to the count at which they take up a quarter of the vocabulary.

    Raises:
        ValueError: where `texts` has no words.
    """
    texts = [encodable(text) for text in texts]
    special = list(BERT_TOKENS.values())
    empty = models.WordPiece({token: i for i, token in enumerate(special)}, unk_token=BERT_TOKENS["unk"])
    tokenizer = bert_tokenizer(empty, BERT_TOKENS, settings)
    words = Counter(
        word
        for text in texts
        for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(text))
    )
    characters: Counter[str] = Counter()
    for word, count in words.items():
        characters.update({c: n * count for c, n in Counter(word).items()})
    kept = _frequent(characters, max(1, vocab_size // 4))
    if not kept:
        raise ValueError("A tokenizer needs texts with words to learn from; received none.")
    # The library numbers characters within words in the order of a hash table, and breaks ties between merges by
    # number. Given as special tokens, they have the same numbers each time.
    inner = sorted({c for word in words for c in word[1:]} & kept)
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        limit_alphabet=len(kept),
        special_tokens=special + [f"##{c}" for c in inner],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return dict(sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]))


def _frequent(counts: Counter[str], limit: int) -> set[str]:
    """About the `limit` most frequent entries: of those that are as frequent as the first one left out, none."""
    if len(counts) <= limit:
        return set(counts)
    left_out = sorted(counts.values(), reverse=True)[limit]
    return {entry for entry, count in counts.items() if count > left_out}


def encodable(text: str) -> str:
    """`text` as valid Unicode of the same length: lone surrogates become U+FFFD.

    Raises:
        TypeError: where `text` is no `str`.
    """
    if not isinstance(text, str):
        raise TypeError(f"A text must be a str; received {type(text).__name__}. Decode bytes first.")
    return text if text.isascii() else _SURROGATES.sub("\ufffd", text)


def _word_piece(file: Path, settings: dict[str, Any]) -> Tokenizer:
    lines = _read_text(file).split("\n")
    vocabulary = {line.rstrip("\r"): number for number, line in enumerate(lines[:-1] if not lines[-1] else lines)}
    tokens = _with_defaults(settings, BERT_TOKENS)
    _require_tokens(file, tokens, vocabulary)
    return bert_tokenizer(models.WordPiece(vocabulary, unk_token=tokens["unk"]), tokens, settings)


def _template(tokenizer: Tokenizer, single: str, more: str, tokens: Mapping[str, str]) -> processors.TemplateProcessing:
    numbered = [(token, tokenizer.token_to_id(token)) for token in (tokens["cls"], tokens["sep"])]
    single, pair = single.format(**tokens), (single + more).format(**tokens)
    return processors.TemplateProcessing(single=single, pair=pair, special_tokens=numbered)


# Byte-level BPE.


def _byte_pairs(directory: Path, settings: dict[str, Any]) -> Tokenizer:
    vocabulary = read_json(directory / "vocab.json")
    lines = _read_text(directory / "merges.txt").split("\n")
    rules = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    broken = [" ".join(rule) for rule in rules if len(rule) != 2]
    if broken:
        raise ValueError(f"{directory / 'merges.txt'}: expected two symbols a line, received {broken[0]!r}.")
    merges = [(first, second) for first, second in rules]
    add_prefix_space = bool(settings.get("add_prefix_space", False))
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    if not {"<s>", "</s>"} <= vocabulary.keys():
        # GPT-2 has one special token, and sets none around a text.
        end = _with_defaults(settings, {"eos": "<|endoftext|>"})["eos"]
        tokenizer.add_special_tokens([_special(end)])
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
        return tokenizer
    tokens = _with_defaults(settings, _ROBERTA_TOKENS)
    _require_tokens(directory / "vocab.json", tokens, vocabulary)
    tokenizer.add_special_tokens([_special(token, takes_space=role == "mask") for role, token in tokens.items()])
    tokenizer.post_processor = processors.RobertaProcessing(
        (tokens["sep"], vocabulary[tokens["sep"]]),
        (tokens["cls"], vocabulary[tokens["cls"]]),
        trim_offsets=True,
        add_prefix_space=add_prefix_space,
    )
    return tokenizer


# SentencePiece unigram.


@dataclass(frozen=True)
class _Family:
    """How a family numbers the pieces of its SentencePiece model and what it sets around a text."""

    tokens: Mapping[str, str]
    vocabulary: Callable[[SentencePieceModel], tuple[list[tuple[str, float]], int]]
    normalizer: Callable[[bytes, Mapping[str, Any]], normalizers.Normalizer]
    template: tuple[str, str]
    mask_takes_space: bool = True


def _fairseq_vocabulary(model: SentencePieceModel) -> tuple[list[tuple[str, float]], int]:
    first = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    return [*first, *model.scored[3:], ("<mask>", 0.0)], 3


def _camembert_vocabulary(model: SentencePieceModel) -> tuple[list[tuple[str, float]], int]:
    first = [("<s>NOTUSED", 0.0), ("<pad>", 0.0), ("</s>NOTUSED", 0.0), ("<unk>", 0.0), ("<unk>NOTUSED", -100.0)]
    return [*first, *model.scored[1:], ("<mask>", 0.0)], 3


def _albert_vocabulary(model: SentencePieceModel) -> tuple[list[tuple[str, float]], int]:
    # Numbers with a comma at their end ("1,") are made unlikely, as ALBERT's own tokenizer splits them.
    def score(text: str, value: float) -> float:
        return value - 100 if len(text) >= 2 and text[-1] == "," and text[-2].isdigit() else value

    return [(text, score(text, value)) for text, value in model.scored], model.unknown


def _deberta_vocabulary(model: SentencePieceModel) -> tuple[list[tuple[str, float]], int]:
    return model.scored, model.unknown


def _plain_normalizer(character_map: bytes, settings: Mapping[str, Any]) -> normalizers.Normalizer:
    rules = [normalizers.Strip(left=False, right=True), normalizers.Replace(Regex(" {2,}"), "▁")]
    return normalizers.Sequence([*_mapped(character_map), *rules])


def _albert_normalizer(character_map: bytes, settings: Mapping[str, Any]) -> normalizers.Normalizer:
    rules: list[Any] = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
    if not settings.get("keep_accents", False):
        rules += [normalizers.NFKD(), normalizers.StripAccents()]
    if settings.get("do_lower_case", True):
        rules.append(normalizers.Lowercase())
    return normalizers.Sequence([*rules, *_mapped(character_map), normalizers.Replace(Regex(" {2,}"), " ")])


def _deberta_normalizer(character_map: bytes, settings: Mapping[str, Any]) -> normalizers.Normalizer:
    rules: list[Any] = [normalizers.Lowercase()] if settings.get("do_lower_case", False) else []
    rules += [normalizers.Strip(), *_mapped(character_map), normalizers.Replace(Regex(" {2,}"), " ")]
    return normalizers.Sequence(rules)


def _mapped(character_map: bytes) -> list[Any]:
    return [normalizers.Precompiled(character_map)] if character_map else []


_ONE_SEGMENT = ("{cls} $A {sep}", " {sep} $B {sep}")
_TWO_SEGMENTS = ("{cls}:0 $A:0 {sep}:0", " $B:1 {sep}:1")
_FAMILIES = {
    "xlmroberta": _Family(_ROBERTA_TOKENS, _fairseq_vocabulary, _plain_normalizer, _ONE_SEGMENT),
    "camembert": _Family(_ROBERTA_TOKENS, _camembert_vocabulary, _plain_normalizer, _ONE_SEGMENT),
    "albert": _Family(
        {**BERT_TOKENS, "pad": "<pad>", "unk": "<unk>"}, _albert_vocabulary, _albert_normalizer, _TWO_SEGMENTS
    ),
    "debertav2": _Family(BERT_TOKENS, _deberta_vocabulary, _deberta_normalizer, _TWO_SEGMENTS, mask_takes_space=False),
}


def _family(file: Path, settings: Mapping[str, Any]) -> _Family:
    named = str(settings.get("tokenizer_class") or settings.get("model_type") or "")
    name = named.lower().removesuffix("fast").removesuffix("tokenizer").replace("-", "").replace("_", "")
    if not name and file.name == "spm.model":
        name = "debertav2"
    if name not in _FAMILIES:
        raise ValueError(
            f"{file} belongs to {named or 'an unnamed family'}; the families whose SentencePiece models are read are "
            f"{', '.join(_FAMILIES)}. Say which in tokenizer_config.json (`tokenizer_class`), or save the tokenizer "
            "as tokenizer.json."
        )
    return _FAMILIES[name]


def _sentence_piece(file: Path, settings: dict[str, Any]) -> Tokenizer:
    family = _family(file, settings)
    model = read_sentence_pieces(file)
    if model.model_type != UNIGRAM:
        raise ValueError(f"{file} is a SentencePiece model of type {model.model_type}; only unigram (1) is read here.")
    vocabulary, unknown = family.vocabulary(model)
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=unknown, byte_fallback=False))
    tokenizer.normalizer = family.normalizer(model.character_map, settings)
    tokenizer.pre_tokenizer = _metaspace(settings)
    tokenizer.decoder = decoders.Metaspace()
    listed = [(text, kind) for text, _, kind in model.pieces if kind in (CONTROL, USER_DEFINED)]
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=kind == CONTROL) for text, kind in listed])
    tokens = _with_defaults(settings, family.tokens)
    spaced = "mask" if family.mask_takes_space else ""
    tokenizer.add_special_tokens([_special(token, takes_space=role == spaced) for role, token in tokens.items()])
    tokenizer.post_processor = _template(tokenizer, *family.template, tokens)
    return tokenizer


def _metaspace(settings: Mapping[str, Any]) -> pre_tokenizers.PreTokenizer:
    metaspace = pre_tokenizers.Metaspace(prepend_scheme="always" if settings.get("add_prefix_space", True) else "never")
    if settings.get("split_by_punct", False):
        return pre_tokenizers.Sequence([pre_tokenizers.Punctuation(behavior="isolated"), metaspace])
    return metaspace


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not valid UTF-8: {error}.") from error


def _require_tokens(file: Path, tokens: Mapping[str, str], vocabulary: Mapping[str, int]) -> None:
    missing = [token for token in tokens.values() if token not in vocabulary]
    if missing:
        raise ValueError(
            f"{file} lacks the special tokens {', '.join(missing)}. Name this vocabulary's own in "
            "tokenizer_config.json (for example `unk_token`)."
        )
