from __future__ import annotations

import gzip
import json

import pytest

from nlp.parallel import read_parallel

PAIRS = [("One dog.", "Ein Hund."), ("Two\u2028cats", "Zwei \x0bKatzen"), ("“Three”", "\t»Drei«")]


def expected(pairs=PAIRS):
    return [(source.strip(), target.strip()) for source, target in pairs]


def pairs_of(examples):
    return list(zip(examples.inputs, examples.targets, strict=True))


def lines(file, texts, *, end="\n"):
    content = "".join(text + end for text in texts).encode()
    file.write_bytes(gzip.compress(content, mtime=0) if file.suffix == ".gz" else content)
    return file


def tmx(file, units, head=""):
    rows = "".join(
        f'<tu><tuv xml:lang="{a}"><seg>{x}</seg></tuv><tuv lang="{b}"><seg>{y}</seg></tuv></tu>\n'
        for a, x, b, y in units
    )
    text = f'<?xml version="1.0"?>\n{head}<tmx version="1.4"><header/><body>\n{rows}</body></tmx>'
    file.write_text(text, encoding="utf-8")
    return file


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_two_files_whose_lines_belong_together(tmp_path, suffix, end):
    source = lines(tmp_path / f"train.en{suffix}", [source for source, _ in PAIRS], end=end)
    target = lines(tmp_path / f"train.de{suffix}", [target for _, target in PAIRS], end=end)
    assert pairs_of(read_parallel(source, target)) == expected()
    by_language = read_parallel(tmp_path / "train", source_language="de", target_language="en")
    assert pairs_of(by_language) == [(target, source) for source, target in expected()]


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("a.tsv", ["One\tEins", 'Tw"o\tZwei']),
        ("a.csv", ["One,Eins", '"Tw""o",Zwei']),
        (
            "a.jsonl",
            [json.dumps({"source": "One", "target": "Eins"}), json.dumps({"source": 'Tw"o', "target": "Zwei"})],
        ),
        ("a.jsonl", [json.dumps({"en": "One", "de": "Eins"}), json.dumps({"en": 'Tw"o', "de": "Zwei"})]),
        ("a.jsonl", [json.dumps({"translation": {"de": d, "en": e}}) for e, d in (("One", "Eins"), ('Tw"o', "Zwei"))]),
        ("a.json", [json.dumps([{"en": "One", "de": "Eins"}, {"en": 'Tw"o', "de": "Zwei"}])]),
    ],
)
def test_one_file_with_both(tmp_path, name, rows):
    file = lines(tmp_path / name, rows)
    found = read_parallel(file, source_language="en", target_language="de")
    assert pairs_of(found) == [("One", "Eins"), ('Tw"o', "Zwei")]


def test_tmx_by_language_whatever_the_order(tmp_path):
    units = [
        ("en-GB", "A <bpt i='1'>{b}</bpt>red<ept i='1'>{/b}</ept> &amp; <hi>blue</hi> house", "DE", "Ein Haus"),
        ("de", "Zwei", "en", "Two"),
        ("fr", "Trois", "de", "Drei"),
    ]
    found = read_parallel(tmx(tmp_path / "m.tmx", units), source_language="en", target_language="de", max_bad_share=0.4)
    assert pairs_of(found) == [("A red & blue house", "Ein Haus"), ("Two", "Zwei")]
    (bad,) = found.bad_records
    assert str(bad) == f"{tmp_path / 'm.tmx'}:5: no segment in en, only fr, de"


def test_tmx_with_entities_of_its_own_is_refused(tmp_path):
    bomb = '<!DOCTYPE tmx [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>\n'
    file = tmx(tmp_path / "m.tmx", [("en", "&b;", "de", "x")], head=bomb)
    with pytest.raises(ValueError, match="the entity 'a' is declared, which is refused"):
        read_parallel(file, source_language="en", target_language="de")


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("<tmx><body><tu>", r"m.tmx:1: no valid XML \(no element found\)"),
        ("", "no element found"),
        ("no", "syntax error"),
    ],
)
def test_tmx_that_is_no_xml(tmp_path, content, part):
    (tmp_path / "m.tmx").write_text(content)
    with pytest.raises(ValueError, match=part):
        read_parallel(tmp_path / "m.tmx", source_language="en", target_language="de")


def test_bad_pairs_are_named_by_line(tmp_path):
    source = lines(tmp_path / "a.en", ["One", "", "x" * 50, "Four", "Five"])
    target = lines(tmp_path / "a.de", ["Eins", "Zwei", "y", " \t", "Fünf"])
    found = read_parallel(source, target, max_bad_share=0.6)
    assert pairs_of(found) == [("One", "Eins"), ("Five", "Fünf")]
    assert [str(bad).removeprefix(f"{source}:") for bad in found.bad_records] == [
        "2: no source",
        "3: 50 and 1 characters, a ratio above 9",
        "4: no target",
    ]
    with pytest.raises(ValueError, match=r"3 of 5 pairs cannot be used; the first: .*a.en:2: no source"):
        read_parallel(source, target)


def test_bytes_that_are_no_text_are_a_bad_pair(tmp_path):
    (tmp_path / "a.tsv").write_bytes(b"One\tEins\nTw\xffo\tZwei\n")
    found = read_parallel(tmp_path / "a.tsv", max_bad_share=0.5)
    assert [str(bad) for bad in found.bad_records] == [
        f"{tmp_path / 'a.tsv'}:2: source with byte 0xff, which the encoding does not have"
    ]


def test_files_of_unequal_length_are_refused(tmp_path):
    source, target = lines(tmp_path / "a.en", ["One", "Two"]), lines(tmp_path / "a.de", ["Eins"])
    with pytest.raises(ValueError, match=r"a.en has 2 lines and .*a.de 1"):
        read_parallel(source, target)


@pytest.mark.parametrize(
    ("name", "options", "error", "part"),
    [
        ("nothing", {}, FileNotFoundError, "nothing at"),
        ("train", {}, ValueError, "--source-language"),
        ("train", {"source_language": "en", "target_language": "fr"}, FileNotFoundError, r"train\.fr"),
        ("train.en", {}, ValueError, "expected .tsv"),
        ("m.tmx", {}, ValueError, "say `source_language`"),
        ("train.en", {"max_ratio": 0.5}, ValueError, "max_ratio"),
        ("one.tsv", {}, ValueError, "one column"),
        ("no.jsonl", {}, ValueError, "no source and target, only a, b; say the languages"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path, name, options, error, part):
    lines(tmp_path / "train.en", ["One"])
    lines(tmp_path / "train.de", ["Eins"])
    lines(tmp_path / "one.tsv", ["One"])
    lines(tmp_path / "no.jsonl", ['{"a": "x", "b": "y"}'])
    tmx(tmp_path / "m.tmx", [])
    with pytest.raises(error, match=part):
        read_parallel(tmp_path / name, **options)
