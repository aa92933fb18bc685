"""English sentences and their German translations, made by a small grammar: what the quickstart translates.

German puts participles last, and its articles and adjectives follow the gender of the noun and its case, so that a
translation word by word goes wrong.
"""

from __future__ import annotations

import itertools
import random

# English, German, gender.
_NOUNS = (
    ("dog", "Hund", "m"),
    ("teacher", "Lehrer", "m"),
    ("baker", "Bäcker", "m"),
    ("bird", "Vogel", "m"),
    ("cat", "Katze", "f"),
    ("doctor", "Ärztin", "f"),
    ("neighbour", "Nachbarin", "f"),
    ("mouse", "Maus", "f"),
    ("child", "Kind", "n"),
    ("girl", "Mädchen", "n"),
    ("horse", "Pferd", "n"),
    ("sheep", "Schaf", "n"),
)
_ADJECTIVES = (
    ("small", "klein"),
    ("old", "alt"),
    ("young", "jung"),
    ("tired", "müd"),
    ("friendly", "freundlich"),
    ("hungry", "hungrig"),
)
_VERBS = (
    ("seen", "gesehen"),
    ("found", "gefunden"),
    ("heard", "gehört"),
    ("looked for", "gesucht"),
    ("painted", "gemalt"),
    ("brought along", "mitgebracht"),
)
_ARTICLES = {"nominative": {"m": "der", "f": "die", "n": "das"}, "accusative": {"m": "den", "f": "die", "n": "das"}}
_TIMES = (("Today", "Heute"), ("Yesterday", "Gestern"), ("This morning", "Heute Morgen"))


def phrase_pairs(count: int, *, seed: int = 0) -> tuple[list[str], list[str]]:
    """So many different sentences, at most 10,000, in English and in German."""
    rng = random.Random(seed)
    kinds = (_statement, _question, _begun_with_a_time)
    chosen: dict[str, str] = {}
    for number in itertools.count():
        if len(chosen) == count:
            break
        (first, last), verb = rng.sample(_NOUNS, 2), rng.choice(_VERBS)
        adjectives = rng.choice(_ADJECTIVES), rng.choice(_ADJECTIVES)
        english, german = kinds[number % len(kinds)]((adjectives[0], first), verb, (adjectives[1], last), rng)
        chosen[english] = german
    return list(chosen), list(chosen.values())


_Noun = tuple[tuple[str, str], tuple[str, str, str]]


def _statement(subject: _Noun, verb: tuple[str, str], thing: _Noun, _: random.Random) -> tuple[str, str]:
    german = f"{_german(subject, 'nominative')} hat {_german(thing, 'accusative')} {verb[1]}."
    return f"The {_english(subject)} has {verb[0]} the {_english(thing)}.", german[0].upper() + german[1:]


def _question(subject: _Noun, verb: tuple[str, str], thing: _Noun, _: random.Random) -> tuple[str, str]:
    german = f"Hat {_german(subject, 'nominative')} {_german(thing, 'accusative')} {verb[1]}?"
    return f"Has the {_english(subject)} {verb[0]} the {_english(thing)}?", german


def _begun_with_a_time(subject: _Noun, verb: tuple[str, str], thing: _Noun, rng: random.Random) -> tuple[str, str]:
    time = rng.choice(_TIMES)
    german = f"{time[1]} hat {_german(subject, 'nominative')} {_german(thing, 'accusative')} {verb[1]}."
    return f"{time[0]} the {_english(subject)} has {verb[0]} the {_english(thing)}.", german


def _english(noun: _Noun) -> str:
    return f"{noun[0][0]} {noun[1][0]}"


def _german(noun: _Noun, case: str) -> str:
    (_, adjective), (_, name, gender) = noun
    ending = "en" if case == "accusative" and gender == "m" else "e"
    return f"{_ARTICLES[case][gender]} {adjective}{ending} {name}"
