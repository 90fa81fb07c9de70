"""Graded rewards: parts by name, the rule that adds them up, and functions of the user's module. Docs: docs/rewards.md.

    reward_parts.py      which names and numbers a part may have
    reward_rule.py       base + weighted parts + shaping: the one place where they become one number. Pure
    reward_functions.py  functions of the user's module, by name

The verifier's child gives a base and parts. The generator scores them by the rule. The buffer scores again what
arrives and refuses another number.
"""
