"""Text: classification, named entity recognition, translation.

Conventions
    texts      str, or a pair of str; for named entities also a list of words
    `.model`   takes "token_ids" and "segment_ids" (int32) and "mask" (bool, True for real tokens), each (B, T);
               gives logits, float32: (B, K), or (B, T, K) per token
    offsets    characters of the original string, as Python counts them; `end` is exclusive
    labels     class names in a `Vocabulary`; class numbers only inside
    tags       IOB2 inside; IOB1 and BIOES are read and converted (`nlp.tags`)

Names are loaded when they are first used, so `import nlp` is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nlp.classification import TextClassification, TextClassifier, TextClassifierConfig
    from nlp.data import read_conll, read_spans, read_text_table
    from nlp.ner import Entity, EntityRecognizer, EntityRecognizerConfig
    from nlp.parallel import read_parallel
    from nlp.translation import Translation, Translator, TranslatorConfig

_HOMES = {
    "Entity": "nlp.ner",
    "EntityRecognizer": "nlp.ner",
    "EntityRecognizerConfig": "nlp.ner",
    "TextClassification": "nlp.classification",
    "TextClassifier": "nlp.classification",
    "TextClassifierConfig": "nlp.classification",
    "Translation": "nlp.translation",
    "Translator": "nlp.translation",
    "TranslatorConfig": "nlp.translation",
    "read_conll": "nlp.data",
    "read_parallel": "nlp.parallel",
    "read_spans": "nlp.data",
    "read_text_table": "nlp.data",
}

__all__ = [
    "Entity",
    "EntityRecognizer",
    "EntityRecognizerConfig",
    "TextClassification",
    "TextClassifier",
    "TextClassifierConfig",
    "Translation",
    "Translator",
    "TranslatorConfig",
    "read_conll",
    "read_parallel",
    "read_spans",
    "read_text_table",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'nlp' has no attribute {name!r}")
