from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def quickstart(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import quickstart

    return quickstart


def test_the_demo_trains_scores_saves_and_draws(quickstart, capsys, tmp_path, monkeypatch):
    real = quickstart.TrainingConfig
    monkeypatch.setattr(quickstart, "TrainingConfig", lambda **options: real(**{**options, "epochs": 3}))
    quickstart.main(["--output", str(tmp_path / "demo")])
    out = capsys.readouterr().out
    row, detection, segmentation = [line for line in out.splitlines() if line.startswith("vision")]
    assert "bright regions, commonest class 0." in detection
    assert 0 <= float(detection.partition("mAP ")[2].split()[0]) <= 1
    assert float(segmentation.partition("mean IoU ")[2].split()[0]) > 0.2
    assert "bright regions, commonest class 0." in segmentation
    accuracy = float(row.partition("accuracy ")[2].split()[0])
    assert accuracy > 0.8
    assert "logistic regression 0.9" in row
    assert {path.name for path in (tmp_path / "demo").iterdir()} == {
        "digits-classifier", "digits-confusion.png", "digits-answers.png",
        "shapes-detector", "shapes-detections.png", "shapes-segmenter", "shapes-masks.png",
        "messages-classifier", "messages-answers.txt",
        "sentences-translator", "sentences-answers.txt",
        "books-recommender", "books-answers.txt",
    }  # fmt: skip
    row, translation = [line for line in out.splitlines() if line.startswith("text")]
    assert float(translation.partition("BLEU ")[2].split()[0]) > 5
    assert "word by word 4." in translation
    assert float(row.partition("accuracy ")[2].split()[0]) > 0.3
    assert "TF-IDF and logistic regression 0." in row
    (books,) = [line for line in out.splitlines() if line.startswith("recommendation")]
    popular = float(books.partition("most popular books ")[2].split()[0])
    assert float(books.partition("ndcg@10 ")[2].split()[0]) > 1.5 * popular > 0
    page = (tmp_path / "demo" / "books-answers.txt").read_text(encoding="utf-8")
    assert page.count(" is recommended ") == page.count(" because of ") == 30
    manifest = json.loads((tmp_path / "demo" / "digits-classifier" / "pipeline.json").read_text())
    assert manifest["task"] == "image_classification"
    assert manifest["metrics"]["accuracy"] == pytest.approx(accuracy, abs=1e-4)


def test_german_phrases_agree_in_gender_and_case_and_have_their_participles_last(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from phrase_samples import phrase_pairs

    english, german = phrase_pairs(3000)
    assert len(set(english)) == len(english) == 3000
    assert phrase_pairs(3000) == (english, german)
    genders = {"Hund": "m", "Lehrer": "m", "Katze": "f", "Ärztin": "f", "Kind": "n", "Mädchen": "n"}
    phrases = {"m": ("der e", "den en"), "f": ("die e", "die e"), "n": ("das e", "das e")}
    seen = set()
    for answer in german:
        assert answer.split()[-1][:-1] in {"gesehen", "gefunden", "gehört", "gesucht", "gemalt", "mitgebracht"}
        found = re.findall(r"\b([Dd]er|[Dd]ie|[Dd]as|[Dd]en) \w+?(en|e) (\w+)", answer)
        assert len(found) == 2
        for place, (article, ending, noun) in enumerate(found):
            if noun in genders:
                assert f"{article.lower()} {ending}" == phrases[genders[noun]][place], answer
                seen.add((noun, place))
    assert len(seen) == 2 * len(genders)


def test_readers_take_most_books_from_two_shelves_and_none_twice(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from book_samples import SHELVES, book_loans, books, shelf_of

    assert len(set(books())) == len(books()) == 120
    loans = book_loans(80)
    assert list(loans) == list(book_loans(80)) != list(book_loans(80, seed=1))
    assert len(set(loans)) == len(loans)
    shares = []
    for reader in set(loans.users.tolist()):
        shelves = [shelf_of(book) for book in loans.items[loans.users == reader].tolist()]
        assert set(shelves) <= set(SHELVES)
        shares.append(sum(sorted(map(shelves.count, set(shelves)))[-2:]) / len(shelves))
    assert 0.75 < sum(shares) / len(shares) < 0.95
