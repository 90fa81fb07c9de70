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


AS_A_PERSON_READS_B = [
    "B", "B.", "(B)", "**B**", "Answer: B", "answer is B", "The answer is (B).", "**Answer: B**", "**Answer:** B",
    "### Answer\nB", "Final answer: B", r"The final answer is $\boxed{B}$", r"\boxed{B}",
    r"$\boxed{\textbf{(B)}\ 42}$", r"\boxed{\mathrm{B}}", r"\boxed{(B)}", r"\boxed{B)}", r"\boxed{\text{(B)}}",
    r"\boxed{\textbf{B}}", "Therefore, option B is correct.", "Option B", "So the correct option is B) 42.",
    "The correct answer is option (B): 42", "I choose B.", "I would pick B", "My answer is B", "Hence, B.",
    "Thus the answer is: B", "The best answer is B because it fits.", "Correct answer: B. 42", "Correct choice: B",
    "Choice B is right", "B is the correct answer.", "B is correct", "(B) is the correct answer",
    "The right answer is B", "ANSWER: B", "answer: b", "Answer - B", "Answer = B", "The answer is: **B**",
    "The answer is **(B) 42**", "**The correct answer is B: 42.**", "<answer>B</answer>", "<answer> (B) </answer>",
    "Answer:\n\nB", "Answer:\n\n**B**", "The answer is\n\nB.",
    "Let me think. A is wrong. C is wrong. D is wrong. So B.", "A: no\nB: yes\nC: no\nTherefore B",
    "The answer is not A but B.", "The answer is not A, it is B.", "Not A. The answer is B.",
    "It can't be A, so the answer must be B.", "Final Answer: (B) 42", "The answer is 'B'.",
    "The answer is \"B\".", "The answer is [B].", "The answer is {B}.", "答案是B", "答案：B", "答案是 B。",
    "答案为（B）",
    "La respuesta es B.", "La réponse est B.", "Die Antwort ist B.", "Ответ: B", "So, the answer: B!",
    "The answer is B, not C.", "The answer is B (not C).", "B: 42", "B) 42", "B. 42", "Option B: 42",
    "The answer is B and not A.", "I think it's B", "It's B.", "It is B.", "Going with B.", "Final: B",
    "FINAL ANSWER: B", "Selected: B", "My final choice: B", "$B$", r"$\text{B}$", "`B`", "The answer is `B`.",
    "Final answer: **B**.", "The answer is option **B**", "{\"answer\": \"B\"}", "answer: \"B\"",
    "The correct option is **B. 42**", "the answer is B?", "After checking: Answer B", "Answer: Option B",
    "Answer is B", "Ans: B", "Ans. B", "Ans B", "(b)", "b)", "Answer: (b)", r"\boxed{b}", "#### B",
    "The correct answer is B.\n\nExplanation: A is wrong because ...", "Answer: B\nA is wrong as it is too small.",
    "**B**: because A and C fail.", "The answer is A. Wait, no. The answer is B.", "A\n\nWait, the answer is B.",
    "Answer: A\n\nCorrection: Answer: B", "The most appropriate answer is B", "The only correct statement is B",
    "Statement B is true", "Thus (B).", "Hence option B", "⟹ B", "=> B", "→ B", "Solution: B", "Result: B",
    "Conclusion: B", "B is the answer", "the answer would be B", "answer would thus be B",
    "The answer is therefore B", "The correct one is B", "The correct answer is letter B", "Letter B",
    "The letter is B.",
]  # fmt: skip
NO_LETTER = [
    "I don't know.", "A bit of thought is needed here.", "A and B are both possible.", "", "The answer is 42.",
    "I am not sure; it could be A or B.", "Because A > B we see this.", "The answer is C or D.", "E",
    "The answer is Z.", "<answer>B or C</answer>", "<answer>42</answer>", "So A and B hold.", "So be it.",
    "So A particle moves.", "The result: A bit of luck", "Final: all of them", "I have a\n", "Result: a",
    "So, in case B we have 3. Hence 4.", "Thus C is false.", "Conclusion: B is wrong", "Answer: b\nbecause",
]  # fmt: skip


@pytest.mark.parametrize("said", AS_A_PERSON_READS_B)
def test_forms_tried_at_random_are_read(said: str) -> None:
    assert chosen_letter(said, 4) == "B"


@pytest.mark.parametrize("said", NO_LETTER)
def test_what_names_no_letter(said: str) -> None:
    assert chosen_letter(said, 4) is None


@pytest.mark.parametrize(
    ("said", "letter"),
    [
        ("<answer>A</answer> hmm <answer>B</answer>", "B"),
        ("<answer>The answer is B</answer>", "B"),
        ("选B", "B"),
        ("故选：C", "C"),
        ("答案选 D", "D"),
        ("Therefore A", "A"),
        ("not A but rather B", "B"),
        ("a", "A"),
        ("therefore (C)", "C"),
        ("Ans C", "C"),
    ],
)
def test_of_two_forms_the_later_one(said: str, letter: str) -> None:
    assert chosen_letter(said, 4) == letter
