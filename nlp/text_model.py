"""A tokenizer and the network over its tokens: from a checkpoint, from a saved directory, or from nothing.

Text pipelines hold one `TextModel` each. Its parts come into being one after another: a tokenizer, which may be learned
from the training set; an encoder; and a head, once the number of labels is known.

TensorFlow is imported where it is used, as in the pipelines.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from nlp.tokenization import TextTokenizer
from shared.examples import BadExampleError
from shared.pipeline import NotFittedError

if TYPE_CHECKING:
    import keras

    from nlp.checkpoints import Kind, Pretrained
    from nlp.models.families import HeadKind
    from nlp.models.network import TextNetwork

# Texts from which a tokenizer is learned.
_TOKENIZER_SAMPLE = 100_000


@dataclass
class TextModel:
    """A tokenizer and a network, as far as they are known.

    `per_text` tells a network that answers for each text from one that answers for each token; `new_head` holds the
    fields of a `HeadConfig` for a head that is still to be made; `seed` is that of new weights.
    """

    per_text: bool
    seed: int
    new_head: dict[str, Any]
    tokenizer: TextTokenizer | None = None
    network: TextNetwork | None = None
    _preset: Pretrained | None = field(default=None, repr=False)

    @classmethod
    def from_checkpoint(
        cls, preset: Pretrained, *, per_text: bool, keep_head: bool, seed: int, token_pooling: str = "first"
    ) -> Self:
        """The encoder of a checkpoint with its tokenizer, and with its head or without.

        Raises:
            ValueError: for another `token_pooling` than "first" where it would have no effect.
        """
        from nlp.models.network import build_network

        architecture = preset.architecture(per_text=per_text)
        if token_pooling != "first":
            _require_transformer(architecture["kind"], token_pooling)
            architecture["token_pooling"] = token_pooling
        if keep_head:
            assert preset.head_config is not None
            assert preset.labels is not None
            architecture |= {"head": preset.head_config.to_dict(), "num_labels": len(preset.labels)}
        network = build_network(architecture, seed=seed)
        preset.load_weights(network.encoder, network.head)
        new_head = preset.new_head_config(_head_kind(per_text)).to_dict()
        return cls(per_text, seed, new_head, TextTokenizer.from_directory(preset.tokenizer_directory), network, preset)

    def without_head(self, seed: int) -> Self:
        """The same encoder, waiting for another head of the same make."""
        network = self.require_network()
        return type(self)(self.per_text, seed, network.architecture["head"], self.tokenizer, network.without_head())

    @property
    def model(self) -> keras.Model:
        """Encoder and head as one model.

        Raises:
            NotFittedError: as long as the number of labels is not known.
        """
        if self.network is None or self.network.model is None:
            raise NotFittedError(
                "There is no model yet: its size depends on the labels. Call `fit(train)` first, or give `labels`."
            )
        return self.network.model

    def require_tokenizer(self) -> TextTokenizer:
        """The tokenizer, which is there once there is a model."""
        assert self.tokenizer is not None
        return self.tokenizer

    def require_network(self) -> TextNetwork:
        """The network, which is there once there is an encoder."""
        assert self.network is not None
        return self.network

    def ensure_encoder(self, texts: Iterable[str], config: Any) -> None:
        """Make what is not there yet: a tokenizer learned from `texts`, an encoder from a task's config."""
        from nlp.models.network import build_network, scratch_architecture

        if self.tokenizer is None:
            sample = itertools.islice(texts, _TOKENIZER_SAMPLE)
            self.tokenizer = TextTokenizer.train(sample, config.vocab_size, lower_case=config.lower_case)
        if self.network is None:
            architecture = scratch_architecture(config, self.tokenizer.vocab_size, per_text=self.per_text)
            self.network = build_network(architecture, seed=self.seed)

    def ensure_head(self, num_labels: int, *, crf: bool = False) -> bool:
        """Put a new head on the encoder where there is none; whether it is new.

        A checkpoint's hidden layer (BERT's pooler) becomes that of the head, where it has one that fits.
        """
        network = self.require_network()
        if network.head is not None:
            return False
        self.network = network.with_new_head(self.new_head, num_labels, seed=self.seed, crf=crf)
        if self._preset is not None:
            assert self.network.head is not None
            self._preset.load_hidden_layer(self.network.head, _head_kind(self.per_text))
        return True

    def set_head_only(self, on: bool, *, first_group: int) -> None:
        """Train the head alone, or all from the layer group `first_group` up."""
        from shared.fine_tuning import set_trainable

        set_trainable(self.require_network().encoder, head_only=on, norms=True, first_group=first_group)

    def require_room(self, ref: str | Path, max_length: int) -> None:
        """Refuse windows that are longer than the network has positions for.

        Raises:
            ValueError: where they are.
        """
        encoder = self.require_network().architecture["encoder"]
        longest = encoder.get("max_length", encoder.get("max_sequence_length"))
        if longest is not None and max_length > longest:
            raise ValueError(f"{ref} takes at most {longest} tokens; received `max_length` {max_length}.")

    def write(self, directory: Path) -> None:
        """Write the tokenizer's files and `model.weights.h5`."""
        self.require_tokenizer().save(directory)
        self.model.save_weights(directory / "model.weights.h5")

    def read(self, directory: Path, architecture: Mapping[str, Any]) -> None:
        """Become what `write` wrote there, with a network as `architecture` describes it."""
        from nlp.models.network import build_network

        self.tokenizer = TextTokenizer.from_directory(directory)
        self.network = build_network(dict(architecture), seed=self.seed)
        self.model.load_weights(directory / "model.weights.h5")

    def write_hugging_face(self, path: str | Path, labels: Sequence[str], kind: Kind) -> None:
        """Write a directory that transformers loads.

        Raises:
            ValueError: for a recurrent network, a conditional random field, or what the family cannot express.
        """
        from nlp.checkpoints import write_network

        write_network(path, self.require_network(), labels=list(labels), kind=kind)
        self.require_tokenizer().save(path)


# Fields of a task's config that say what a network from scratch is.
SCRATCH_FIELDS = ("encoder", "vocab_size", "lower_case", "hidden_size", "num_layers", "num_heads")


def require_kept(ref: str | Path, given: Mapping[str, Any], own: Mapping[str, Any], *, head: bool = False) -> None:
    """Refuse fields that a pretrained network has of its own, where they are given another value.

    Args:
        ref: names the network.
        given: fields that the caller wants.
        own: the network's; None where no value of it would make sense.
        head: they are its head's, which goes where `labels` are given.

    Raises:
        ValueError: naming the first such field.
    """
    wrong = [name for name, value in own.items() if name in given and (value is None or given[name] != value)]
    if not wrong:
        return
    name = wrong[0]
    if head:
        reason = f"its head has {own[name]!r}. Give `labels` (or 'from_data'), and the head is a new one"
    else:
        reason = "its network is what it is. Leave the field out, or train a network from scratch"
    raise ValueError(f"`{name}` cannot be {given[name]!r} with {ref}: {reason}.")


def readable(values: Iterable[Any], parts: Callable[[Any], Iterable[Any]]) -> Iterator[Any]:
    """The parts of all values, without empty ones; those that cannot be read are reported where they are trained on."""
    for value in values:
        try:
            yield from [part for part in parts(value) if part is not None and part != ""]
        except BadExampleError:
            continue


def require_room(ref: str | Path, preset: Pretrained, max_length: int) -> None:
    """Refuse windows that are longer than a checkpoint takes.

    Raises:
        ValueError: where they are.
    """
    if max_length > preset.max_length:
        raise ValueError(f"{ref} takes at most {preset.max_length} tokens; received `max_length` {max_length}.")


def _require_transformer(kind: str, token_pooling: str) -> None:
    if kind != "transformer":
        raise ValueError(f"`token_pooling` {token_pooling} would have no effect: a {kind} has a pooling of its own.")


def _head_kind(per_text: bool) -> HeadKind:
    return "classification" if per_text else "tokens"
