"""Is a mathematical answer the reference answer? See docs/dataset.md for the rules, with examples.

Where the answer stands, from the surest place to the loosest: the last ``\\boxed{}``; ``<answer>…</answer>``; a line
``#### …``; "the answer is …"; the last formula or number. The last box alone counts, empty ones apart; a box that is
never closed is no answer.
"""

from __future__ import annotations

import re
from itertools import pairwise

from vcppo.common.tasks.interface import Verdict
from vcppo.common.tasks.maths.compare import same_answer
from vcppo.common.tasks.maths.structure import group_of
from vcppo.common.tasks.maths.text import boxes, is_balanced, normal_form

_MAX_SHOWN = 200
_MAX_TAIL = 20_000  # characters of a response without a box that are searched, from its end
_MAX_REFERENCE = 2000
_MAX_ANSWER = 4000  # a longer one is compared by nothing: no reference is so long
_MARKED = re.compile(r"^[ \t]*####[ \t]*(\S.*)$", re.MULTILINE)
_PHRASE = re.compile(
    r"\banswers?\b(?:\s+(?:to|for)\s+[^.:\n]{1,80}?)?[\s*_]*"
    r"(?:\bis\b|\bare\b|:|=|\bwould be\b|\bshould be\b|\bequals\b)[\s*:_]*|答案\s*(?:是|为|為|:|：)\s*",
    re.IGNORECASE,
)
_TAG = re.compile(r"<answer>([^<]{1,4000})</answer>", re.IGNORECASE)
_END = re.compile(
    r"\n|[。；]|(?<!\b[ap])(?<!\b[ap]\.m)[.!?;](?=\s|\Z)|,?\s+(?:because|since|as|which|so|where|given|i\.e|I hope)\b"
)
_FORMULA = re.compile(
    r"\$\$(?P<a>[^$]+)\$\$|(?<![\\$\d])\$(?!\s)(?P<b>(?:\\\$|[^$\n])+?)(?<![\s\\])\$(?!\d)|\\\((?P<c>.+?)\\\)|\\\[(?P<d>.+?)\\\]",
    re.DOTALL,
)
_NUMBER = re.compile(
    r"(?<![\w.])[-+−]?(?:[$€£]\s?)?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+|(?<=\d))(?:\s*/\s*\d+(?:\.\d+)?)?(?:\s?%)?|\\frac\{-?\d+\}\{-?\d+\}|[½⅓⅔¼¾]"
)
_ADVERB = re.compile(
    r"(?:therefore|thus|then|hence|simply|just|clearly|indeed|actually|still|now)\b[\s,:]*", re.IGNORECASE
)
_ASIDE = re.compile(r"(?<=\w)\s+\((?=[^()]*[A-Za-z]{3})[^()]*\)\s*\Z")  # "160 minutes (2 hours and 40 minutes)"
_CONNECTED = re.compile(
    r"[\s$,;]*(?:(?:and|or|\\text\{\s*(?:and|or)\s*\})[\s$,;]*)?(?:[A-Za-z](?:_\{?\w\}?)?\s*=\s*)?\Z"
)


def judge(reference: str, text: str) -> Verdict:
    """Verdict on the answer that `text` ends in.

    Args:
        reference: number, expression, LaTeX or words, with or without ``$`` or ``\\boxed``.
        text: the part of the response after the thinking.
    """
    stripped = text.strip()
    if stripped and stripped == reference.strip():
        return Verdict("correct", stripped[:_MAX_SHOWN])
    given = final_answer(text)
    if given is None:
        return Verdict("unparsable", None)
    if len(given) > _MAX_ANSWER:
        return Verdict("wrong", given[:_MAX_SHOWN])
    wanted = normal_form(reference_text(reference))
    is_right = same_answer(wanted, normal_form(given))
    if not is_right and (joined := _joined_boxes(wanted, text)) is not None:
        is_right = same_answer(wanted, normal_form(joined))
    return Verdict("correct" if is_right else "wrong", given.strip()[:_MAX_SHOWN])


def quick_problem(reference: str) -> str | None:
    """What can be said of a reference at a glance, for rows by the hundred thousand; see `reference_problem`."""
    if len(reference) > _MAX_REFERENCE:
        return f"has {len(reference)} characters: a whole solution, not an answer"
    if _MARKED.search(reference):
        return "holds a whole solution (a line begins with ####)"
    if not is_balanced(reference):
        return "has a brace without its partner"
    return None


def reference_problem(reference: str) -> str | None:
    """Why nothing would ever be judged right against this reference; None: it is right against itself in a box."""
    if not reference.strip():
        return "is empty"
    if (problem := quick_problem(reference)) is not None:
        return problem
    if not normal_form(reference_text(reference)):
        return "is empty but for signs that don't count"
    if judge(reference, f"\\boxed{{{reference}}}").outcome != "correct":
        return "is not judged equal to itself in a \\boxed{}"
    return None


def reference_text(reference: str) -> str:
    """Content of the last box of a reference that has one, else all of it."""
    found = boxes(reference) if "box" in reference else None
    return found[-1].content(reference) if found else reference


def final_answer(text: str) -> str | None:
    """The part of `text` that is its answer; None: there is none."""
    found = boxes(text)
    if found is None:
        return None
    for box in reversed(found):
        content = box.content(text)
        if len(content) > _MAX_ANSWER or normal_form(content):
            return content
    if found:
        return None  # nothing but empty boxes
    tail = text[-_MAX_TAIL:]
    for content in reversed(_TAG.findall(tail)):
        if normal_form(content):
            return _after_phrase(content) or _one_number(content.strip())
    if marked := _MARKED.findall(tail):
        return str(marked[-1]).strip()
    return _after_phrase(tail) or _last_formula_or_number(tail)


def _after_phrase(text: str) -> str | None:
    """What follows the last "the answer is", up to the end of the sentence."""
    for match in reversed(list(_PHRASE.finditer(text))):
        rest = text[match.end() : match.end() + 500].strip(" *_")
        formula = _FORMULA.match(rest)
        if formula is not None:
            tail = rest[formula.end() :]
            following = re.match(r"\s*(?:\\?%|percent\b|(?:,|and|or|\s)+\$)", tail)
            if following is None:
                return _content(formula)
        end = _END.search(rest)
        said = (rest[: end.start()] if end else rest).strip(" *_")
        said = _ASIDE.sub("", _ADVERB.sub("", said)).strip()
        if not said:
            continue
        return _one_number(said)
    return None


def _one_number(said: str) -> str:
    """The only number of a whole sentence, "that he pays 42 dollars in all"; else what is said."""
    numbers = [number[0] for number in _NUMBER.finditer(said)]
    words = re.findall(r"[A-Za-z]{2,}", re.sub(r"\\[A-Za-z]+", "", said))
    return numbers[0] if len(numbers) == 1 and len(words) > 3 and "\\" not in said else said


def _last_formula_or_number(text: str) -> str | None:
    formulas = list(_FORMULA.finditer(text))
    numbers = list(_NUMBER.finditer(text))
    if formulas and (not numbers or formulas[-1].end() >= numbers[-1].end()):
        return _content(formulas[-1])
    return numbers[-1][0] if numbers else None


def _content(formula: re.Match[str]) -> str:
    return next(group for group in formula.groups() if group is not None)


def _joined_boxes(wanted: str, text: str) -> str | None:
    r"""The last boxes as one list, where the reference is a list of as many: ``\boxed{2}$ and $\boxed{3}``."""
    group = group_of(wanted)
    if group is None or group.kind not in ("list", "{"):
        return None
    found = [box for box in boxes(text) or [] if box.content(text).strip()]
    last = found[-len(group.parts) :]
    if len(last) < len(group.parts):
        return None
    between = [text[a.end : b.start] for a, b in pairwise(last)]
    return ",".join(box.content(text) for box in last) if all(_CONNECTED.match(each) for each in between) else None
