"""The letter a response chooses, in the forms people and models use."""

from __future__ import annotations

import time

import pytest

from vcppo.common.tasks.choices import chosen_letter

BOXES = [
    (r"\boxed{B. 42}", "B"),
    (r"\boxed{\text{B) 42}}", "B"),
    (r"\boxed{\text{Option B}}", "B"),
    (r"\boxed{**B**}", "B"),
    (r"The final answer is $\boxed{\textbf{(B)}\ 42}$", "B"),
    (r"\boxed{\mathbf{B}}", "B"),
    (r"\boxed{\mathrm{(C)}}", "C"),
    (r"\boxed{\text{(B) }42}", "B"),
    (r"\boxed{B: 42}", "B"),
    (r"\boxed{B 42}", "B"),
    (r"\boxed{(B) 42}", "B"),
    (r"\boxed{b}", "B"),
    (r"\boxed{\text{Answer: B}}", "B"),
    (r"\boxed{42}", None),
    (r"\boxed{A}, no: \boxed{B}", "B"),
    (r"\boxed{B} \boxed{}", "B"),
    (r"\boxed{\text{A particle}}", None),
    (r"\boxed{A, C}", None),
    (r"\boxed{E}", None),
    (r"\boxed{A \text{ and } C}", None),
    (r"\boxed{42} so the answer is B.", "B"),
    (r"\boxed{\text{B}}. It has A too", "B"),
    (r"The answer is \(\boxed{B}\)", "B"),
    ("Final Answer: The final answer is $\\boxed{C}$. I hope it is correct.", "C"),
]
SENTENCES = [
    ("The answer is $B$", "B"),
    ("The answer should be B.", "B"),
    ("The correct choice is (B).", "B"),
    ("ANSWER: B", "B"),
    ("The answer is A bit surprising: it is B.", "B"),
    ("The answer is A.", "A"),
    ("The answer is A because of it", "A"),
    ("The answer is A particle.", None),
    ("Answer: (b)", "B"),
    ("answer: B) 42", "B"),
    ("I choose B.", "B"),
    ("We pick option (C)", "C"),
    ("Option B is correct.", "B"),
    ("B is the correct answer.", "B"),
    ("(B) is correct", "B"),
    ("Option A is wrong, so option C is right.", "C"),
    ("The answer is B or C", None),
    ("It's B.", "B"),
    ("It must be D.", "D"),
    ("The answer is (B) and (C).", None),
    ("The answer is not B.", None),
    ("The answer is not B, it is C.", "C"),
    ("The answer cannot be B", None),
    ("The answer is:\n**(C)** 42", "C"),
    ("Answer: **B.** 42", "B"),
    ("My choice: D", "D"),
    ("The best option is D", "D"),
    ("The correct answer would be C.", "C"),
    ("So I go with B.", "B"),
    ("Answer - B", "B"),
    ("Thus the right answer must be (A)", "A"),
    ("the answer is therefore B", "B"),
    ("The answer is option C", "C"),
    ("Correct option: B", "B"),
    ("Answer B", "B"),
    ("The answer to the question is C.", "C"),
    ('Answer: "B"', "B"),
    ("Hence B is true but A is the correct answer.", "A"),
    ("The answer is (D), not (A).", "D"),
    ("Answer: [B]", "B"),
    ("The answer is \\text{B}", "B"),
    ("The answer is \\(B\\).", "B"),
    ("The Answer Is B", "B"),
    ("answer: `B`", "B"),
    ("answer is B.\n\nA is wrong because it is a.", "B"),
    ("A\n\nB\n\nThe answer: A", "A"),
    ("Answer: E", None),
    ("The answer is DNA", None),
    ("The answer is B12", None),
    ("The answer is C++", None),
    ("The answer is Ⓑ", "B"),
    ("The answer is I think B.", None),
    ("I think it is hard. A lot of work.", None),
    ("In case B the answer is 5.", None),
]
LINES = [
    ("Ｂ", "B"),
    ("**B**", "B"),
    ("$B$", "B"),
    ("Therefore, the answer is:\n\nB", "B"),
    ("B) 2 MeV", "B"),
    ("Choice D", "D"),
    ("A) 1\nB) 2\nC) 3", None),
    ("Option: D", "D"),
    ("**Final Answer**\n\nB", "B"),
    ("I am sure. I", None),
]


@pytest.mark.parametrize(("said", "letter"), [*BOXES, *SENTENCES, *LINES])
def test_as_a_person_reads_it(said: str, letter: str | None) -> None:
    assert chosen_letter(said, 4) == letter


def test_only_the_letters_there_are() -> None:
    assert chosen_letter("The answer is E", 5) == "E"
    assert chosen_letter("The answer is E", 4) is None


@pytest.mark.parametrize(
    "piece",
    ["answer is ", "(", "\\text{", "A ", "\\boxed{", "answer to ", "it is ", " ", "\n", "**", "A or ", "option "],
)
def test_time_is_bounded(piece: str) -> None:
    began = time.process_time()
    chosen_letter(piece * 100_000, 4)
    assert time.process_time() - began < 20
