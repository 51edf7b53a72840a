"""Format rewards: 1 if the text has the shape that the prompt asks for, else 0. Each tag counts exactly once."""

import re
from collections.abc import Callable

_TAGS = ("<think>", "</think>", "<answer>", "</answer>")


def _shaped(text: str, pattern: str) -> bool:
    text = text.strip()
    return all(text.count(tag) == 1 for tag in _TAGS) and re.fullmatch(pattern, text, re.DOTALL) is not None


def think_line(text: str) -> bool:
    """T1: the closing think tag stands on a line of its own exactly once; nothing else is asked."""
    return text.count("\n</think>\n") == 1


def think_answer_lines(text: str) -> bool:
    """General text: a think block, then an answer block, tags on their own lines."""
    return _shaped(text, r"<think>(?=\n).*\n</think>\n<answer>(?=\n).*\n</answer>")


def think_answer(text: str) -> bool:
    """Vision: the same blocks, with any white space between them."""
    return _shaped(text, r"<think>.*</think>\s*<answer>.*</answer>")


def think_answer_opened(text: str) -> bool:
    """T4: the prompt ends with the opening think tag."""
    return think_answer("<think>" + text)


STYLES: dict[str, Callable[[str], bool]] = {
    f.__name__: f for f in (think_line, think_answer_lines, think_answer, think_answer_opened)
}
