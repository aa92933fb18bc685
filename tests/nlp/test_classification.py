from __future__ import annotations

from typing import Any

from nlp.classification import TextClassifier, TextClassifierConfig
from shared import Examples, TrainingConfig
from tests.contract import PipelineContract

GOOD = ("a fine film", "warm and funny", "i liked it", "what a joy", "moving, clever, great")
BAD = ("a dull film", "cold and slow", "i hated it", "what a bore", "flat, stupid, awful")
TINY = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 200, "dropout": 0.0}
TRAINING = TrainingConfig(epochs=8, batch_size=8, learning_rate=0.01)


def reviews(repeats: int = 3) -> Examples:
    texts = [f"{text} {'!' * i}" for i in range(repeats) for text in (*GOOD, *BAD)]
    return Examples(texts, (["good"] * 5 + ["bad"] * 5) * repeats)


class TestTextClassifier(PipelineContract):
    pipeline_class = TextClassifier
    config = TextClassifierConfig(**TINY)
    training = TRAINING
    metric_names = ("accuracy", "top_5_accuracy", "macro_f1")
    floor = 0.9

    @classmethod
    def data(cls) -> Any:
        return reviews()

    @classmethod
    def inputs(cls) -> list[Any]:
        return ["i liked this film", "", "slow, flat and awful", "🎬 " * 9, "great " * 400]

    @classmethod
    def inputs_as_code(cls) -> str:
        return repr(cls.inputs())

    @classmethod
    def wrong_inputs(cls) -> list[tuple[Any, type[Exception], str]]:
        return [
            ("one text", TypeError, "list of texts"),
            ([3], TypeError, "received int"),
            ([b"\xff\xfe"], ValueError, "not UTF-8"),
            ([("a", "b", "c")], TypeError, "tuple of two"),
        ]
