"""When are two questions the same? One answer for the held-out split, duplicates and contamination."""

from __future__ import annotations

import unicodedata


def question_key(text: str) -> str:
    """The question without what a reader does not see as a difference: two questions are one if their keys are equal.

    Unicode's compatibility forms (NFKC: full-width letters, ligatures, non-breaking spaces), white space, invisible
    characters and case don't count. Case: a question that is asked again in capitals must not be trained on while it
    is held out. Two questions that differ in case alone fall into the same split, no more.
    """
    if text.isascii():
        return " ".join(text.split()).casefold()
    visible = "".join(character for character in text if unicodedata.category(character) != "Cf")
    return " ".join(unicodedata.normalize("NFKC", visible).split()).casefold()
