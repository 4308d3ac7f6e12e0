"""Text from files made harmless: a name may hold anything, a terminal obeys what it is sent."""

from __future__ import annotations

from ..shell import command

__all__ = ["columns", "command", "display", "shorten", "unicode_text"]


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


def columns(text: str) -> int:
    """Columns that a terminal takes for text: two for what is wide in East Asia.

    Examples
    --------
    >>> columns("model.pt"), columns("\u6a21\u578b.pt")
    (8, 7)
    """
    if text.isascii():
        return len(text)
    from unicodedata import east_asian_width  # noqa: PLC0415  (most names are ASCII)

    return sum(2 if east_asian_width(char) in "WF" else 1 for char in text)
