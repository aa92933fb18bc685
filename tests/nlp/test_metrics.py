from __future__ import annotations

import csv
import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest

from nlp.metrics import entity_scores, translation_scores
from nlp.tags import entities, tag_names

_TESTS = Path(__file__).parents[1]
_DATA = Path(os.environ.get("TRIPTYCH_DATA", _TESTS.parents[1] / "shared" / "data"))
GOLDEN = json.loads((_TESTS / "golden" / "seqeval.json").read_text())

PERSON, PLACE = ("PER", 0, 2), ("LOC", 5, 6)


def read(sequences, scheme, malformed):
    return [entities(tags, scheme, malformed=malformed) for tags in sequences]


# (true, predicted, f1, precision, recall)
CASES = [
    ([[]], [[]], 0, 0, 0),
    ([[PERSON]], [[]], 0, 0, 0),
    ([[]], [[PERSON]], 0, 0, 0),
    ([[PERSON]], [[PERSON]], 1, 1, 1),
    ([[PERSON, PLACE]], [[PLACE, PERSON]], 1, 1, 1),
    ([[PERSON, PLACE]], [[PERSON]], 2 / 3, 1, 1 / 2),
    ([[PERSON]], [[PERSON, PLACE]], 2 / 3, 1 / 2, 1),
    # The same words under another type, or one word less, are wrong; so is the right entity in another text.
    ([[PERSON]], [[("LOC", 0, 2)]], 0, 0, 0),
    ([[PERSON]], [[("PER", 0, 1)]], 0, 0, 0),
    ([[PERSON], []], [[], [PERSON]], 0, 0, 0),
    # Said twice is said once.
    ([[PERSON]], [[PERSON, PERSON]], 1, 1, 1),
    ([[PERSON]], [[list(PERSON)]], 1, 1, 1),
]


@pytest.mark.parametrize(("true", "predicted", "f1", "precision", "recall"), CASES)
def test_entities_count_when_type_start_and_end_are_right(true, predicted, f1, precision, recall):
    scores = entity_scores(true, predicted)
    assert [scores[key] for key in ("f1", "precision", "recall")] == pytest.approx([f1, precision, recall])


def test_the_first_value_is_f1_and_each_type_has_its_own():
    scores = entity_scores([[PERSON, PLACE]], [[PERSON, ("ORG", 5, 6)]])
    assert list(scores) == ["f1", "precision", "recall", "f1_LOC", "f1_ORG", "f1_PER"]
    assert [scores["f1_LOC"], scores["f1_ORG"], scores["f1_PER"]] == [0, 0, 1]
    assert scores.details["per_type"] == [
        {"label": "LOC", "precision": 0, "recall": 0, "f1": 0, "support": 1, "predicted": 0},
        {"label": "ORG", "precision": 0, "recall": 0, "f1": 0, "support": 0, "predicted": 1},
        {"label": "PER", "precision": 1, "recall": 1, "f1": 1, "support": 1, "predicted": 1},
    ]


@pytest.mark.parametrize(
    ("true", "predicted", "words"),
    [([], [], "no texts to score"), ([[]], [[], []], "received 1 true and 2 predicted")],
)
def test_what_cannot_be_scored(true, predicted, words):
    with pytest.raises(ValueError, match=words):
        entity_scores(true, predicted)


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["scheme"])
def test_scores_equal_the_strict_mode_of_seqeval(case):
    true, predicted = ([tags.split() for tags in case[side]] for side in ("true", "predicted"))
    scores = entity_scores(read(true, case["scheme"], "drop"), read(predicted, case["scheme"], "drop"))
    expected = case["scores"]
    for key, theirs in (("f1", "f1-score"), ("precision", "precision"), ("recall", "recall")):
        assert scores[key] == pytest.approx(expected["micro avg"][theirs])
    for row in scores.details["per_type"]:
        theirs = expected[row["label"]]
        assert [row["precision"], row["recall"], row["f1"], row["support"]] == pytest.approx(list(theirs.values()))


# conlleval by its definition (Perl script of the CoNLL-2000 shared task, version 2004-01-26): it walks through both
# columns at once, never builds an entity, and knows B, I and O.


def _chunk_ends(previous, current):
    (before, kind_before), (now, kind) = previous, current
    return (before, now) in {("B", "B"), ("B", "O"), ("I", "B"), ("I", "O")} or (before != "O" and kind_before != kind)


def _chunk_starts(previous, current):
    (before, kind_before), (now, kind) = previous, current
    return (before, now) in {("B", "B"), ("I", "B"), ("O", "B"), ("O", "I")} or (now != "O" and kind_before != kind)


def _split(tag):
    return ("O", "") if tag == "O" else tuple(tag.split("-", 1))


def conlleval(true, predicted):
    """Numbers of right, of predicted and of true chunks."""
    right = found_guessed = found_correct = 0
    pairs = [("O", "O")]
    for true_tags, predicted_tags in zip(true, predicted, strict=True):
        # Sentences are kept apart by a line without tags.
        pairs += [*zip(true_tags, predicted_tags, strict=True), ("O", "O")]
    in_correct = False
    for before, now in itertools.pairwise(pairs):
        (last_correct, last_guessed), (correct, guessed) = map(_split, before), map(_split, now)
        correct_ends, guessed_ends = _chunk_ends(last_correct, correct), _chunk_ends(last_guessed, guessed)
        if in_correct:
            if correct_ends and guessed_ends and last_correct[1] == last_guessed[1]:
                in_correct = False
                right += 1
            elif correct_ends != guessed_ends or correct[1] != guessed[1]:
                in_correct = False
        correct_starts, guessed_starts = _chunk_starts(last_correct, correct), _chunk_starts(last_guessed, guessed)
        if correct_starts and guessed_starts and correct[1] == guessed[1]:
            in_correct = True
        found_correct += correct_starts
        found_guessed += guessed_starts
    return right, found_guessed, found_correct


def test_conlleval_of_a_known_case():
    true = [["B-NP", "I-NP", "O", "B-VP", "I-VP", "O"]]
    assert conlleval(true, [["B-NP", "I-NP", "O", "B-VP", "O", "I-VP"]]) == (1, 3, 2)


@pytest.mark.parametrize("scheme", ["IOB1", "IOB2"])
@pytest.mark.parametrize("seed", range(4))
def test_scores_equal_conlleval(scheme, seed):
    rng = np.random.default_rng(seed)
    names = np.array(tag_names(["LOC", "ORG", "PER"], scheme))
    true = [rng.choice(names, rng.integers(1, 12)).tolist() for _ in range(100)]
    predicted = [np.where(rng.random(len(tags)) < 0.2, rng.choice(names, len(tags)), tags).tolist() for tags in true]
    right, guessed, correct = conlleval(true, predicted)
    scores = entity_scores(read(true, scheme, "repair"), read(predicted, scheme, "repair"))
    assert 0 < right < min(guessed, correct)
    assert scores["precision"] == pytest.approx(right / guessed)
    assert scores["recall"] == pytest.approx(right / correct)
    assert scores["f1"] == pytest.approx(2 * right / (guessed + correct))


@pytest.mark.skipif(not (_DATA / "wikiann-de").is_dir(), reason="needs wikiann-de in TRIPTYCH_DATA")
def test_scores_of_a_real_file_equal_conlleval():
    sentences = (_DATA / "wikiann-de" / "test.conll").read_text(encoding="utf-8").split("\n\n")[:2000]
    true = [[line.split("\t")[1] for line in sentence.split("\n")] for sentence in sentences]
    # What a model might say that confuses I with B, and misses some.
    swapped = {"B": "I", "I": "B"}
    rng = np.random.default_rng(0)
    changed = [rng.random(len(tags)) for tags in true]
    predicted = [
        ["O" if draw < 0.05 else swapped[tag[0]] + tag[1:] if draw < 0.15 and tag != "O" else tag
         for draw, tag in zip(draws, tags, strict=True)]
        for draws, tags in zip(changed, true, strict=True)
    ]  # fmt: skip
    right, guessed, correct = conlleval(true, predicted)
    scores = entity_scores(read(true, "IOB2", "error"), read(predicted, "IOB2", "repair"))
    assert [scores["precision"], scores["recall"]] == pytest.approx([right / guessed, right / correct])


@pytest.mark.parametrize("pair", ["de-en", "en-de"])
def test_bleu_and_chrf_are_the_official_ones_of_wmt23(pair):
    directory = _DATA / "wmt23-mt-metrics"
    if not directory.is_dir():
        pytest.skip("needs wmt23-mt-metrics in TRIPTYCH_DATA")

    def lines(name):
        return (directory / f"{pair}.{name}.{pair[-2:]}").read_text(encoding="utf-8").removesuffix("\n").split("\n")

    with (directory / "scores.tsv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file, delimiter="\t") if row["pair"] == pair]
    official = {(row["system"], row["metric"].removesuffix("-refA")): float(row["score"]) for row in rows}
    systems = sorted({row["system"] for row in rows})
    assert len(systems) == 3
    for system in systems:
        scores = translation_scores(lines(f"hyp.{system}"), lines("ref"))
        assert scores["bleu"] == pytest.approx(official[system, "bleu"], abs=5e-5)
        assert scores["chrf"] == pytest.approx(official[system, "chrf"], abs=5e-5)
        assert scores.details["signatures"]["chrf"].startswith("nrefs:1|case:mixed|eff:yes|nc:6|nw:0")


@pytest.mark.parametrize(("predictions", "references"), [([], []), (["a"], ["a", "b"])])
def test_translations_need_a_reference_each(predictions, references):
    with pytest.raises(ValueError, match="As many translations as references"):
        translation_scores(predictions, references)


def test_empty_translations_score_nothing():
    assert dict(translation_scores(["", ""], ["ein Hund", "zwei"])) == {"bleu": 0.0, "chrf": 0.0}
