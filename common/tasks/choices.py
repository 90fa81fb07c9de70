r"""Reading the chosen letter out of a response to a multiple-choice question.

From the surest form to the loosest; within a form the last one counts: models restate the options before they choose.

1. The last box with a letter: ``\boxed{B}``, ``\boxed{\text{(B) }42}``, ``\boxed{Option B}``, ``\boxed{b}``; then the
   last ``<answer>B</answer>``.
2. A sentence: "the answer is (B)", "Answer: **B**", "the correct choice should be B", "Option B is correct",
   "Hence, B.", 答案是B.
3. A line with nothing but a letter, or a last line such as "B) 42".

"A" before a word is an article ("A bit surprising"). Two letters ("B or C", ``\boxed{A, C}``) choose nothing.
"""

from __future__ import annotations

import re
import unicodedata

from vcppo.common.tasks.maths.text import boxes

LETTERS = "ABCDEFGHIJ"
_MAX_TAIL = 20_000  # characters that are searched, from the end
_MAX_BOX = 500
_ROUNDS = 3

_WRAPPER = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|normal)?|math(?:bf|rm|it|sf|tt)|mbox|bf|rm|bm|boldsymbol|emph|underline|operatorname)"
    r"\s*\{([^{}]*)\}"
)
_MARKS = re.compile(r"\*+|__|`|\$|\\[()\[\],;:! ]|(?<!\\)~|\\(?:left|right|quad|bf|rm)(?![A-Za-z])|[{}<>\"“”]")

# What may stand between the word and the letter: "answer is: option (B)".
_LEAD = r"[\s:=\-–—]{0,6}(?:(?:the\s+)?(?:option|choice|answer|letter)s?\s*:?\s*)?"
_LETTER = r"(?:\(\s*(?P<{0}p>[A-Ja-j])\s*\)|\[\s*(?P<{0}s>[A-Ja-j])\s*\]|(?P<{0}b>[A-J])(?![A-Za-z0-9'’+#]))"
# "A bit": an article. After A and I only these words, a sign or the end may follow.
_REASONS = r"because|since|as|for|and|but|or|with|due|given|which|from|by|not|is|,|if|so|rather|instead"
_NO_ARTICLE = rf"(?<![AI])|(?=\s*(?:[.,;:!?)\]/&+-]|$|\n|(?:{_REASONS})\b))"
_VERB = (
    r"(?:is|was|are|be|becomes|remains|equals|seems\s+to\s+be"
    r"|(?:must|should|would|will|has\s+to)(?:\s+(?:thus|therefore|then|hence|probably|likely))?\s+be)"
)
_ADVERB = r"(?:\s+(?:therefore|thus|then|hence|clearly|indeed|simply|likely|probably|actually|definitely|still|now))?"

_NOT_DENIED = r"(?!\)?\s*(?i:is|was|can|must|has|would)\b)"


def _form(before: str, after: str = "") -> re.Pattern[str]:
    return re.compile(rf"{before}{_LETTER.format('x')}(?:{_NO_ARTICLE}){after}", re.MULTILINE)


_SENTENCES = (
    # the answer is B; final answer: B; the correct choice should be (B); Answer B
    _form(
        r"(?i:\b(?:answers?|options?|choices?|solution|statement|selection|letter|(?:correct|right|best)\s+one)\b)"
        rf"(?:\s+(?i:to|for)\s+[^.:\n]{{1,60}}?)?(?i:\s*(?::|=|\s[-–—]\s|{_ADVERB}\s*{_VERB}{_ADVERB}))(?i:{_LEAD})"
    ),
    _form(r"(?i:\banswer)\s+(?i:option\s+|choice\s+)?"),
    # Ans: B; Ans. B; Final: B; Result: B; Selected: B
    _form(rf"(?i:\b(?:ans\.?\s*[:=]?|(?:final|result|conclusion|selected)\s*[:=]))(?i:{_LEAD})", _NOT_DENIED),
    # not A but B
    _form(rf"(?i:\bnot)\s+\(?[A-J]\)?,?\s+(?i:but(?:\s+rather)?)(?i:{_LEAD})"),
    # Hence, B. So option B: and nothing behind it in its line
    _form(
        rf"(?i:(?:^|(?<=[.!?;,:])\s|\s)\b(?:hence|so|thus|therefore|consequently))\s*[,:]?(?i:{_LEAD})",
        r"(?=\)?\s*[.!]?[ \t]*$)",
    ),
    # The same in other languages; full-width signs are plain ones by now.
    _form(
        r"(?i:(?:答案|正解|答え|정답)\s*(?:应该|應該)?\s*(?:是|为|為|选|選|は|은)?|(?:故|应|應|所以|因此)?\s*(?:选择|選擇|选|選)"
        r"|\b(?:respuesta|opción)(?:\s+\w{1,12})?\s+es|\bréponse(?:\s+\w{1,12})?\s+est|\bantwort(?:\s+\w{1,12})?\s+(?:ist|lautet)"
        r"|\brisposta(?:\s+\w{1,12})?\s+è|\bresposta(?:\s+\w{1,12})?\s+é|\b(?:ответ|antwort|respuesta|réponse|risposta|resposta)(?=\s*:))"
        r"\s*:?\s*"
    ),
    # I choose B; we pick option (B); go with B; select B
    _form(r"(?i:\b(?:choose|chose|pick|picked|select|selected|go(?:ing)?\s+with|opt\s+for))(?i:\s+)(?i:" + _LEAD + ")"),
    # it is B; it must be (B); that leaves B
    _form(rf"(?i:\b(?:it|this|that)(?:\s*['’]s|\s+{_VERB}|\s+leaves))(?i:{_LEAD})\s+?", r"(?=\s*(?:[.,;!?]|$))"),
    # B is correct; option (B) is the right answer
    _form(
        r"(?i:\b(?:option|choice|answer)\s+)?(?<![A-Za-z'’])",
        r"(?i:\s*(?:is|must\s+be|would\s+be|seems)\s+(?:clearly\s+|indeed\s+|therefore\s+)?(?:(?:the\s+)?(?:only\s+)?"
        r"(?:correct|right|best|true)|(?:the|my)\s+(?:final\s+)?(?:answer|choice))\b)",
    ),
)
_HEDGED = re.compile(r"\)?\s*(?:or|and|/|&)\s*(?:option\s+)?\(?[A-J]\b(?!\w)")
_ALONE = re.compile(
    r"^[^\w\n]*(?:(?i:option|choice|answer|letter)[ \t]*:?[ \t]*)?\(?([A-J])\)?[ \t.):,!]*$", re.MULTILINE
)
_LISTED = re.compile(r"^\W*(?:(?i:option|choice)\s+)?\(?([A-J])(?:\)|\.|:)\s+\S")
# A small letter counts where there is hardly anything else: all of the text, or behind "answer:" to the end of it.
_SMALL = re.compile(r"\s*\(?([a-j])\)?[.)]?\s*\Z|.*\b(?i:answer)\s*[:=]\s*\(?([a-j])\)?[.)]?\s*\Z", re.DOTALL)
_TAG = re.compile(r"<answer>(?P<content>[^<]{1,500})</answer>", re.IGNORECASE)
_QUOTED = re.compile(r"(?<!\w)['‘’]([A-Ja-j])['‘’](?!\w)")
_IN_BOX = re.compile(
    r"\s*(?:(?i:the\s+)?(?i:final\s+|correct\s+|best\s+)?(?i:option|choice|answer|letter)s?\s*(?i:is)?\s*:?\s*)?"
    r"(?:\(\s*(?P<p>[A-Ja-j])\s*\)|\[\s*(?P<s>[A-Ja-j])\s*\]|(?P<b>[A-Ja-j])(?![A-Za-z0-9]))\s*(?P<rest>.*)\Z",
    re.DOTALL,
)
_REST = re.compile(r"\Z|[.):,;\-–—=]|(?i:is|because|since)\b")
_SECOND = re.compile(r"\s*(?:,|;|/|&|(?i:and|or)\b)\s*\(?\s*[A-Ja-j]\s*\)?\s*(?:\Z|[,;/&]|(?i:and|or)\b)")


def chosen_letter(text: str, num_choices: int) -> str | None:
    """The letter the text ends up with, of the first `num_choices`; None if it names none, or two at once."""
    allowed = LETTERS[:num_choices]
    text = unicodedata.normalize("NFKC", text[-_MAX_TAIL:])
    in_boxes = [box.content(text) for box in boxes(text) or [] if box.inner_end - box.inner_start <= _MAX_BOX]
    for content in reversed(in_boxes):
        plain = _plain(content)
        letter, is_single = _in_box(plain)
        if letter is not None and not is_single:
            return None
        if letter is not None and letter in allowed:
            return letter
    if tags := _TAG.findall(text):
        plain = _plain(tags[-1])
        letter, is_single = _in_box(plain)
        letter = letter or _loosely(plain, allowed)
        if letter is not None and letter in allowed:
            return letter if is_single else None
    return _loosely(_plain(_TAG.sub(r"\g<content>", text)), allowed)


def _loosely(plain: str, allowed: str) -> str | None:
    """In the sentences and lines of a text without marks."""
    found = _in_sentences(plain, allowed) or _in_lines(plain, allowed)
    small = _SMALL.match(plain) if found is None else None
    letter = found if small is None else (small[1] or small[2]).upper()
    return letter if letter is not None and letter in allowed else None


def _plain(text: str) -> str:
    """Without LaTeX's and Markdown's ways of setting a letter."""
    for _ in range(_ROUNDS):
        text = _WRAPPER.sub(r"\1", text)
    return _QUOTED.sub(r"\1", _MARKS.sub("", text))


def _in_box(content: str) -> tuple[str | None, bool]:
    """The letter in a box, and whether it is the only one."""
    match = _IN_BOX.match(content)
    if match is None:
        return None, True
    letter = (match["p"] or match["s"] or match["b"]).upper()
    if _SECOND.match(match["rest"]):
        return letter, False
    is_apart = match["b"] is None or (_REST.match(match["rest"]) is not None)
    # "B 42" is a letter and its option; "A particle" is not.
    return (letter if is_apart or (match["b"] in "BCDEFGHJ" and match["rest"][:1].isdigit()) else None), True


def _in_sentences(text: str, allowed: str) -> str | None:
    best: tuple[int, str | None] = (-1, None)
    for form in _SENTENCES:
        for match in form.finditer(text):
            letter = (match["xp"] or match["xs"] or match["xb"]).upper()
            at = match.end("xp") if match["xp"] else match.end("xs") if match["xs"] else match.end("xb")
            if letter in allowed and at > best[0]:
                best = at, None if _HEDGED.match(text, at) else letter
    return best[1]


def _in_lines(text: str, allowed: str) -> str | None:
    alone = [letter for letter in _ALONE.findall(text) if letter in allowed]
    if alone:
        return str(alone[-1])
    lines = [line for line in text.splitlines() if line.strip()]
    listed = [match[1] for line in lines if (match := _LISTED.match(line)) is not None]
    is_last = bool(lines) and _LISTED.match(lines[-1]) is not None
    return listed[0] if is_last and len(listed) == 1 and listed[0] in allowed else None
