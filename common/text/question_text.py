"""When are two questions the same? One answer for the held-out split, duplicates and contamination."""

from __future__ import annotations

import unicodedata


def question_key(text: str) -> str:
    """Two questions are one if their keys are equal: `visible_text`, and case does not count either.

    A question that is asked again in capitals must not be trained on while it is held out. Two questions that differ
    in case alone fall into the same split, no more.
    """
    return visible_text(text).casefold()


def visible_text(text: str) -> str:
    """The text as a reader sees it: one blank for any white space, Unicode's compatibility forms (NFKC: full-width
    letters, ligatures, non-breaking spaces), no invisible characters."""
    if not text.isascii():
        visible = "".join(character for character in text if unicodedata.category(character) != "Cf")
        text = unicodedata.normalize("NFKC", visible)
    return " ".join(text.split())
