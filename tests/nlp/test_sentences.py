from __future__ import annotations

import random
import time

import pytest

from nlp.sentences import split_lines, split_sentences

ALPHABET = [
    *"ab. !?…,;:\n\t\"')",
    "\r\n",
    "。",
    "？",
    "؟",
    "।",
    "é",
    "e\u0301",
    "👩\u200d👩\u200d👧",
    "👍🏽",
    "\ud800",
    "\x00",
    "\u2028",
    "م",
    "中",
    "\u00a0",
    "3",
    "Dr.",
    "A",
]


def joined(pieces):
    return "".join(piece.text + piece.after for piece in pieces)


def sentences(text, **options):
    return [piece.text for piece in split_sentences(text, **options) if piece.text]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("He said “No.” Then he left.", ["He said “No.”", "Then he left."]),
        ("Dr. Smith met J. R. Brown at 3.15 p.m. on Main St. yesterday.", None),
        ("Am 3. Oktober kam sie. Er nicht.", ["Am 3. Oktober kam sie.", "Er nicht."]),
        ("Wait... what? Yes… No.", ["Wait... what?", "Yes…", "No."]),
        ("See www.example.com/a.b for v1.2.3 of it.", None),
        ("今日は雨です。明日は？「晴れ。」そうです", ["今日は雨です。", "明日は？", "「晴れ。」", "そうです"]),
        ("هل أنت هنا؟ نعم.", ["هل أنت هنا؟", "نعم."]),
        ("वह आया। मैं गया।", ["वह आया।", "मैं गया।"]),
        ("a line\nanother line\r\n\r\nthird", ["a line", "another line", "third"]),
        ("", []),
        (" \n ", []),
    ],
)
def test_sentences(text, expected):
    assert sentences(text) == ([text] if expected is None else expected)


def test_what_stands_between_is_kept():
    pieces = split_sentences("  One.  Two.\n\nThree.\t")
    assert [(piece.text, piece.after) for piece in pieces] == [
        ("", "  "),
        ("One.", "  "),
        ("Two.", "\n\n"),
        ("Three.", "\t"),
    ]


def test_lines_are_left_whole():
    assert [(p.text, p.after) for p in split_lines("One. Two.\n Three.")] == [("One. Two.", "\n "), ("Three.", "")]


@pytest.mark.parametrize("seed", range(300))
def test_nothing_is_lost_and_no_sentence_is_too_long(seed):
    rng = random.Random(seed)
    text = "".join(rng.choices(ALPHABET, k=rng.randint(0, 200)))
    limit = rng.choice([1, 5, 20, 80])
    for pieces in (split_sentences(text), split_lines(text), split_sentences(text, max_characters=limit)):
        assert joined(pieces) == text
        assert all(piece.text == piece.text.strip() and not piece.after.strip() for piece in pieces)
    assert all(len(piece.text) <= limit for piece in split_sentences(text, max_characters=limit))


def test_a_long_sentence_is_cut_where_it_hurts_least():
    assert sentences("one two, three four five", max_characters=14) == ["one two,", "three four", "five"]
    assert sentences("abcdefghij", max_characters=4) == ["abcd", "efgh", "ij"]
    assert sentences("aaae\u0301e\u0301", max_characters=4) == ["aaa", "e\u0301e\u0301"]


@pytest.mark.parametrize("unit", ["a", "a b. ", "e\u0301", "。", ". ", "👍🏽", "\n"])
def test_time_grows_with_the_length_only(unit):
    text = unit * (100_000 // len(unit))
    start = time.perf_counter()
    assert joined(split_sentences(text, max_characters=500)) == text
    assert time.perf_counter() - start < 10  # a quadratic one takes minutes
