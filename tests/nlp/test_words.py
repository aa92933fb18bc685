from __future__ import annotations

import pytest

from nlp.words import word_spans


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        (" \t\n", []),
        ("Zoë's 3 cats.", ["Zoë", "'", "s", "3", "cats", "."]),
        ("e\u0301te\u0301\tsnake_case\u00a0x", ["e\u0301te\u0301", "snake_case", "x"]),
        ("東京は高い。", ["東", "京", "は", "高", "い", "。"]),
        ("iPhone在中国", ["iPhone", "在", "中", "国"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("שלום عالم", ["שלום", "عالم"]),
        ("ไทย", ["ไ", "ท", "ย"]),
        ("ok 🎬!", ["ok", "🎬", "!"]),
    ],
)
def test_words_of_any_script(text, words):
    assert [text[start:end] for start, end in word_spans(text)] == words


def test_lone_surrogates_are_characters():
    assert word_spans("\ud800x") == [(0, 1), (1, 2)]
