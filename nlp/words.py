"""Where the words of a text are, for any script: what entities are made of when a text comes as one string."""

from __future__ import annotations

from tokenizers import Regex, pre_tokenizers

from nlp.tokenizer_files import encodable

# One character each where words are not set apart (Chinese, Japanese, Thai, Lao, Khmer, Burmese); else letters and
# digits with the marks upon them; any other visible character stands alone.
_UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]\p{M}*"
_WORD = Regex(rf"{_UNSPACED}|(?:(?!{_UNSPACED})[\p{{L}}\p{{N}}_])(?:(?!{_UNSPACED})[\p{{L}}\p{{N}}\p{{M}}_])*|\S")
_SPLITTER = pre_tokenizers.Split(_WORD, behavior="removed", invert=True)


def word_spans(text: str) -> list[tuple[int, int]]:
    """Start and end of each word and punctuation mark, in characters of `text`.

    Example:
        >>> word_spans("Zoë's 3 cats.")
        [(0, 3), (3, 4), (4, 5), (6, 7), (8, 12), (12, 13)]
    """
    return [span for _, span in _SPLITTER.pre_tokenize_str(encodable(text))]
