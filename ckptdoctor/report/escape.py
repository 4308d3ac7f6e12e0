"""Text from files made harmless: a name may hold anything, a terminal obeys what it is sent."""

from __future__ import annotations

import re

__all__ = ["command", "display", "shorten", "unicode_text"]


def display(text: str) -> str:
    r"""Text for a terminal, with everything that does not print as an escape of its own.

    Control characters and terminal escapes, text direction overrides, zero-width characters, line
    and paragraph separators, surrogates: all that `str.isprintable` refuses.

    Examples
    --------
    >>> print(display("bn1.weight"), display("a\x1b[2Jb"), display("x\u202ey\n"))
    bn1.weight a\x1b[2Jb x\u202ey\n
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(char: str) -> str:
    return char.encode("unicode_escape", "surrogatepass").decode("ascii")


def unicode_text(text: str) -> str:
    r"""Text that every JSON parser takes: lone surrogates, half a character each, are escaped.

    Examples
    --------
    >>> unicode_text("caf\xe9"), unicode_text("\udcff")
    ('café', '\\udcff')
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode()
    return text


def shorten(text: str, width: int) -> str:
    """Text of at most ``width`` characters; what has to go goes from the middle.

    The end of a name tells more than its middle, so it keeps two thirds.

    Examples
    --------
    >>> shorten("encoder.layers.11.self_attn.out_proj.weight", 24)
    'encoder...ut_proj.weight'
    """
    if len(text) <= width:
        return text
    if width <= 3:
        return text[:width]
    head = (width - 3) // 3
    return f"{text[:head]}...{text[len(text) - (width - 3 - head) :]}"


def command(*words: str) -> str:
    r"""Shell command that can be pasted whatever is in its words.

    Examples
    --------
    >>> print(command("ckptdoctor", "inspect", "my model.pt"), command("a\nb"))
    ckptdoctor inspect 'my model.pt' $'a\x0ab'
    """
    return " ".join(_word(word) for word in words)


def _word(word: str) -> str:
    if word and not re.search(r"[^\w@%+=:,./-]", word, re.ASCII):
        return word
    if not word.isprintable():
        # Bytes, since what is no UTF-8 reaches us as surrogates; bash reads two digits after \\x.
        raw = word.encode("utf-8", "surrogateescape")
        return "$'" + "".join(_PLAIN.get(byte, f"\\x{byte:02x}") for byte in raw) + "'"
    return "'" + word.replace("'", "'\"'\"'") + "'"


_PLAIN = {byte: chr(byte) for byte in range(32, 127)} | {ord("\\"): "\\\\", ord("'"): "\\'"}
"""Bytes that stand for themselves between ``$'`` and ``'``, and the two that a backslash guards."""
