"""Words: which take an answer back, which announce it, which count, and what is a word at all."""

import re
from functools import lru_cache

# An answer with one of these states something else than its value, or leaves it open.
HEDGES = {
    "not", "isn", "aren", "wasn", "don", "doesn", "didn", "cannot", "either", "neither", "nor", "none", "never",
    "maybe", "perhaps", "possibly", "probably", "might", "between", "unknown", "unclear", "unsure", "guess", "except",
    "unless", "without", "but", "undetermined", "undecided", "something", "anything", "versus", "vs", "instead",
    "rather", "wrong", "incorrect", "impossible", "alternatively", "otherwise", "about", "approximately", "almost",
    "nearly", "ish", "around", "roughly", "circa", "estimated",
}  # fmt: skip
_BOUND = re.compile(
    r"(?<!\\)\bapprox\b|\b(?:more|less|fewer|greater|larger|smaller|higher|lower) than [^a-z]|\bat (?:least|most)\b"
    r"|[0-9]ish\b",
    re.I,
)
TIMES = {
    "hundred": 100, "thousand": 1000, "thousands": 1000, "million": 10**6, "millions": 10**6, "billion": 10**9,
    "trillion": 10**12, "dozen": 12, "lakh": 10**5, "crore": 10**7, "k": 1000, "permille": "0.001",
}  # fmt: skip
_NUMERALS = {
    "zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9,
    "ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14, "fifteen": 15, "sixteen": 16,
    "seventeen": 17, "eighteen": 18, "nineteen": 19, "twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60,
    "seventy": 70, "eighty": 80, "ninety": 90,
}  # fmt: skip
_NUMERAL = "|".join(_NUMERALS)
BASES = {**_NUMERALS, "binary": 2, "ternary": 3, "octal": 8, "decimal": 10, "hexadecimal": 16, "hex": 16}
_COUNT = re.compile(
    rf"((?:.{{0,60}}\b(?:is|are|be)\s)?\s*)({_NUMERAL})(?:[ -]({_NUMERAL}))?(?![A-Za-z-])(?:\s*\([0-9]+\)$)?", re.I
)
# Therefore we get; so the answer is; ... as the solution.
_PHRASES = re.compile(
    r"^(?:(?:so|thus|hence|therefore|finally|then)\b,?\s+)?"
    r"(?:(?:we|i|you)\s+(?:find|get|have|obtain|conclude|see|know|count)\b(?:\s+that\b)?:?\s*)?"
    r"(?:(?:the |my |our )?(?:final |correct )?(?:answer|ans|result|solution)\s*(?::|is:?)\s*)?(?=\S)"
    r"|\s+(?:is|as)\s+(?:the|our|my)\s+(?:final |correct )?(?:solution|answer|result)\.?$",
    re.I,
)
_WORD = re.compile(r"[A-Za-z]+")
_SHORT = {
    "no", "up", "on", "in", "yes", "all", "odd", "even", "left", "north", "south", "east", "west", "top", "red",
    "blue", "six", "ten", "one", "two", "any", "bag", "box", "can", "car", "cat", "jar", "man", "map", "pan", "way",
}  # fmt: skip
_LETTERS = re.compile(r"[A-Za-z][A-Za-z .,'’/-]*[.!]?")
_NAMES = re.compile(
    r"(?:arc)?(?:sin|cos|tan|cot|sec|csc)h?|log|ln|lg|exp|pi|sqrt|infty|infinity|max|min|gcd|lcm|mod|oo"
)


def hedged(text: str) -> bool:
    return not HEDGES.isdisjoint(_WORD.findall(text.lower())) or _BOUND.search(text) is not None


@lru_cache(maxsize=4096)
def is_word(run: str) -> bool:
    """Whether a run of letters is a word, and no product of symbols and no function."""
    low = run.lower()
    if low in _SHORT:
        return True
    if len(run) < 3 or _NAMES.fullmatch(low) or not (run.islower() or run.istitle() or len(run) > 4):
        return False
    return any(c in "aeiouy" for c in low) if len(run) > 3 else any(c in "eiou" for c in low)


def is_text(text: str) -> bool:
    """Whether an answer is words and nothing else."""
    found = _WORD.findall(text)
    if len(found) == 1 and len(text) < 4 and text.islower() and text not in _SHORT:
        return False  # a product of letters: bde
    return _LETTERS.fullmatch(text) is not None and any(map(is_word, found))


def with_digits(text: str) -> str:
    """`There are twenty-one chairs` is `There are 21 chairs`."""
    if (match := _COUNT.match(text)) is None:
        return text
    tens, ones = _NUMERALS[match[2].lower()], _NUMERALS[match[3].lower()] if match[3] else 0
    return f"{match[1]}{tens + ones}{text[match.end() :]}" if not match[3] or (tens >= 20 and 0 < ones < 10) else text


def without_phrases(text: str) -> str:
    """Without what leads to an answer and out of it: `therefore we get x > 5 as the solution`."""
    return _PHRASES.sub("", text)


def normal(text: str) -> str:
    """Words for comparison: case, articles, hyphens, emphasis and final punctuation make no difference."""
    text = re.sub(r"(?<=\w)-(?=\w)|[\s_*`\"“”{}]+", " ", text.casefold()).strip(" .,!?;:'()[]$")
    return re.sub(r"^(?:the|an?)\s+", "", text).strip()
