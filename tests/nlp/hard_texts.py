# what looks alike is what is tested
"""Texts that tokenizers get wrong, and a generator of more of them."""

from __future__ import annotations

import random

HARD_TEXTS = (
    "",
    " ",
    "   ",
    "\t\n\r\x0b\x0c",
    "a",
    "The quick brown fox jumps over the lazy dog.",
    "  leading and trailing   ",
    "two  spaces   three    four",
    "tabs\tand\nnew\r\nlines\n\n\nand more \n ",
    "no-break\u00a0space, thin\u2009space, narrow\u202fno-break, ideographic\u3000space, line\u2028separator\u2029x",
    "zero\u200bwidth\u200cnon\u200djoiner\ufeffbom\u2060word",
    "next\u0085line, ogham\u1680space, mongolian\u180evowel",
    "nul\x00l, bell\x07, escape\x1b[31m, delete\x7f, c1\x9b, replacement\ufffd",
    "soft\u00adhyphen and right-to-left\u200fmark and \u202eoverride\u202c",
    "don't, we'll, they've, I'm, he'd, it's, you're, 'tis, ''quoted'', O'Neill's, 's, \n't, x's's, 'S 'LL",
    "``LaTeX quotes'' and '' and ```",
    "naïve café résumé coöperate Ångström façade",
    "nai\u0308ve cafe\u0301 re\u0301sume\u0301 A\u030angstro\u0308m a\u0301\u0323b\u0323\u0301 q\u0307\u0323 \u0301x",
    "e\u0301 fi\u0301 \ufb01\u0301 \u00bd\u0301 \u2460\u20dd a\u200db",
    "Straße STRASSE ẞ ß İstanbul ISTANBUL ıi Ǆ ǅ ǆ ΌΣΟΣ ὈΔΥΣΣΕΎΣ ŉ ΐ",
    "ligatures: ﬁ ﬂ ﬃ Œ œ Æ æ ĳ ﷺ ﬅ, fractions ½ ¼ ⅓, powers x² y³ ⁿ, roman Ⅳ ⅳ, units ㎏ ℃ Ω K Å",
    "fullwidth ＡＢＣ １２３ ！？ halfwidth ｶﾞ ﾊﾟ ｱ 〜 ～ −",
    "emoji 😀😀 👍🏽 ❤️ ☕ 🏳️‍🌈 👩‍👩‍👧‍👦 👨🏿‍🚀 🇫🇷🇩🇪🇯 1️⃣ #️⃣ ©\u200d© ®\ufe0f",
    "河流穿过古老的城市，人们每天晚上在岸边散步。",
    "mixed中文and日本語カタカナひらがなtext한국어조선말 𠮷野家 \U00020000\U0002f800",
    "강은 오래된 도시를 각 \u1100\u1161\u11a8 \uac00\u11a8",
    "يجري النهر عبر المدينة، ١٢٣ اَلْكِتَابُ ـــ لا ﻻ \u0600\u0661 \u06dd\u0661",
    "הנהר זורם דרך העיר שָׁלוֹם ״ציטוט״ 5 ק״מ",
    "नदी पुराने शहर से क्षत्रिय हिन्दी क़ \u0915\u093c १२३ श्री",
    "แม่น้ำไหลผ่านเมืองเก่า กำ \u0e4d\u0e32 ๑๒๓",
    "தமிழ் ကမ္ဘာ ខ្មែរ ລາວ བོད་ཡིག አማርኛ ქართული հայերեն ᏣᎳᎩ ᠮᠣᠩᠭᠣᠯ",
    "Một ngày mới bắt đầu ở quán cà phê Ệ ệ e\u0323\u0302 e\u0302\u0323",
    "Zażółć gęślą jaźń, ЁЖИК ёжик Й й Ѐ",
    "supercalifragilisticexpialidocious" * 5,
    "x" * 99 + " " + "y" * 100 + " " + "z" * 101 + " " + "é" * 100,
    "ab" * 300,
    "!?.,;:-_()[]{}<>/\\|@#$%^&*+=~`\"'",
    "... ---- ==== **** !!!! ???? ____ //// ((((",
    "$3.50 1,024 99.9% 1e-5 0x1F 2024-11-23 12:30 +49-89 http://example.org/a?b=c&d=e#f me@example.org",
    "[CLS] text [SEP] more [MASK] [PAD] [UNK] [cls] [SEP[SEP]]",
    "<s> text </s> more <mask>  <mask>x<pad> <unk> </S> <s>NOTUSED",
    "\u2581already \u2581marked\u2581\u2581 _",
    "math ∑ ∫ √ ≠ ≤ 𝔸𝕓𝒸 𝟙𝟚 → ⇒ ∞ ♥ ★ ☃ ❄ \U0001d165\U0001d16d",
    "«guillemets» „low“ ‘single’ “double” ‹x› … – — ― ‐ · • ¿ ¡ § ¶ † ‡ ° ¬ ¦ ¯ ´ ¸",
    "\u0378 \u05ff \ue000 \uf8ff \ufdd0 \uffff \U000e0001 \U000e0061 \U0010ffff \U0001fae8 \U000323af",
    "a\u0300\u0301\u0302\u0303\u0304\u0305\u0306\u0307\u0308\u0309 Z̸͓̽a̶̰͘l̴̖̇g̵̯̀o̷͈͝",
    "ᬓ᭄ᬭ\u1b44\u0323 \u302e\u302f\u1d165 ꧀\ua953\ua9c0",
)

# Pieces that are put together at random: whole words, single characters, and what joins or separates them.
_PIECES = (
    tuple(word for text in HARD_TEXTS for word in text.split(" ") if len(word) < 30)
    + tuple(sorted({c for text in HARD_TEXTS for c in text}))
    + (" ", " ", " ", "  ", "\n", "\t", "\u00a0", "\u3000", "\u200d", "\ufe0f", "\u0301", "\u0323", "'", "the ", "ing")
)
_RANGES = (
    (0x00, 0xFF), (0x0100, 0x024F), (0x0300, 0x036F), (0x0370, 0x05FF), (0x0600, 0x07FF), (0x0900, 0x0DFF),
    (0x0E00, 0x0FFF), (0x1100, 0x11FF), (0x1E00, 0x20FF), (0x2100, 0x2BFF), (0x3000, 0x30FF), (0x4E00, 0x9FFF),
    (0xA000, 0xABFF), (0xAC00, 0xD7A3), (0xF900, 0xFFFF), (0x10000, 0x1FFFF), (0x20000, 0x2FFFF), (0xE0000, 0x10FFFF),
)  # fmt: skip


def random_text(rng: random.Random, *, longest: int = 24) -> str:
    """A text of up to `longest` pieces, most of them hard ones, some of characters from anywhere in Unicode."""
    pieces = []
    for _ in range(rng.randint(0, longest)):
        if rng.random() < 0.15:
            low, high = rng.choice(_RANGES)
            pieces.append(chr(rng.randint(low, high)))
        else:
            pieces.append(rng.choice(_PIECES))
        if rng.random() < 0.3:
            pieces.append(" ")
    return "".join(pieces)
