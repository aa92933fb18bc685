from __future__ import annotations

import itertools
from typing import get_args

import numpy as np
import pytest

from nlp.tags import (
    MalformedTagsError,
    Scheme,
    convert,
    detect_scheme,
    entities,
    split_tag,
    tag_names,
    tags_of,
    transitions,
)

SCHEMES = get_args(Scheme)
TYPES = ("LOC", "PER")


def entity_sets(length):
    """Every set of entities that `length` words can have."""

    def from_word(start):
        if start == length:
            yield ()
            return
        yield from from_word(start + 1)
        for end in range(start + 1, length + 1):
            for kind, rest in itertools.product(TYPES, from_word(end)):
                yield ((kind, start, end), *rest)

    return list(from_word(0))


# (tags, scheme, entities)
READINGS = [
    ("", "IOB2", []),
    ("O O", "BIOES", []),
    ("I-PER I-PER O I-PER B-PER I-LOC", "IOB1", [("PER", 0, 2), ("PER", 3, 4), ("PER", 4, 5), ("LOC", 5, 6)]),
    ("B-PER I-PER O B-PER B-PER B-LOC", "IOB2", [("PER", 0, 2), ("PER", 3, 4), ("PER", 4, 5), ("LOC", 5, 6)]),
    ("B-PER E-PER O S-PER S-PER S-LOC", "BIOES", [("PER", 0, 2), ("PER", 3, 4), ("PER", 4, 5), ("LOC", 5, 6)]),
    ("B-PER I-PER L-PER U-LOC", "BIOES", [("PER", 0, 3), ("LOC", 3, 4)]),
    ("B-creative-work I-creative-work", "IOB2", [("creative-work", 0, 2)]),
    ("B-B I-B B-I", "IOB2", [("B", 0, 2), ("I", 2, 3)]),
]


@pytest.mark.parametrize(("tags", "scheme", "expected"), READINGS)
@pytest.mark.parametrize("malformed", ["error", "drop", "repair"])
def test_well_formed_tags_mean_one_thing(tags, scheme, expected, malformed):
    assert entities(tags.split(), scheme, malformed=malformed) == expected


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("length", range(5))
def test_tags_and_entities_are_two_writings_of_the_same(scheme, length):
    """Of all sequences of tags, exactly those are well-formed that some set of entities gives."""
    written = {tags_of(found, length, scheme): list(found) for found in entity_sets(length)}
    assert len(written) == len(entity_sets(length))
    names = tag_names(TYPES, scheme)
    allowed = transitions(names, scheme)
    for numbers in itertools.product(range(len(names)), repeat=length):
        tags = tuple(names[number] for number in numbers)
        followed = all(allowed.pairs[pair] for pair in itertools.pairwise(numbers))
        ends = not numbers or (allowed.first[numbers[0]] and allowed.last[numbers[-1]])
        assert (followed and bool(ends)) == (tags in written)
        if tags in written:
            assert entities(tags, scheme) == written[tags]
            assert entities(tags, scheme, malformed="drop") == written[tags]
            assert entities(tags, scheme, malformed="repair") == written[tags]
        else:
            with pytest.raises(MalformedTagsError):
                entities(tags, scheme)


@pytest.mark.parametrize(("source", "target"), list(itertools.product(SCHEMES, SCHEMES)))
def test_any_scheme_becomes_any_other(source, target):
    for found in entity_sets(3):
        assert convert([tags_of(found, 3, source)], source, target) == [tags_of(found, 3, target)]


# (tags, scheme, position of the first fault, kept by "drop", read by "repair")
MALFORMED = [
    ("O I-PER", "IOB2", 1, [], [("PER", 1, 2)]),
    ("I-PER I-PER O", "IOB2", 0, [], [("PER", 0, 2)]),
    ("B-PER I-LOC", "IOB2", 1, [("PER", 0, 1)], [("PER", 0, 1), ("LOC", 1, 2)]),
    (
        "B-PER I-LOC I-LOC B-LOC",
        "IOB2",
        1,
        [("PER", 0, 1), ("LOC", 3, 4)],
        [("PER", 0, 1), ("LOC", 1, 3), ("LOC", 3, 4)],
    ),
    ("O B-PER I-PER", "IOB1", 1, [], [("PER", 1, 3)]),
    ("I-LOC B-PER", "IOB1", 1, [("LOC", 0, 1)], [("LOC", 0, 1), ("PER", 1, 2)]),
    ("B-PER I-PER O", "BIOES", 1, [], [("PER", 0, 2)]),
    ("B-PER B-PER E-PER", "BIOES", 0, [("PER", 1, 3)], [("PER", 0, 1), ("PER", 1, 3)]),
    ("O E-PER S-PER", "BIOES", 1, [("PER", 2, 3)], [("PER", 1, 2), ("PER", 2, 3)]),
    ("S-PER I-PER E-PER", "BIOES", 1, [("PER", 0, 1)], [("PER", 0, 1), ("PER", 1, 3)]),
    ("B-PER E-LOC", "BIOES", 0, [], [("PER", 0, 1), ("LOC", 1, 2)]),
]


@pytest.mark.parametrize(("tags", "scheme", "position", "kept", "repaired"), MALFORMED)
def test_malformed_tags_are_named_dropped_or_repaired(tags, scheme, position, kept, repaired):
    tags = tags.split()
    with pytest.raises(MalformedTagsError, match=rf"^position {position}: {tags[position]} between .* breaks {scheme}"):
        entities(tags, scheme)
    assert entities(tags, scheme, malformed="drop") == kept
    assert entities(tags, scheme, malformed="repair") == repaired


def test_conversion_names_the_sequence_and_the_position():
    with pytest.raises(MalformedTagsError, match="sequence 1, position 1: I-PER between O and the end") as caught:
        convert([["O"], ["O", "I-PER"]], "IOB2", "BIOES")
    assert (caught.value.sequence, caught.value.position) == (1, 1)
    with pytest.raises(ValueError, match="sequence 1: 'PER' is no tag"):
        convert([["O"], ["PER"]], "IOB2", "BIOES")


def test_sequences_are_made_well_formed():
    sequences = [["O", "I-PER", "I-LOC"], ["B-PER", "I-PER"]]
    assert convert(sequences, "IOB2", "IOB2", malformed="repair") == [("O", "B-PER", "B-LOC"), ("B-PER", "I-PER")]
    assert convert(sequences, "IOB2", "IOB2", malformed="drop") == [("O", "O", "O"), ("B-PER", "I-PER")]


@pytest.mark.parametrize(
    ("sequences", "scheme"),
    [
        ([], "IOB2"),
        (["O O"], "IOB2"),
        (["I-PER I-PER O"], "IOB1"),
        (["O B-PER I-PER"], "IOB2"),
        (["O", "O S-PER"], "BIOES"),
        (["B-PER L-PER"], "BIOES"),
        (["U-PER"], "BIOES"),
        # B- between two persons is what IOB1 has it for; one stray tag changes nothing.
        (["I-PER B-PER O", "I-LOC"], "IOB1"),
        (["B-PER O", "B-LOC I-LOC", "I-LOC"], "IOB2"),
    ],
)
def test_the_scheme_is_found_out(sequences, scheme):
    assert detect_scheme([tags.split() for tags in sequences]) == scheme


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_is_written_is_found_out(scheme):
    assert detect_scheme(tags_of(found, 3, scheme) for found in entity_sets(3)) == scheme


@pytest.mark.parametrize("tag", ["", "o", "PER", "B", "B-", "-PER", "X-PER", "b-PER", "B_PER"])
def test_what_is_no_tag_is_refused(tag):
    with pytest.raises(ValueError, match=r"is no tag\. Expected 'O', or one of B-"):
        split_tag(tag)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: entities(["S-PER"], "IOB2"), "position 0: IOB2 has no tag like 'S-PER'"),
        (lambda: entities(["E-PER"], "IOB1", malformed="repair"), "position 0: IOB1 has no tag like 'E-PER'"),
        (lambda: entities([], "BIO"), "`scheme` must be one of IOB1, IOB2, BIOES; received 'BIO'"),
        (lambda: entities([], "IOB2", malformed="ignore"), "`malformed` must be"),
        (lambda: tags_of([("PER", 1, 1)], 3, "IOB2"), r"Entity \('PER', 1, 1\) must have at least one of the 3"),
        (lambda: tags_of([("PER", 2, 4)], 3, "IOB2"), "none beyond them"),
        (lambda: tags_of([("PER", 1, 3), ("LOC", 0, 2)], 3, "IOB2"), r"\('LOC', 0, 2\) and \('PER', 1, 3\) overlap"),
        (lambda: tags_of([], 3, "IOB"), "`scheme` must be one of"),
    ],
)
def test_mistakes_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_tag_names_begin_with_outside_and_are_sorted():
    assert tag_names(["b", "a", "b"], "BIOES") == ("O", "B-a", "I-a", "E-a", "S-a", "B-b", "I-b", "E-b", "S-b")
    assert tag_names([], "IOB1") == ("O",)


def test_transitions_of_no_tags_have_their_shape():
    allowed = transitions([], "IOB2")
    assert (allowed.pairs.shape, allowed.first.shape, allowed.last.shape) == ((0, 0), (0,), (0,))
    assert allowed.pairs.dtype == np.bool_
