"""Weights of a decoder as its steps take them, kept from batch to batch."""

from __future__ import annotations

import threading
from typing import Any

import tensorflow as tf

from nlp.models.seq2seq import Seq2SeqTransformer
from nlp.models.seq2seq_stacks import Prepared
from nlp.models.watched import Watched, on_cpu


class KeptWeights:
    """What `Seq2SeqTransformer.prepared` gives, made anew when weights have changed."""

    def __init__(self, model: Seq2SeqTransformer) -> None:
        self._watched = Watched(model.step_weights)
        self._prepare = tf.function(model.prepared, autograph=False).get_concrete_function()
        self._prepared: Prepared | None = None
        self._lock = threading.Lock()  # translators answer in several threads

    @staticmethod
    def can_keep(model: Any) -> bool:
        """Whether there is such a thing for the model, and its weights can be watched."""
        return isinstance(model, Seq2SeqTransformer) and all(map(on_cpu, model.step_weights))

    def present(self) -> Prepared:
        """What belongs to the present weights."""
        with self._lock:
            if self._watched.changed():
                self._prepared = None  # before as much is made anew
            if self._prepared is None:
                self._prepared = self._prepare()
            return self._prepared

    def forget(self) -> None:
        """Keep nothing: weights are about to change."""
        with self._lock:
            self._watched.forget()
            self._prepared = None
