"""The text of a mathematical answer in one normal form, and where in a response the answer stands.

A person reads ``−½``, ``$-\\dfrac12$`` and ``-\\frac{1}{2}`` as one thing. `normal_form` brings them to one text; it
knows nothing about values (`values`) or structure (`structure`). Everything here takes linear time.
"""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple

_BOX = re.compile(r"\\{1,2}f?boxe?d?\s*\{|\\{1,2}boxed\s*(-?\d[\d.,/]*)|\\.|[{}]", re.DOTALL)

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱ", "0123456789+-()ni")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉₊₋₍₎ₙᵢ", "0123456789+-()ni")
_SYMBOLS = {
    **dict.fromkeys("−–‐‑﹣－", "-"),
    **dict.fromkeys("·⋅∙•", r"\cdot "),
    **dict.fromkeys("×✕✖", r"\times "),
    **dict.fromkeys("“”„", '"'),
    **dict.fromkeys("‘’ʼ", "'"),
    "÷": r"\div ", "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "⩽": r"\le ", "⩾": r"\ge ", "≠": r"\ne ",
    "≈": r"\approx ", "±": r"\pm ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ", "∘": r"^\circ ",
    "º": r"^\circ ", "°": r"^\circ ", "′": "'", "⟨": r"\langle ", "⟩": r"\rangle ", "ℝ": r"\mathbb{R}",
    "ℤ": r"\mathbb{Z}",    "…": "...", "⋯": "...", "∠": r"\angle ", "∶": ":", "⁄": "/", "∕": "/",
}  # fmt: skip
_ROOTS = {"√": r"\sqrt", "∛": r"\sqrt[3]", "∜": r"\sqrt[4]"}
_ROOT = re.compile(r"([√∛∜])\s*(?:\(([^()]*)\)|\{([^{}]*)\}|(\d+(?:\.\d+)?|[A-Za-z]|\\[A-Za-z]+))?")

# Commands that change how a thing looks, not what it is.
_LOOKS = re.compile(
    r"\\(?:left|right|[bB]igg?[lrm]?)(?![A-Za-z])\.?|\\(?:displaystyle|textstyle|limits|rm|bf|it)(?![A-Za-z])|\\!"
)
_SPACES = re.compile(r"(?<!\\)\\[,;:> ]|\\(?:q?quad|thinspace|enspace)(?![A-Za-z])|(?<!\\)~|\s+")
_TEXT = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|normal|up)?|mbox|hbox|math(?:rm|bf|it|sf|tt|normal)|operatorname\*?|boldsymbol|bm|emph)"
    r"\s*\{"
)
_REPLACED = [
    (re.compile(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\(?:leq|leqslant|leqq|le)(?![A-Za-z])|<=|=<"), r"\\le "),
    (re.compile(r"\\(?:geq|geqslant|geqq|ge)(?![A-Za-z])|>="), r"\\ge "),
    (re.compile(r"\\(?:neq|ne)(?![A-Za-z])|!="), r"\\ne "),
    (re.compile(r"\\lt(?![A-Za-z])"), "<"),
    (re.compile(r"\\gt(?![A-Za-z])"), ">"),
    (re.compile(r"\\(?:ldots|dots|cdots|dotsc|dotsb)(?![A-Za-z])"), "..."),
    (re.compile(r"\\(?:varnothing|emptyset)(?![A-Za-z])"), r"\\emptyset "),
    (re.compile(r"\\(?:lvert|rvert|vert|mid)(?![A-Za-z])"), "|"),
    (re.compile(r"\\lbrace(?![A-Za-z])"), r"\\{"),
    (re.compile(r"\\rbrace(?![A-Za-z])"), r"\\}"),
    (re.compile(r"\\l?brack(?![A-Za-z])"), "["),
    (re.compile(r"\\rbrack(?![A-Za-z])"), "]"),
    (re.compile(r"\\(?:R|reals)(?![A-Za-z])"), r"\\mathbb{R}"),
    (re.compile(r"\\(?:colon)(?![A-Za-z])"), ":"),
    (re.compile(r"\\(?:ast|star)(?![A-Za-z])|\*+"), r"\\cdot "),
    (re.compile(r"\\(?:degree|degrees)(?![A-Za-z])|\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ)"), r"\\text{degrees}"),
    (re.compile(r"\\%"), "%"),
    (re.compile(r"\\equiv(?![A-Za-z])"), "="),
    (re.compile(r"\\frac\s*\{\\text\{([^{}]*)\}\}\s*\{\\text\{([^{}]*)\}\}"), r"\\text{\1 per \2}"),
    (re.compile(r"(?<=\d)\s*(?:\\text\{\s*to\s*\}|\bto\b)\s*(?=\d)"), ":"),
    (re.compile(r"(?<![A-Za-z\\])(?:infinity|\+?inf|\+?\\infty)(?![A-Za-z])|\+\s*\\infty(?![A-Za-z])"), r"\\infty "),
    (re.compile(r"(?<![A-Za-z\\{])pi(?![A-Za-z])"), r"\\pi "),
    (re.compile(r"(?<![A-Za-z\\])\\?sqrt\s*\(([^()]*)\)"), r"\\sqrt{\1}"),
    (re.compile(r"(?<![A-Za-z\\])sqrt\s*(\{|\d+)"), r"\\sqrt\1"),
    (re.compile(r"(?<=\d) (?=\d{3}(?: \d{3})*(?![\d/]))"), ""),  # 10 000
    (re.compile(r"\\(sqrt)\s*(\d|[A-Za-z])"), r"\\\1{\2}"),
    (re.compile(r"\\(frac|binom)\s*(\d)\s*(\d)"), r"\\\1{\2}{\3}"),
    (re.compile(r"\\(frac|binom)\s*(\d|[A-Za-z]|\\pi)\s*\{"), r"\\\1{\2}{"),
    (re.compile(r"\\(frac)\s*(\{[^{}]*\})\s*(\d|[A-Za-z])"), r"\\\1\2{\3}"),
    (re.compile(r"([\^_])\s*(-?\d|[A-Za-z])"), r"\1{\2}"),
]  # fmt: skip
_MONEY = re.compile(r"(-?)(?:\\\$|(?<!\\)\$)\s*(-?(?:\d[\d,]*(?:\.\d+)?|\.\d+)|\\frac\{\d+\}\{\d+\})")
_CURRENCIES = {"€": "euros", "£": "gbp", "¥": "yen"}
_FOREIGN = re.compile(r"(-?)([€£¥])\s*(-?(?:\d[\d,]*(?:\.\d+)?|\.\d+))")
_SAID = re.compile(
    r"^\s*(?P<text>\\text\{\s*)?(?:(?:the|my|our)\s+)?(?:(?:final|correct|right)\s+)?answer\s*(?:is|:|=)\s*:?\s*(?(text)\})",
    re.IGNORECASE,
)
_MAX_ROUNDS = 8


class Box(NamedTuple):
    r"""Where a closed ``\boxed{}`` stands in its text: all of it, and what is in it."""

    start: int
    end: int
    inner_start: int
    inner_end: int

    def content(self, text: str) -> str:
        """What stands between the braces; `text` is the text the box was found in."""
        return text[self.inner_start : self.inner_end]


def boxes(text: str) -> list[Box] | None:
    r"""Every closed ``\boxed{}`` or ``\fbox{}``, in the order they end, inner ones too.

    None: the box that is opened last is never closed, so the answer is not there.
    """
    found: list[Box] = []
    opened: list[tuple[int, int] | None] = []  # of each open brace: where its box starts, where its content does
    last_opened = -1
    for match in _BOX.finditer(text):
        token = match[0]
        if token == "}":
            if opened and (box := opened.pop()) is not None:
                found.append(Box(box[0], match.end(), box[1], match.start()))
        elif match[1]:
            end = match.start(1) + len(match[1].rstrip(".,/"))
            found.append(Box(match.start(), end, match.start(1), end))
            last_opened = match.start()
        elif token.endswith("{") and "box" in token:
            opened.append((match.start(), match.end()))
            last_opened = match.start()
        elif token == "{":
            opened.append(None)
    if any(box is not None and box[0] == last_opened for box in opened):
        return None
    return found


def is_balanced(text: str) -> bool:
    """Does every brace have its partner? Escaped ones don't count."""
    depth = 0
    for match in re.finditer(r"\\.|[{}]", text, re.DOTALL):
        depth += (match[0] == "{") - (match[0] == "}")
        if depth < 0:
            return False
    return depth == 0


def normal_form(answer: str) -> str:
    """The answer without what only changes its looks: signs as LaTeX, spacing, delimiters, dialects of LaTeX."""
    text = _without_delimiters(_as_ascii(answer).strip())
    text = _LOOKS.sub("", text).replace("{,}", ",").replace("{:}", ":")
    text = _MONEY.sub(r"\1\2\\text{ dollars}", text)
    text = _FOREIGN.sub(lambda m: rf"{m[1]}{m[3]}\text{{ {_CURRENCIES[m[2]]}}}", text)
    text = text.replace("\\$", "").replace("$", "")
    text = _SPACES.sub(" ", text)
    text = _TEXT.sub(r"\\text{", text)
    text = _SAID.sub("", text)
    if whole := re.fullmatch(r"\\text\{([^{}]*)\}", text.strip(" .,;:")):
        text = whole[1]
    for pattern, replacement in _REPLACED:
        text = pattern.sub(replacement, text)
    return _trim(text)


def key(normal: str) -> str:
    """Equal for two answers in normal form that a person reads alike: case, blanks and quotes don't count."""
    text = normal
    for _ in range(_MAX_ROUNDS):
        inner = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text)
        if inner == text:
            break
        text = inner
    text = re.sub(r"^\s*(?:the|an?)\s+(?=[a-z]{2})", "", text.casefold())
    text = re.sub(r"(?<=\d)\s+(?=\d)", "_", text.strip())  # 1 1/2 is not 11/2
    text = re.sub(r"[\s\"'`]+", "", text).rstrip(".;:,")
    return _SYNONYMS.get(text, text)


_SYNONYMS = {
    **dict.fromkeys((r"\emptyset", r"\{\}", "emptyset", "nosolution", "nosolutions", "nullset"), r"\emptyset"),
    **dict.fromkeys(("dne", "doesnotexist", "undefined"), "undefined"),
    **dict.fromkeys(("allrealnumbers", "allreals", r"\mathbb{r}", r"(-\infty,\infty)"), r"\mathbb{r}"),
}


def _as_ascii(text: str) -> str:
    """Signs that LaTeX has a command for as that command, digits of other widths and scripts as ours."""
    if text.isascii():
        return text
    text = _ROOT.sub(_root, text)
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱ]+", lambda m: f"^{{{m[0].translate(_SUPERSCRIPTS)}}}", text)
    text = re.sub("[₀₁₂₃₄₅₆₇₈₉₊₋₍₎ₙᵢ]+", lambda m: f"_{{{m[0].translate(_SUBSCRIPTS)}}}", text)
    return "".join(character if character.isascii() else _sign(character) for character in text)


def _root(match: re.Match[str]) -> str:
    inner = next((group for group in match.groups()[1:] if group is not None), None)
    return _ROOTS[match[1]] + (f"{{{inner}}}" if inner is not None else " ")


def _sign(character: str) -> str:
    if character in _SYMBOLS:
        return _SYMBOLS[character]
    category = unicodedata.category(character)
    if category in ("Cf", "Mn"):  # zero-width characters, lines over digits
        return ""
    if category == "Zs":
        return " "
    plain = unicodedata.normalize("NFKC", character)
    if "⁄" in plain:  # a vulgar fraction
        top, _, bottom = plain.partition("⁄")
        return rf"\frac{{{top}}}{{{bottom}}}" if bottom else "1/"
    if category == "Nd":
        return str(unicodedata.digit(character))
    name = unicodedata.name(plain[:1], "")
    if name.startswith("GREEK") and "LETTER" in name and " WITH " not in name:
        letter = name.rpartition(" ")[2].lower()
        return rf"\{'lambda' if letter == 'lamda' else letter.capitalize() if 'CAPITAL' in name else letter} "
    return plain


def _without_delimiters(text: str) -> str:
    """Without `$…$`, `$$…$$`, `\\(…\\)`, `\\[…\\]`, `**…**`, back-ticks and boxes around all of it."""
    pairs = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"), ("`", "`"))
    for _ in range(_MAX_ROUNDS):
        before = text
        text = text.strip().rstrip(".,;:").strip() if not text.endswith("...") else text.strip()
        for opening, closing in pairs:
            inner = text[len(opening) : -len(closing)]
            is_wrapped = len(text) > len(opening) + len(closing) and text.startswith(opening) and text.endswith(closing)
            if is_wrapped and opening not in inner and not inner.endswith("\\"):
                text = inner
        found = boxes(text) if "box" in text else None
        if found:
            box = found[-1]
            text = text[: box.start] + box.content(text) + text[box.end :]
        if text == before:
            return text
    return text


def _trim(text: str) -> str:
    for _ in range(_MAX_ROUNDS):
        before = text
        text = re.sub(" {2,}", " ", text.strip())
        if not text.endswith("..."):
            text = text.rstrip(".;:,").strip()
        text = text.removeprefix("=").removeprefix(":").strip()
        if text.startswith("{") and text.endswith("}") and is_balanced(text[1:-1]):
            text = text[1:-1]
        if text == before:
            return text
    return text
