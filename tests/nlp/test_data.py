from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest

from nlp.data import read_conll, read_spans, read_text_table
from nlp.tags import convert, detect_scheme

_ROOT = Path(__file__).parents[2]
_DATA = Path(os.environ.get("TRIPTYCH_DATA", _ROOT.parent / "shared" / "data"))


def written(directory, name, content):
    file = directory / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def pairs(examples):
    return list(zip(examples.inputs, examples.targets, strict=True))


def lines_of(*records):
    return "".join(json.dumps(record) + "\n" for record in records)


# Tables.

TWO = [("a cat", "A"), ("no dog", "B")]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", "text,label\na cat,A\nno dog,B\n"),
        ("t.csv", "Label;ID;Sentence\r\nA;1;a cat\r\nB;2;no dog"),
        ("t.CSV", '"text","label"\n"a cat","A"\n\n"no dog", B \n'),
        ("t.tsv", "label\tfine\ttext\nA\tA:x\ta cat\nB\tB:y\tno dog\n"),
        ("t.tsv", "\ufeffsentence\tlabel\na cat\tA\nno dog\tB\n"),
        ("t.tsv", "sentence\tlabel\na cat\tA\nno dog\tB\n".encode("utf-16")),
        ("t.tsv", "a cat\tA\nno dog\tB\n"),
        ("t.tsv", "A\ta cat\nB\tno dog\n"),
        ("t.csv", "a cat,A\rno dog,B\r"),
        ("t.txt", "a cat\tA\nno dog\tB\n"),
        ("t.tsv.gz", gzip.compress(b"text\tlabel\na cat\tA\nno dog\tB\n", mtime=0)),
        ("t.jsonl", '{"text": "a cat", "label": "A"}\n\n{"label": "B", "text": "no dog", "more": [1]}'),
        ("t.jsonl", '["a cat", "A"]\n["no dog", "B"]\n'),
        ("t.ndjson.gz", gzip.compress(b'{"text": "a cat", "label": "A"}\n{"text": "no dog", "label": "B"}\n', mtime=0)),
        ("t.json", '[["a cat", "A"], ["no dog", "B"]]'),
        ("t.json", '{"train": [{"intent": "A", "utterance": "a cat"}, {"intent": "B", "utterance": "no dog"}]}'),
        ("t.json", '{"text": "a cat", "label": "A"}\n{"text": "no dog", "label": "B"}\n'),
    ],
)
def test_the_layout_of_a_table_is_found_out(tmp_path, name, content):
    examples = read_text_table(written(tmp_path, name, content))
    assert pairs(examples) == TWO
    assert examples.bad_records == ()


@pytest.mark.parametrize(
    ("content", "said", "expected"),
    [
        ("body,kind,label\na cat,A,7\n", {"text": "body", "label": "kind"}, [("a cat", "A")]),
        ("label,text\nsay hello,x\n", {"header": False}, [("label", "text"), ("say hello", "x")]),
        ("1,a cat,b,A\n", {"text": 1, "label": -1}, [("a cat", "A")]),
        ("body,kind\na cat,A\n", {"header": True, "text": 0, "label": 1}, [("a cat", "A")]),
        ("text,label\na cat,A\n", {"label": 1}, [("a cat", "A")]),
        ("text|label\na, cat|A\n", {"delimiter": "|"}, [("a, cat", "A")]),
        ("text,label\ncaf\xe9,A\n".encode("latin-1"), {"encoding": "latin-1"}, [("caf\xe9", "A")]),
        ("text,label\na cat,A| B\nno dog,\n", {"label_separator": "|"}, [("a cat", ("A", "B")), ("no dog", ())]),
        ("text\na cat\nno dog\n", {}, [("a cat", None), ("no dog", None)]),
        ("id,text\n7,a cat\n", {}, [("a cat", None)]),
        ("a cat\n", {}, [("a cat", None)]),
        ("premise,hypothesis,label\na cat,no dog,A\n", {}, [(("a cat", "no dog"), "A")]),
        ("question,sentence,label\na cat,no dog,A\n", {"text": "question", "pair": 1}, [(("a cat", "no dog"), "A")]),
        ("a cat,no dog\n", {"text": 0, "pair": 1}, [(("a cat", "no dog"), None)]),
    ],
)
def test_columns_may_be_said(tmp_path, content, said, expected):
    assert pairs(read_text_table(written(tmp_path, "t.csv", content), **said)) == expected


def test_an_intent_called_text_makes_no_header(tmp_path):
    file = written(tmp_path, "t.tsv", "send a message to mum\ttext\nwhat time is it\ttime\n")
    assert pairs(read_text_table(file)) == [("send a message to mum", "text"), ("what time is it", "time")]


def test_a_first_line_that_looks_like_names_is_said(tmp_path, caplog):
    rows = "a cat,A\nno dog,B\na cow,A\nno fox,B\n"
    read_text_table(written(tmp_path, "t.csv", "body,kind\n" + rows))
    assert "its 'kind' occurs in no other; if it holds names, say header=True" in caplog.text
    caplog.clear()
    read_text_table(written(tmp_path, "t.csv", rows))
    assert caplog.text == ""


# Quotation marks.


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('text\tlabel\n"a\tb ""c"" \r\nd"\tA\r\n', 'a\tb "c" \r\nd'),
        ('text\tlabel\n"one" and "two\tA\nthe 5" disk\tA\n', '"one" and "two'),
        ('text\tlabel\n"Oh, she said\tA\n"no"t this\tA\n', '"Oh, she said'),
        ('text\tlabel\n"",\tA\n"x"\tA\n"y"\tA\n', None),
        ('text\tlabel\n""""\t"A"\n', '"'),
        ("text\tlabel\na\x85b\u2028c\x0bd\x1ce\tA\n", "a\x85b\u2028c\x0bd\x1ce"),
    ],
)
def test_quotation_marks_belong_to_the_format_or_to_the_text(tmp_path, content, expected):
    examples = read_text_table(written(tmp_path, "t.tsv", content), max_bad_share=0.5)
    if expected is None:
        assert examples.bad_records[0].reason == "a quotation mark opens a cell that is not closed"
    else:
        assert pairs(examples)[0] == (expected, "A")


def test_whether_cells_are_quoted_may_be_said(tmp_path):
    file = written(tmp_path, "t.tsv", 'text\tlabel\n"Hello."\tA\n')
    assert read_text_table(file).inputs == ["Hello."]
    assert read_text_table(file, quoted=False).inputs == ['"Hello."']


def test_a_missing_quotation_mark_costs_one_line(tmp_path):
    good = '"one, two",A\n'
    content = "text,label\n" + good * 60 + '"three, four,A\n' + good * 60
    examples = read_text_table(written(tmp_path, "t.csv", content))
    assert len(examples) == 120
    assert [str(bad) for bad in examples.bad_records] == [
        f"{tmp_path}/t.csv:62: a quotation mark opens a cell that is not closed"
    ]


def test_line_numbers_count_the_lines_inside_cells(tmp_path):
    content = 'text,label\n"one\ntwo",A\n\n"three\n\nfour",B\nfive\n'
    examples = read_text_table(written(tmp_path, "t.csv", content))
    assert examples.inputs == ["one\ntwo", "three\n\nfour"]
    assert [bad.where for bad in examples.bad_records] == [f"{tmp_path}/t.csv:8"]


def test_a_text_may_be_longer_than_the_csv_module_allows(tmp_path):
    text = "word, " * 50_000
    assert read_text_table(written(tmp_path, "t.csv", f'text,label\n"{text}",A\n')).inputs == [text]


# Bad records.


@pytest.mark.parametrize(
    ("name", "line", "reason"),
    [
        ("t.csv", "a cat", "1 columns, where the first line has 2"),
        ("t.csv", "a cat,A,B", "3 columns, where the first line has 2"),
        ("t.csv", ",A", "no text"),
        ("t.csv", "\u00a0\t,A", "no text"),
        ("t.csv", "a cat, ", "no label"),
        ("t.csv", b"caf\xe9,A", "text with byte 0xe9, which the encoding does not have"),
        ("t.csv", b"a cat,caf\xe9", "label with byte 0xe9"),
        ("t.jsonl", "{", "no JSON text ("),
        ("t.jsonl", "[" * 100_000, "no JSON text ("),
        ("t.jsonl", "7", "expected a JSON object or array; received int"),
        ("t.jsonl", '["a cat", "A"]', "an array, where other records are objects"),
        ("t.jsonl", '{"label": "A"}', "no text"),
        ("t.jsonl", '{"text": ["a"], "label": "A"}', "expected a string as text; received list (['a'])"),
        ("t.jsonl", '{"text": "a cat"}', "no label"),
        ("t.jsonl", '{"text": "a cat", "label": {}}', "expected a string as label; received dict"),
        ("t.jsonl", '{"text": "a \\ud83d cat", "label": "A"}', "text with half a character (U+D83D)"),
    ],
)
def test_bad_records_are_named_and_tolerated_up_to_a_share(tmp_path, name, line, reason, caplog):
    good = {"t.csv": "text,label\na cat,A\n", "t.jsonl": '{"text": "a cat", "label": "A"}\n' * 2}[name].encode()
    line = line if isinstance(line, bytes) else line.encode()
    file = written(tmp_path, name, good + line + b"\n")
    (bad,) = read_text_table(file).bad_records
    assert bad.where == f"{file}:3"
    assert bad.reason.startswith(reason)
    assert f"cannot be used, the first: {file}:3" in caplog.text
    written(tmp_path, name, good + line + b"\n" + line + b"\n")
    with pytest.raises(ValueError, match=r"2 of [34] records cannot be used; the first: .*:3: "):
        read_text_table(file, max_bad_share=0.1)


def test_labels_of_json_are_numbers_or_lists_too(tmp_path):
    records = [{"text": "a", "label": 1}, {"text": "b", "label": 2.5}, {"text": "c", "label": ["x", 3]}]
    examples = read_text_table(written(tmp_path, "t.jsonl", lines_of(*records)))
    assert list(examples.targets) == ["1", "2.5", ("x", "3")]


def test_a_json_file_with_splits(tmp_path):
    content = json.dumps({"train": [["a cat", "A"]], "test": [["no dog", "B"]], "version": 1})
    file = written(tmp_path, "t.json", content)
    assert pairs(read_text_table(file, split="test")) == [("no dog", "B")]
    with pytest.raises(ValueError, match=r"holds train, test; `split` is None. Name the one"):
        read_text_table(file)
    with pytest.raises(ValueError, match="`split` is 'version'"):
        read_text_table(file, split="version")


@pytest.mark.parametrize(
    ("name", "content", "said", "words"),
    [
        ("t.csv", "", {}, "has no records"),
        ("t.csv", "text,label\n", {}, "has no records"),
        ("t.jsonl", "\n\n", {}, "has no records"),
        ("t.json", "[]", {}, "has no records"),
        ("t.csv", "a,b,c\nd,e,f\n", {}, "has 3 columns and no usual names. Say which is which"),
        ("t.csv", "a,b,c\nd,e,f\n", {"header": True}, "which of the columns a, b, c holds the texts"),
        ("t.csv", "a,label\nd,e\n", {"text": "body"}, "has no column 'body'; its columns are a, label"),
        ("t.csv", "a,b\n", {"text": 2}, "has no column 2; it has 2, numbered from 0"),
        ("t.csv", "a,b\n", {"text": "a", "header": False}, "has no names of columns; received text in column 'a'"),
        ("t.csv", "text,label\na,b\n", {"delimiter": '"'}, "`delimiter` must be one character"),
        ("t.csv", "text,label\na,b\n", {"encoding": "klingon"}, "'klingon' is not known to Python"),
        ("t.tsv", "a\tb\n".encode("utf-16")[:-1], {}, "is not utf-16 text"),
        ("t.csv.gz", gzip.compress(b"text,label\na,b\n", mtime=0)[:-9], {}, "truncated or damaged gzip"),
        ("t.json", "[1,", {}, "is no JSON text"),
        ("t.json", "7", {}, "holds no arrays by name"),
        ("t.jsonl", "{}", {"split": "train"}, "has JSON lines and no splits"),
        ("t.jsonl", '{"a": 1}', {}, "which of the columns|expected a string"),
    ],
)
def test_tables_that_cannot_be_read(tmp_path, name, content, said, words):
    with pytest.raises(ValueError, match=words):
        read_text_table(written(tmp_path, name, content), **said)


@pytest.mark.parametrize("read", [read_text_table, read_conll, read_spans])
def test_no_file(tmp_path, read):
    with pytest.raises(FileNotFoundError, match=r"There is nothing at .*gone"):
        read(tmp_path / "gone.tsv")
    with pytest.raises(ValueError, match="is a directory; expected a file"):
        read(tmp_path)


# Column files.

SENTENCES = [(("Ada", "wrote", "."), ("B-PER", "O", "O")), (("Turin",), ("B-LOC",))]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("Ada\tB-PER\nwrote\tO\n.\tO\n\nTurin\tB-LOC\n", {}),
        ("\n\nAda B-PER\r\nwrote  O\r\n. O\r\n \t\r\n\r\nTurin B-LOC", {}),
        ("-DOCSTART- -X- -X- O\n\nAda NNP I-NP B-PER\nwrote V O O\n. . O O\n\nTurin NNP I-NP B-LOC\n", {}),
        ("# id 1\n1\tAda\tB-PER\tO\n2\twrote\tO\tO\n3\t.\tO\tO\n###\n\n#2\t-\n1\tTurin\tB-LOC\tO\n",
         {"token_column": 1, "tag_column": 2}),
        ("B-PER|Ada\nO|wrote\nO|.\n\nB-LOC|Turin\n", {"delimiter": "|", "token_column": -1, "tag_column": 0}),
        ("Ada\tB-PER\nwrote\tO\n.\tO\n\nTurin\tB-LOC\n".encode("utf-16"), {}),
    ],
)  # fmt: skip
def test_column_files(tmp_path, content, said):
    assert pairs(read_conll(written(tmp_path, "t.conll", content), **said)) == SENTENCES


def test_words_of_tweets_are_no_comments_and_no_white_space(tmp_path):
    content = "#\tO\n#photography\tO\nnew york\tB-LOC\n\u00a0x\tO\na\u2028b\tO\n"
    assert read_conll(written(tmp_path, "t.conll", content)).inputs == [
        ("#", "#photography", "new york", "\u00a0x", "a\u2028b")
    ]


def test_words_without_tags(tmp_path):
    file = written(tmp_path, "t.txt", "# text = x\nAda\n#fun\n#\n\nTurin\n")
    assert pairs(read_conll(file, tag_column=None)) == [(("Ada", "#fun", "#"), None), (("Turin",), None)]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"Turin", "1 columns, where the first line has 2"),
        (b"#Turin", "1 columns, where the first line has 2"),
        (b"Turin\tB-LOC\tO", "3 columns"),
        (b"Turin\tLOC", "'LOC' is no tag. Expected 'O'"),
        (b"Turin\t", "'' is no tag"),
        (b"\tB-LOC", "no word"),
        (b"Tur\xedn\tB-LOC", "word with byte 0xed"),
    ],
)
def test_bad_lines_are_named_and_cost_their_sentence(tmp_path, line, reason):
    file = written(tmp_path, "t.conll", b"Ada\tB-PER\n\nin\tO\n" + line + b"\n.\tO\n")
    examples = read_conll(file)
    assert examples.inputs == [("Ada",)]
    assert examples.bad_records[0].where == f"{file}:4"
    assert examples.bad_records[0].reason.startswith(reason)


@pytest.mark.parametrize(
    ("content", "said", "words"),
    [
        ("", {}, "has no sentences"),
        ("-DOCSTART- O\n\n", {}, "has no sentences"),
        ("Ada O\n", {"token_column": 2}, "has 2 columns; `token_column` is 2"),
        ("Ada O\n", {"tag_column": -3}, "has 2 columns; `tag_column` is -3"),
        ("Ada X\n\nBob X\n", {}, "2 of 2 sentences cannot be used; the first: .*:1: 'X' is no tag"),
    ],
)
def test_column_files_that_cannot_be_read(tmp_path, content, said, words):
    with pytest.raises(ValueError, match=words):
        read_conll(written(tmp_path, "t.conll", content), **said)


# Spans.

FLAG = "\U0001f1f5\U0001f1f9 Ada in Turin"


@pytest.mark.parametrize(
    "record",
    [
        {"text": FLAG, "spans": [[3, 6, "PER"], [10, 15, "LOC"]]},
        {"text": FLAG, "entities": [[10, 15, "LOC"], [3, 6, "PER"]]},
        {"text": FLAG, "label": [[3, 6, "PER"], [10, 15, "LOC"]]},
        {"text": FLAG, "spans": [{"start": 3, "end": 6, "label": "PER"}, {"start": 10, "end": 15, "label": "LOC"}]},
        {"text": FLAG, "entities": [{"id": 1, "start_offset": 3, "end_offset": 6, "label": "PER"}, [10, 15, "LOC"]]},
    ],
)
@pytest.mark.parametrize("name", ["t.jsonl", "t.json"])
def test_spans_in_their_writings(tmp_path, record, name):
    content = lines_of(record, {**record, "text": FLAG + "!"}) if name == "t.jsonl" else json.dumps([record])
    examples = read_spans(written(tmp_path, name, content))
    text, spans = examples[0]
    assert (text, spans) == (FLAG, ((3, 6, "PER"), (10, 15, "LOC")))
    assert [text[start:end] for start, end, _ in spans] == ["Ada", "Turin"]


def test_texts_without_spans(tmp_path):
    records = {"text": FLAG, "marks": [[3, 6, "PER"]]}, {"text": FLAG, "marks": []}
    file = written(tmp_path, "t.jsonl", lines_of(*records))
    assert list(read_spans(file).targets) == [None, None]
    assert list(read_spans(file, spans="marks").targets) == [((3, 6, "PER"),), ()]


@pytest.mark.parametrize(
    ("spans", "reason"),
    [
        ([[3, 3, "PER"]], "span [3, 3, 'PER'] is empty"),
        ([[3, 16, "PER"]], "span [3, 16, 'PER'] is not within the 15 characters"),
        ([[-3, 2, "PER"]], "span [-3, 2, 'PER'] is not within"),
        ([[6, 3, "PER"]], "span [6, 3, 'PER'] is not within"),
        ([[3, 6, "PER"], [5, 9, "LOC"]], "spans [3, 6, 'PER'] and [5, 9, 'LOC'] overlap"),
        ([[3, 6, "PER"], [3, 6, "LOC"]], "spans [3, 6, 'LOC'] and [3, 6, 'PER'] overlap"),
        ([[3, 6]], "expected a span [start, end, type]; received [3, 6]"),
        ([[3, "6", "PER"]], "expected a span"),
        ([[3.0, 6, "PER"]], "expected a span"),
        ([[True, 6, "PER"]], "expected a span"),
        ([[3, 6, ""]], "expected a span"),
        ([{"start": 3, "label": "PER"}], "expected a span"),
        ([7], "expected a span"),
        ("PER", "expected an array of spans"),
        (None, "expected an array of spans; received None"),
    ],
)
def test_spans_that_cannot_be(tmp_path, spans, reason):
    good = {"text": FLAG, "spans": []}
    file = written(tmp_path, "t.jsonl", lines_of(good, {"text": FLAG, "spans": spans}, good))
    examples = read_spans(file)
    assert len(examples) == 2
    assert examples.bad_records[0].where == f"{file}:2"
    assert examples.bad_records[0].reason.startswith(reason)


@pytest.mark.parametrize(
    ("content", "said", "words"),
    [
        ("", {}, "has no records"),
        (lines_of({"body": "x"}), {}, "has no record with the key 'text'; its keys are body"),
        (lines_of({"text": "x"}), {"spans": "marks"}, "has no record with the key 'marks'"),
        (lines_of(["x", []]), {}, "1 of 1 records cannot be used; the first: .*:1: an array, where other"),
    ],
)
def test_span_files_that_cannot_be_read(tmp_path, content, said, words):
    with pytest.raises(ValueError, match=words):
        read_spans(written(tmp_path, "t.jsonl", content), **said)


# Real sets, whole, by the plainest call that reads them: (file, arguments, examples, labels).

TABLES = [
    ("sst2/test.tsv", {}, 872, 2),
    ("trec/train.tsv", {}, 5452, 6),
    ("trec/train.tsv", {"label": "fine_label"}, 5452, 50),
    ("ag-news-10k/test.tsv", {}, 7600, 4),
    ("20newsgroups/test.jsonl.gz", {}, 7532, 20),
    ("clinc150/data_full.json", {"split": "test"}, 4500, 150),
    ("umsab-sentiment/arabic/train.tsv", {}, 1839, 3),
    ("umsab-sentiment/english/train.tsv", {}, 1839, 3),
    ("umsab-sentiment/spanish/test.tsv", {}, 870, 3),
]  # fmt: skip


@pytest.mark.parametrize(("name", "said", "count", "num_labels"), TABLES)
def test_real_tables_are_read_whole(name, said, count, num_labels):
    if not (_DATA / name).is_file():
        pytest.skip(f"needs {name} in TRIPTYCH_DATA")
    examples = read_text_table(_DATA / name, **said)
    assert (len(examples), len(set(examples.targets)), examples.bad_records) == (count, num_labels, ())


@pytest.mark.parametrize(
    ("name", "count", "num_words"),
    [("wnut17/emerging.test.annotated", 1287, 23394), ("wnut17/wnut17train.conll", 3394, 62730),
     ("wikiann-de/test.conll", 10000, 97646)],
)  # fmt: skip
def test_real_column_files_are_read_whole(name, count, num_words):
    if not (_DATA / name).is_file():
        pytest.skip(f"needs {name} in TRIPTYCH_DATA")
    examples = read_conll(_DATA / name)
    assert (len(examples), sum(map(len, examples.inputs)), examples.bad_records) == (count, num_words, ())
    tags = examples.targets[:1000]
    assert detect_scheme(tags) == "IOB2"
    assert convert(convert(tags, "IOB2", "BIOES"), "BIOES", "IOB2") == tags
