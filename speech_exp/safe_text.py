"""Make text harmless before it is shown or stored: control characters from untrusted files, passwords in URIs."""

from __future__ import annotations

import re
import unicodedata

# Control characters (including terminal escapes), invisible and direction marks, surrogates, line separators.
_UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
LONGEST = 2000
_RESOLVING = " raised while resolving interpolation: "
_CREDENTIALS = re.compile(r"://\S*@")  # user and password in http://user:password@host


def printable(text: object, longest: int = LONGEST) -> str:
    """Return `text` on one line, cut to `longest` characters; characters that a terminal would act on are escaped."""
    words = str(text)
    cut = f"... ({len(words):,} characters)" if len(words) > longest else ""
    line = " ".join(words[:longest].split())
    return escaped(line) + cut


def text_of(error: BaseException) -> str:
    """Return the text of an error; of a resolver's error only its sentence, with the key if a variable is missing."""
    sentence, _, details = str(error).partition(_RESOLVING)[2].partition("\n")
    key = details.partition("full_key: ")[2].partition("\n")[0]
    missing = sentence.strip('"')
    return f"{key}: {missing}" if missing.startswith("Environment variable") else sentence or str(error)


def escaped(text: str) -> str:
    """Return `text` with all its spaces, on one line; other characters that a terminal would act on are escaped."""
    return "".join(escape(letter) if unicodedata.category(letter) in _UNSEEN else letter for letter in text)


def visible(text: str) -> str:
    """Return `text` with its lines and spaces; other characters that a terminal would act on are escaped."""
    return "".join(one if one == "\n" or unicodedata.category(one) not in _UNSEEN else escape(one) for one in text)


def without_credentials(text: str) -> str:
    """Replace user and password by `***` in each URI of a text."""
    return _CREDENTIALS.sub("://***@", text)


def escape(letter: str) -> str:
    return letter.encode("unicode_escape", "surrogatepass").decode("ascii")
