"""Train, score, save and reload one small pipeline per domain, on data that comes with the installation.

    python scripts/quickstart.py [--output demo]

Vision: scikit-learn's 1,797 handwritten digits (8 x 8 pixels, UCI), a fifth held out, beside a tuned logistic
regression; 300 scenes of shapes that are drawn on the spot (scripts/shape_samples.py), a fifth held out, in which
shapes are found, and their pixels told apart, beside connected regions of bright pixels. Text: 96 messages to a shop,
written for this purpose (scripts/samples), every third held out, beside a tuned logistic regression on TF-IDF.
Translation: 1,500 English sentences of a small grammar and their German ones (scripts/phrase_samples.py), a fifth held
out, beside a dictionary. Recommendation: 600 made readers and the books they took home (scripts/book_samples.py), the
last book of each held out, beside the most popular books.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.cli import OneLineParser, run_script
from shared.runtime import RuntimeConfig
from shared.training_config import TrainingConfig


@dataclass(frozen=True)
class PanelResult:
    """One line of the table."""

    panel: str
    task: str
    data: str
    score: str
    baseline: str
    seconds: float


def vision_panel(output: Path) -> PanelResult:
    """Digits: a small residual network from scratch, pictures of what it says, and the same answers after a reload."""
    import numpy as np
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    from vision import ImageClassifier, ImageClassifierConfig

    started = time.monotonic()
    digits = load_digits()
    images = list((digits.images * 255 / 16).astype(np.uint8))
    labels = [str(number) for number in digits.target]
    train_x, test_x, train_y, test_y = train_test_split(images, labels, test_size=0.2, random_state=0, stratify=labels)
    config = ImageClassifierConfig(image_size=16, channels=1, width=16, flip=False)
    classifier = ImageClassifier(config)
    training = TrainingConfig(epochs=12, batch_size=64, learning_rate=0.01, label_smoothing=0.05)
    classifier.fit((train_x, train_y), training=training)
    metrics = classifier.evaluate((test_x, test_y))
    classifier.save(output / "digits-classifier")

    reloaded = ImageClassifier.load(output / "digits-classifier")
    answers = reloaded.predict(test_x, top_k=3)
    if answers != classifier.predict(test_x, top_k=3):
        raise RuntimeError("The reloaded pipeline answers differently.")
    _write_pictures(output, metrics, test_x, test_y, answers)
    return PanelResult(
        "vision",
        "image classification",
        f"digits, {len(train_x)} + {len(test_x)} images",
        f"accuracy {metrics['accuracy']:.4f}",
        f"logistic regression {_logistic_regression(train_x, train_y, test_x, test_y):.4f}",
        time.monotonic() - started,
    )


def _logistic_regression(train_x: Any, train_y: Any, test_x: Any, test_y: Any) -> float:
    """Accuracy of a logistic regression on pixels, its strength chosen by cross-validation on the training part."""
    import numpy as np
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV

    flat = [np.reshape(images, (len(images), -1)) / 255 for images in (train_x, test_x)]
    search = GridSearchCV(LogisticRegression(max_iter=2000), {"C": [0.1, 1.0, 10.0]}, cv=3)
    return float(search.fit(flat[0], train_y).score(flat[1], test_y))


def detection_panel(output: Path) -> PanelResult:
    """Shapes: a small detector from scratch, a sheet of what it finds, and the same answers after a reload."""
    from shape_samples import region_detections, shape_scenes

    from vision import ObjectDetector, ObjectDetectorConfig

    started = time.monotonic()
    scenes = shape_scenes(300, masks=False)
    train, test = scenes.take(range(240)), scenes.take(range(240, 300))
    config = ObjectDetectorConfig(
        image_height=96, image_width=96, width=16, pyramid_channels=32, head_depth=1, scale_jitter=1.2, hue=0.0
    )
    detector = ObjectDetector(config)
    detector.fit(train, training=TrainingConfig(epochs=16, batch_size=12, learning_rate=0.004, clip_norm=5.0))
    metrics = detector.evaluate(test)
    detector.save(output / "shapes-detector")

    images = list(test.inputs)
    answers = ObjectDetector.load(output / "shapes-detector").predict(images)
    if [a.to_dict() for a in answers] != [a.to_dict() for a in detector.predict(images)]:
        raise RuntimeError("The reloaded pipeline answers differently.")
    _write_sheet(output / "shapes-detections.png", [a.draw(_enlarged(x)) for a, x in _larger(answers, images)])
    return PanelResult(
        "vision",
        "object detection",
        f"drawn shapes, {len(train)} + {len(test)} scenes",
        f"mAP {metrics['map']:.3f}",
        f"bright regions, commonest class {region_detections(test)['map']:.3f}",
        time.monotonic() - started,
    )


def segmentation_panel(output: Path) -> PanelResult:
    """Shapes: a small U-Net from scratch, a sheet of its masks, and the same answers after a reload."""
    import numpy as np
    from shape_samples import CLASSES, region_masks, shape_scenes

    from vision import ImageSegmenter, ImageSegmenterConfig

    started = time.monotonic()
    scenes = shape_scenes(300, masks=True)
    train, test = scenes.take(range(240)), scenes.take(range(240, 300))
    config = ImageSegmenterConfig(
        labels=CLASSES, image_height=96, image_width=96, width=8, decoder_channels=16, scale_jitter=1.2, hue=0.0
    )
    segmenter = ImageSegmenter(config)
    segmenter.fit(train, training=TrainingConfig(epochs=10, batch_size=12, learning_rate=0.004, clip_norm=5.0))
    metrics = segmenter.evaluate(test)
    segmenter.save(output / "shapes-segmenter")

    images = list(test.inputs)
    answers = ImageSegmenter.load(output / "shapes-segmenter").predict(images)
    for answer, same in zip(answers, segmenter.predict(images), strict=True):
        if not np.array_equal(answer.mask, same.mask):
            raise RuntimeError("The reloaded pipeline answers differently.")
    pictures = [_enlarged(a.draw(x, legend=False)) for a, x in zip(answers, images, strict=True)]
    _write_sheet(output / "shapes-masks.png", pictures)
    return PanelResult(
        "vision",
        "image segmentation",
        f"drawn shapes, {len(train)} + {len(test)} scenes",
        f"mean IoU {metrics['mean_iou']:.3f}",
        f"bright regions, commonest class {region_masks(test)['mean_iou']:.3f}",
        time.monotonic() - started,
    )


_ENLARGED = 3


def _enlarged(image: Any) -> Any:
    import cv2

    size = (_ENLARGED * image.shape[1], _ENLARGED * image.shape[0])
    return cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)


def _larger(answers: Any, images: Any) -> list[tuple[Any, Any]]:
    """Answers with boxes in pixels of the enlarged pictures."""
    import dataclasses

    return [(dataclasses.replace(a, boxes=a.boxes * _ENLARGED), x) for a, x in zip(answers, images, strict=True)]


def _write_sheet(path: Path, pictures: Sequence[Any], *, columns: int = 5, rows: int = 3) -> None:
    import numpy as np

    from vision.drawing import write_png

    lines = [np.concatenate(pictures[start : start + columns], axis=1) for start in range(0, rows * columns, columns)]
    write_png(path, np.concatenate(lines))


def text_panel(output: Path) -> PanelResult:
    """Messages to a shop: a pretrained MiniLM, fine-tuned, its answers as a page, and the same after a reload."""
    from nlp import TextClassifier, read_text_table
    from nlp.baselines import tfidf_baseline

    started = time.monotonic()
    messages = read_text_table(Path(__file__).parent / "samples" / "shop_messages.csv")
    train = messages.take([i for i in range(len(messages)) if i % 3])
    test = messages.take(range(0, len(messages), 3))
    classifier = TextClassifier.from_preset("minilm_l6", labels="from_data", max_length=32)
    training = TrainingConfig(epochs=12, batch_size=16, learning_rate=3e-4, warmup=0.1)
    classifier.fit(train, training=training)
    metrics = classifier.evaluate(test)
    classifier.save(output / "messages-classifier")

    reloaded = TextClassifier.load(output / "messages-classifier")
    answers = reloaded.predict(list(test.inputs))
    if answers != classifier.predict(list(test.inputs)):
        raise RuntimeError("The reloaded pipeline answers differently.")
    _write_messages(output / "messages-answers.txt", test.inputs, test.targets, answers)
    return PanelResult(
        "text",
        "text classification",
        f"shop messages, {len(train)} + {len(test)} texts",
        f"accuracy {metrics['accuracy']:.4f}",
        f"TF-IDF and logistic regression {tfidf_baseline(train, test)['accuracy']:.4f}",
        time.monotonic() - started,
    )


def translation_panel(output: Path) -> PanelResult:
    """Sentences into German: a small transformer from scratch, its answers as a page, and the same after a reload."""
    from phrase_samples import phrase_pairs

    from nlp import Translator, TranslatorConfig
    from nlp.word_translation import word_translation_baseline
    from shared import Examples

    started = time.monotonic()
    sentences = Examples(*phrase_pairs(1500))
    train, test = sentences.take(range(1200)), sentences.take(range(1200, 1500))
    config = TranslatorConfig(hidden_size=64, num_layers=2, vocab_size=450, max_length=40, num_beams=2, dropout=0.0)
    translator = Translator(config)
    translator.fit(train, training=TrainingConfig(epochs=8, batch_tokens=1024, learning_rate=0.005, warmup=0.1))
    metrics = translator.evaluate(test)
    translator.save(output / "sentences-translator")

    reloaded = Translator.load(output / "sentences-translator")
    answers = [answer.text for answer in reloaded.predict(list(test.inputs))]
    if answers != [answer.text for answer in translator.predict(list(test.inputs))]:
        raise RuntimeError("The reloaded pipeline answers differently.")
    _write_translations(output / "sentences-answers.txt", test, answers)
    return PanelResult(
        "text",
        "translation",
        f"made sentences, {len(train)} + {len(test)} pairs",
        f"BLEU {metrics['bleu']:.1f}",
        f"word by word {word_translation_baseline(train, test)['bleu']:.1f}",
        time.monotonic() - started,
    )


def recommendation_panel(output: Path) -> PanelResult:
    """Books for readers: matrix factorisation, what it recommends as a page, and the same after a reload."""
    from book_samples import book_loans

    from recsys import CollaborativeFilter, CollaborativeFilterConfig
    from recsys.splitting import leave_one_out

    started = time.monotonic()
    split = leave_one_out(book_loans(600))
    recommender = CollaborativeFilter(CollaborativeFilterConfig(model="ials", factors=8, ials_l2=0.05))
    recommender.fit(split.train, training=TrainingConfig(epochs=10))
    metrics = recommender.evaluate(split.test)
    recommender.save(output / "books-recommender")

    readers = split.test.users.tolist()
    answers = CollaborativeFilter.load(output / "books-recommender").recommend(readers, 5)
    if answers != recommender.recommend(readers, 5):
        raise RuntimeError("The reloaded pipeline answers differently.")
    popular = CollaborativeFilter(CollaborativeFilterConfig(model="popularity"))
    popular.fit(split.train)
    _write_books(output / "books-answers.txt", split, recommender, answers, popular.recommend(readers, 5))
    return PanelResult(
        "recommendation",
        "collaborative filtering",
        f"made book loans, {len(split.train)} + {len(split.test)}",
        f"ndcg@10 {metrics['ndcg@10']:.3f}",
        f"most popular books {popular.evaluate(split.test)['ndcg@10']:.3f}",
        time.monotonic() - started,
    )


def _write_books(path: Path, split: Any, recommender: Any, answers: Any, popular: Any, *, readers: int = 30) -> None:
    """What some readers took, what the model and popularity recommend, and why; the held-out book is marked."""
    lines = ["* the book that was held out, found among the first five", ""]
    held = zip(split.test.items.tolist(), answers, popular, strict=True)
    for book, answer, other in list(held)[:readers]:
        history = split.train.items[split.train.users == answer.user].tolist()
        (because, _), *_ = recommender.explain(answer.user, answer.items[0], 1).because
        lines.append(f"{answer.user} has read      {'; '.join(sorted(history))}")
        for title, items in (("is recommended", answer.items), ("popular are", other.items)):
            marked = [f"*{item}" if item == book else item for item in items]
            lines.append(f"{'':10s} {title:14s}  {'; '.join(marked)}")
        lines += [f"{'':10s} {'because of':14s}  {because}", ""]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _write_translations(path: Path, test: Any, answers: Sequence[str]) -> None:
    """Mistakes first."""
    order = sorted(range(len(answers)), key=lambda i: answers[i] == test.targets[i])
    lines = ["held-out sentences, mistakes first", ""]
    for i in order:
        truth = "" if answers[i] == test.targets[i] else f"  (is {test.targets[i]})"
        lines.append(f"{'x ' if truth else '  '}{test.inputs[i]}  ->  {answers[i]}{truth}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _write_messages(path: Path, texts: Any, labels: Any, answers: Any) -> None:
    """The least certain answers first, mistakes marked."""
    order = sorted(range(len(answers)), key=lambda i: (answers[i].label == labels[i], answers[i].probability))
    lines = ["held-out messages, mistakes and least certain answers first", ""]
    for i in order:
        mark = "  " if answers[i].label == labels[i] else "x "
        truth = "" if answers[i].label == labels[i] else f"  (is {labels[i]})"
        lines.append(f"{mark}{answers[i].label:9s} {answers[i].probability:.2f}  {texts[i]}{truth}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _write_pictures(output: Path, metrics: Any, images: Any, labels: Any, answers: Any) -> None:
    import cv2

    from shared.classification_metrics import draw_confusion_matrix

    names = [row["label"] for row in metrics.details["per_class"]]
    confusion = draw_confusion_matrix(metrics.details["confusion_matrix"], names)
    for name, picture in (("digits-confusion", confusion), ("digits-answers", _draw_answers(images, labels, answers))):
        cv2.imwrite(str(output / f"{name}.png"), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))


def _draw_answers(images: Any, labels: Any, answers: Any, *, columns: int = 8, rows: int = 4) -> Any:
    """The least certain answers first: each digit with its three likeliest classes as bars, mistakes in red."""
    import cv2
    import numpy as np

    tile, gap = 96, 12
    order = sorted(range(len(answers)), key=lambda i: (answers[i].label == labels[i], answers[i].probability))
    sheet = np.full((rows * (tile + 60 + gap) + gap + 30, columns * (tile + gap) + gap, 3), 255, np.uint8)
    title = "least certain answers of the test set; red: wrong (true label in brackets)"
    cv2.putText(sheet, title, (gap, 24), cv2.FONT_HERSHEY_SIMPLEX, 0.55, (40, 40, 40), 1, cv2.LINE_AA)
    for place, index in enumerate(order[: columns * rows]):
        x = gap + place % columns * (tile + gap)
        y = 30 + gap + place // columns * (tile + 60 + gap)
        picture = 255 - cv2.resize(images[index], (tile, tile), interpolation=cv2.INTER_CUBIC)
        sheet[y : y + tile, x : x + tile] = picture[..., None]
        _draw_bars(sheet, (x, y + tile + 6), tile, answers[index], labels[index])
    return sheet


def _draw_bars(sheet: Any, corner: tuple[int, int], width: int, answer: Any, true_label: str) -> None:
    import cv2

    wrong = answer.label != true_label
    for line, (label, probability) in enumerate(zip(answer.labels, answer.probabilities, strict=True)):
        x, y = corner[0], corner[1] + 18 * line
        colour = (208, 60, 50) if wrong and line == 0 else (60, 120, 190) if line == 0 else (190, 200, 210)
        cv2.rectangle(sheet, (x + 14, y), (x + 14 + int((width - 14) * probability), y + 13), colour, -1)
        cv2.putText(sheet, label, (x, y + 12), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (40, 40, 40), 1, cv2.LINE_AA)
        if wrong and line == 0:
            cv2.putText(
                sheet,
                f"({true_label})",
                (x + width - 24, y + 12),
                cv2.FONT_HERSHEY_SIMPLEX,
                0.45,
                (40, 40, 40),
                1,
                cv2.LINE_AA,
            )


def print_table(results: Sequence[PanelResult]) -> None:
    """The panels' results, one line each."""
    header = ("panel", "task", "data", "score", "baseline", "seconds")
    rows = [(r.panel, r.task, r.data, r.score, r.baseline, f"{r.seconds:.0f}") for r in results]
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    for row in (header, tuple("-" * width for width in widths), *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def main(arguments: Sequence[str] | None = None) -> None:
    """Run every panel that exists."""
    parser = OneLineParser(description="One small pipeline per domain, trained, scored, saved and reloaded.")
    parser.add_argument(
        "--output", type=Path, default=Path("demo"), help="where pictures and pipelines go (default: demo)"
    )
    output = parser.parse_args(arguments).output
    output.mkdir(parents=True, exist_ok=True)
    RuntimeConfig().apply()
    panels = (
        vision_panel,
        detection_panel,
        segmentation_panel,
        text_panel,
        translation_panel,
        recommendation_panel,
    )
    results = [panel(output) for panel in panels]
    print()
    print_table(results)
    print(f"\nPictures and saved pipelines are in {output}/. Next, ask the saved one yourself:")
    print(f"  python scripts/image_classification.py predict --model {output}/digits-classifier PICTURE.png")
    print(f'  python scripts/text_classification.py predict --model {output}/messages-classifier "Where is my order?"')
    print(
        f"  python scripts/translation.py predict --model {output}/sentences-translator "
        '"Has the old cat seen the hungry dog?"'
    )
    print(
        f"  python scripts/collaborative_filtering.py recommend --model {output}/books-recommender "
        '--users "reader 007" --k 5'
    )


if __name__ == "__main__":
    sys.exit(run_script(main))
