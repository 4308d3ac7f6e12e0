"""Shell commands that can be pasted, whatever the names in them hold."""

from __future__ import annotations

import re

__all__ = ["command", "quoted"]


def command(*words: str, file: str, encoding: str = "utf-8") -> str:
    r"""Shell command on a file that can be pasted whatever is in its words.

    Parameters
    ----------
    words, file
        The file comes last; one that starts with a dash is no option.
    encoding
        What the terminal can print; other characters are written as their bytes.

    Examples
    --------
    >>> print(command("ckptdoctor", "inspect", file="my model.pt"))
    ckptdoctor inspect 'my model.pt'
    >>> print(command("cat", file="-a\nb"), command("cat", file="\xe9", encoding="ascii"))
    cat $'./-a\x0ab' cat $'\xc3\xa9'
    """
    file = f"./{file}" if file.startswith("-") else file
    return " ".join(quoted(word, encoding) for word in (*words, file))


def quoted(word: str, encoding: str = "utf-8") -> str:
    """One word of a command, quoted only where the shell needs it.

    Examples
    --------
    >>> print(quoted("post_bn"), quoted("net/*"))
    post_bn 'net/*'
    """
    if word and not re.search(r"[^\w@%+=:,./-]", word, re.ASCII):
        return word
    if not word.isprintable() or not _prints(word, encoding):
        # Bytes, since what is no UTF-8 reaches us as surrogates; bash reads two digits after \\x.
        raw = word.encode("utf-8", "surrogateescape")
        return "$'" + "".join(_PLAIN.get(byte, f"\\x{byte:02x}") for byte in raw) + "'"
    return "'" + word.replace("'", "'\"'\"'") + "'"


def _prints(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True


_PLAIN = {byte: chr(byte) for byte in range(32, 127)} | {ord("\\"): "\\\\", ord("'"): "\\'"}
"""Bytes that stand for themselves between ``$'`` and ``'``, and the two that a backslash guards."""
