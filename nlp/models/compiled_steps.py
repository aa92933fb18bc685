"""Steps of decoding compiled by XLA.

Shapes: B texts, K lanes of a text (beams or samples), R = B K rows, D features, V tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from nlp.models.pieces import compiled_pieces
from nlp.models.seq2seq import Seq2SeqTransformer
from nlp.models.seq2seq_layers import with_bias
from nlp.models.seq2seq_stacks import DecoderState


class CompiledSteps:
    """A network whose steps XLA compiles, for `nlp.models.search`, which calls it as it calls the network itself.

    Encoding and the growth of caches stay plain graphs. XLA compiles for each size of the batch, of the source, of the
    caches and of a prefix anew, which takes some seconds: batches should have few sizes.
    """

    def __init__(self, model: Seq2SeqTransformer) -> None:
        self._model = model
        self.encode, self.start, self.reorder = model.encode, model.start, model.reorder
        self.logits_by_token = model.logits_by_token
        self.vocab_size = model.vocab_size

    def advance(self, token_ids: tf.Tensor, position: tf.Tensor, state: DecoderState) -> tuple[tf.Tensor, DecoderState]:
        """As `Seq2SeqTransformer.advance`, within a `turn`: units of the next state are rows (B H, K d) for caches."""
        return self._model.decoder.step(self._model.last_rows(token_ids), position, state)

    def turn(self, body: Callable[..., tuple[Any, ...]]) -> Callable[..., tuple[Any, ...]]:
        """A compiled turn of a loop: `body` takes the position first and the state last, and gives the next ones."""
        decoder = self._model.decoder

        def changes(position: tf.Tensor, *variables: Any) -> tuple[Any, ...]:
            *others, state = body(position, *variables)
            # Only what is new: XLA would copy the rest.
            return (*others, state.units, state.ancestors, state.seen)

        compiled = tf.function(changes, autograph=False, jit_compile=True)

        def turn(position: tf.Tensor, *variables: Any) -> tuple[Any, ...]:
            state = decoder.with_room(position, variables[-1])
            *others, units, ancestors, seen = compiled(position, *variables[:-1], state)
            state = decoder.with_units(position, state, units)
            return (*others, state._replace(ancestors=ancestors, seen=seen))

        return turn


class CompiledPieces:
    """A network of whose steps XLA compiles what lies between the products with kernels, as `CompiledSteps` the whole.

    For kernels in bfloat16 on CPUs, which XLA widens to float32 at each step, and TensorFlow's own products do not.
    """

    def __init__(self, model: Seq2SeqTransformer) -> None:
        self._model = model
        self.encode, self.start, self.reorder = model.encode, model.start, model.reorder
        self.vocab_size = model.vocab_size

    def advance(self, token_ids: tf.Tensor, position: tf.Tensor, state: DecoderState) -> tuple[tf.Tensor, DecoderState]:
        """As `Seq2SeqTransformer.advance`."""
        with compiled_pieces():
            return self._model.advance(token_ids, position, state)

    def choice(self, choose: Callable[..., Any]) -> Callable[..., Any]:
        """A compiled choice of tokens: of features, state, and what else `choose` takes, which takes logits first."""

        def chosen(products: tf.Tensor, bias: tf.Tensor | None, *arguments: Any) -> Any:
            def logits_of(tokens: slice = slice(None)) -> tf.Tensor:
                return with_bias(products[tokens], None if bias is None else bias[tokens])

            return choose(logits_of, *arguments)

        compiled = tf.function(chosen, autograph=False, jit_compile=True)

        def choice(features: tf.Tensor, state: DecoderState, *arguments: Any) -> Any:
            table, bias = self._model.output_of(state, slice(None))
            return compiled(self._model.products(features, table), bias, *arguments)

        return choice
