# what looks alike is what is tested
"""Small tokenizers of each kind, trained on the text below: python tests/golden/make_tokenizers.py

Needs `tokenizers` and `sentencepiece`. The SentencePiece model carries the character map `nmt_nfkc`, as those of XLM-R,
ALBERT and DeBERTa-v3 do; it is most of the file.
"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

sys.path.insert(0, str(Path(__file__).parents[2]))
from nlp.tokenization import TextTokenizer

HERE = Path(__file__).parent / "tokenizers"

TEXT = """
The river rises in the hills above the town and reaches the sea after two hundred miles.
Every morning the baker opens the shop at six, and by seven the bread is gone.
She wrote to her sister that the winter had been mild and that the garden was already green.
We don't know whether they'll come; he said he'd call, but I'm not sure it's true.
They've built a bridge of stone, you're standing on it, and we'd like you to see the other side.
The engineers measured 12.5 metres, 1,024 steps and 99% of the load in 2024.
Prices went from $3.50 to $4.75 (an increase of about 36%), said the report on page 17.
International organisations recommended an unbelievable restructuring of telecommunication networks.
Reading, writing and counting were taught in the same room; singing was taught outside.
The quick brown fox jumps over the lazy dog, and the dog does not mind at all.
def tokenize(text): return [word for word in text.split() if word != ""]
An e-mail to nobody@example.org bounced; see http://example.org/a?b=c&d=e#top for the reason.
"Is that so?" asked the captain. "It is," replied the mate - "and has been for years..."
Die Straße ist naß, weil es gestern geregnet hat; die Häuser stehen schön am Fluß.
Über allen Gipfeln ist Ruh, sagte der Bäcker, und öffnete die Tür für zwölf Gäste.
Le garçon a mangé une crêpe à la fenêtre; l'été dernier, il était déjà là.
Où est passée la clé? Elle était près de l'entrée, peut-être sous la boîte aux lettres.
El niño comió una manzana mañana por la mañana, ¿verdad? ¡Qué corazón tan grande!
O pão e o café estão prontos; não há açúcar, mas há maçãs e limões no cesto.
Il treno è già partito: perché non è arrivato più presto alla città?
Zażółć gęślą jaźń, powiedział nauczyciel, i zapisał zdanie na tablicy.
Dünyanın en güzel şehri İstanbul'dur; ışık ve gölge her sabah değişir.
Một ngày mới bắt đầu, những người bạn cũ gặp lại nhau ở quán cà phê.
Река течёт через старый город, и каждый вечер люди гуляют по набережной.
Учитель сказал, что зима была мягкой, а сад уже зелёный.
Ο ποταμός περνά από την πόλη και οι άνθρωποι περπατούν κάθε βράδυ.
يجري النهر عبر المدينة القديمة ويمشي الناس كل مساء على ضفافه.
اَلْكِتَابُ عَلَى الطَّاوِلَةِ وَالْقَلَمُ تَحْتَهَا.
הנהר זורם דרך העיר העתיקה ואנשים מטיילים בה בכל ערב.
नदी पुराने शहर से होकर बहती है और लोग हर शाम वहाँ टहलते हैं।
แม่น้ำไหลผ่านเมืองเก่าและผู้คนเดินเล่นทุกเย็น
河流穿过古老的城市，人们每天晚上在岸边散步。
川は古い町を流れ、人々は毎晩そこを散歩します。カタカナとひらがな。
강은 오래된 도시를 지나 흐르고 사람들은 매일 저녁 그곳을 걷는다.
Emoji 😀 and 👍🏽, flags 🇫🇷🇩🇪, families 👩‍👩‍👧‍👦, hearts ❤️ and ☕ are text as well.
naïve café résumé coöperate façade über Ångström – “quoted”, ‘single’, dashes — and ellipsis…
""".strip().split("\n")


def write(name: str, tokenizer: Tokenizer, settings: dict[str, object]) -> None:
    directory = HERE / name
    directory.mkdir(parents=True, exist_ok=True)
    TextTokenizer(tokenizer.to_str(), settings).save(directory)


def word_piece(name: str, *, lower_case: bool) -> None:
    tokenizer = TextTokenizer.train(TEXT * 3, 900, lower_case=lower_case)
    (HERE / name).mkdir(parents=True, exist_ok=True)
    tokenizer.save(HERE / name)


def byte_pairs() -> None:
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=1200,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT * 3, trainer)
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True, normalized=False, special=True)])
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), True, False)
    settings = {"pad_token": "<pad>", "unk_token": "<unk>", "cls_token": "<s>", "sep_token": "</s>"}
    write("byte_pair", tokenizer, {**settings, "mask_token": "<mask>", "add_prefix_space": False})


def unigram_json() -> None:
    """A tokenizer.json with ALBERT's rules, without a character map."""
    tokenizer = Tokenizer(models.Unigram())
    rules = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"'), normalizers.NFKD()]
    rules += [normalizers.StripAccents(), normalizers.Lowercase(), normalizers.Replace(Regex(" {2,}"), " ")]
    tokenizer.normalizer = normalizers.Sequence(rules)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.UnigramTrainer(vocab_size=800, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(TEXT * 3, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    names = {"pad": "<pad>", "unk": "<unk>", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    write("unigram", tokenizer, {f"{role}_token": token for role, token in names.items()})


def sentence_piece() -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT * 3),
        model_writer=model,
        vocab_size=900,
        model_type="unigram",
        character_coverage=1.0,
        hard_vocab_limit=False,
        pad_id=0,
        unk_id=3,
        bos_id=1,
        eos_id=2,
        pad_piece="[PAD]",
        bos_piece="[CLS]",
        eos_piece="[SEP]",
        unk_piece="[UNK]",
        user_defined_symbols=["[MASK]"],
        minloglevel=2,
    )
    directory = HERE / "sentence_piece"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "spm.model").write_bytes(model.getvalue())
    settings = {"tokenizer_class": "DebertaV2Tokenizer", "do_lower_case": False}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


if __name__ == "__main__":
    word_piece("word_piece_uncased", lower_case=True)
    word_piece("word_piece_cased", lower_case=False)
    byte_pairs()
    unigram_json()
    sentence_piece()
