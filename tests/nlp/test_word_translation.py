from __future__ import annotations

from nlp.word_translation import learn_dictionary, translate_words, word_translation_baseline
from shared.examples import Examples

PAIRS = Examples(
    ["the red house", "the house", "a red book", "the book", "a house"],
    ["das rote Haus", "das Haus", "ein rotes Buch", "das Buch", "ein Haus"],
)


def test_words_find_their_translations():
    dictionary = learn_dictionary(PAIRS)
    assert {word: dictionary[word] for word in ("the", "house", "book", "a")} == {
        "the": "das",
        "house": "Haus",
        "book": "Buch",
        "a": "ein",
    }


def test_a_text_keeps_unknown_words_its_marks_and_its_first_letter():
    assert (
        translate_words("The house, (a) zebra!", {"the": "das", "house": "Haus", "a": "ein"})
        == "Das Haus, (ein) zebra!"
    )


def test_the_baseline_beats_a_copy():
    scores = word_translation_baseline(PAIRS, PAIRS)
    assert scores["chrf"] > scores.details["copy"]["chrf"] + 30
    assert list(scores) == ["bleu", "chrf"]
