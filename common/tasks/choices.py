"""Reading the chosen letter out of a response to a multiple-choice question."""

from __future__ import annotations

import re

LETTERS = "ABCDEFGHIJ"

# From the surest form to the loosest; within a form the last one counts: models restate the options before they choose.
_FORMS = (
    re.compile(r"\\boxed\{\s*(?:\\(?:text|textbf|mathrm|mathbf)\{)?\s*\(?([A-Za-z])\)?\s*[.:]?\s*\}"),
    re.compile(r"(?i:\banswer\b)\W{0,12}?(?i:\bis\b)?[\s:*(\[]{0,8}\b([A-Z])\b(?!')"),
    re.compile(r"^\W*\(?([A-Z])\)?[\s.:)*]*$", re.MULTILINE),
)


def chosen_letter(text: str, num_choices: int) -> str | None:
    """The letter the text ends up with, of the first `num_choices`; None if it names none in a form we know.

    Known: ``\\boxed{B}``, "the answer is (B)", "Answer: B", and a line that holds nothing but a letter.
    """
    for form in _FORMS:
        for found in reversed(form.findall(text)):
            letter: str = found.upper()
            if letter in LETTERS[:num_choices]:
                return letter
    return None
