"""Make translation_tokenizers/: small vocabularies of translation, and what transformers' tokenizers say of hard texts.

    python -m venv /tmp/reference
    /tmp/reference/bin/pip install transformers==5.23.0 sentencepiece==0.2.3 protobuf numpy safetensors
    PYTHONPATH=. /tmp/reference/bin/python tests/golden/make_translation_tokenizers.py

The SentencePiece models are kept without their character map, which is most of such a file: `with_character_map` puts
that of tokenizers/sentence_piece/spm.model back, here and in the tests. BART's is tokenizers/byte_pair.
"""

from __future__ import annotations

import io
import json
import random
import shutil
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
KEPT, SHARED_MAP = HERE / "translation_tokenizers", HERE / "tokenizers" / "sentence_piece" / "spm.model"
CODES = ("fra", "por_Latn")


def with_character_map(data: bytes) -> bytes:
    """A model with the rules `nmt_nfkc`: what protocol buffers say twice is merged, so they are put at the end."""
    model = SHARED_MAP.read_bytes()
    # The field begins with its number and kind, 3 << 3 | 2, and its size; within it is the name, 1 << 3 | 2.
    at = model.rindex(b"\x0a\x08nmt_nfkc")
    size, shift, end = 0, 0, at
    while model[end - 1] != 0x1A:
        end -= 1
    for byte in model[end:at]:
        size, shift = size | (byte & 0x7F) << shift, shift + 7
    return data + model[end - 1 : at + size]


def texts() -> list[str]:
    sys.path.insert(0, str(HERE.parents[1]))
    from tests.nlp.hard_texts import HARD_TEXTS, random_text

    rng = random.Random(11)
    coded = [">>fra<< The river rises.", ">>por_Latn<<The river rises.", "a >>fra<< b", ">>fra<<"]
    return [*HARD_TEXTS, *(random_text(rng) for _ in range(20)), *coded]


def rows_of_ids(size: int, seed: int) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(size) for _ in range(rng.randint(0, 12))] for _ in range(30)]


def assemble(directory: Path, kind: str) -> Path:
    """The files of a tokenizer of this kind, as a checkpoint has them, in a new folder of `directory`."""
    made = directory / kind
    if kind == "t5":
        shutil.copytree(KEPT / "t5", made)
    elif kind == "bart":
        shutil.copytree(HERE / "tokenizers" / "byte_pair", made)
    else:
        made.mkdir()
        for name in ("source.spm", "target.spm"):
            (made / name).write_bytes(with_character_map((KEPT / "marian" / name).read_bytes()))
        vocabulary = json.loads((KEPT / "marian" / "vocab.json").read_text("utf-8"))
        settings: dict[str, Any] = {"tokenizer_class": "MarianTokenizer", "separate_vocabs": kind == "separate"}
        if kind == "separate":
            # The same pieces numbered from the end, but for special tokens: transformers has one id of each for both
            # sides, as the checkpoints do.
            last = len(vocabulary) - 1
            reversed_ids = {text: i if i in (0, 1, last) else last + 1 - i for text, i in vocabulary.items()}
            (made / "target_vocab.json").write_text(json.dumps(reversed_ids))
        (made / "vocab.json").write_text(json.dumps(vocabulary))
        (made / "tokenizer_config.json").write_text(json.dumps(settings))
    return made


def train(lines: list[str], model_type: str, vocab_size: int, **options: Any) -> bytes:
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type=model_type,
        vocab_size=vocab_size,
        normalization_rule_name="identity",
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    return model.getvalue()


def make_models() -> None:
    import sentencepiece
    import transformers
    from make_tokenizers import TEXT

    (KEPT / "marian").mkdir(parents=True, exist_ok=True)
    special = {"unk_id": 2, "bos_id": -1, "eos_id": 1, "pad_id": 0}
    names = []
    for name, model_type, lines in (("source.spm", "unigram", TEXT[:24] * 3), ("target.spm", "bpe", TEXT[13:] * 3)):
        data = train(lines, model_type, 620, **special)
        (KEPT / "marian" / name).write_bytes(data)
        processor = sentencepiece.SentencePieceProcessor(model_proto=data)
        names += [processor.id_to_piece(number) for number in range(3, processor.get_piece_size())]
    # As opus-mt has them: the end and what is unknown first, padding last; some pieces of the models have no id.
    pieces = [piece for number, piece in enumerate(dict.fromkeys(names)) if number % 17]
    entries = ["</s>", "<unk>", *pieces, *(f">>{code}<<" for code in CODES), "日", "❤", "<pad>"]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(entries))}
    (KEPT / "marian" / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False, indent=0) + "\n")
    (KEPT / "t5").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "spiece.model").write_bytes(train(TEXT * 3, "unigram", 700, **special))
        tokenizer = transformers.T5Tokenizer.from_pretrained(folder, extra_ids=5)
        tokenizer.save_pretrained(folder)
        shutil.copy(Path(folder) / "spiece.model", KEPT / "t5")
        for name in ("tokenizer.json", "tokenizer_config.json"):
            values = json.loads((Path(folder) / name).read_text("utf-8"))
            (KEPT / "t5" / name).write_text(json.dumps(values, ensure_ascii=False, separators=(",", ":")) + "\n")


def main() -> None:
    import transformers

    warnings.simplefilter("ignore")
    make_models()
    golden: dict[str, Any] = {"made_with": f"transformers {transformers.__version__}"}
    with tempfile.TemporaryDirectory() as folder:
        classes = {
            "marian": "MarianTokenizer",
            "separate": "MarianTokenizer",
            "t5": "T5Tokenizer",
            "bart": "BartTokenizer",
        }
        for seed, (kind, name) in enumerate(classes.items()):
            tokenizer = getattr(transformers, name).from_pretrained(assemble(Path(folder), kind))
            size = len(tokenizer)
            targets = [tokenizer(text_target=text)["input_ids"] for text in texts()]
            golden[kind] = {
                "source": [tokenizer(text)["input_ids"] for text in texts()],
                "targets": targets,
                "decoded": tokenizer.batch_decode(targets, skip_special_tokens=True),
                "decoded_rows": tokenizer.batch_decode(rows_of_ids(size, seed), skip_special_tokens=True),
                "size": size,
            }
            if targets == golden[kind]["source"]:
                golden[kind]["targets"] = None
    text = json.dumps(golden, ensure_ascii=True, separators=(",", ":"))
    (KEPT / "golden.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
