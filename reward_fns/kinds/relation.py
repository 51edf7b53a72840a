"""Relations: x = 5 is a value with a name, a < x ≤ b an interval, y - 2x = 3 an equation, 5 ≈ 5.0 a rounded value."""

import re
from dataclasses import replace

from reward_fns import guard, words
from reward_fns.grammar import RELATION, mark, outside, split, trimmed
from reward_fns.kinds import UNKNOWN, Answer, number
from reward_fns.kinds.formula import letters, written

KINDS = ("equation", "approximation")
SYMBOL = r"(?:\\(?:dot|vec|hat|bar|overline)\s*)?\{?\\?[A-Za-z]+\}?'*\s*(?:_\s*(?:\{[^{}]*\}|\\?\w+))?'*"
NAME = re.compile(
    rf"{SYMBOL}(?:\s*\^\s*\{{?\s*-1\s*\}}?)?(?:\s*\(\s*[\w\\,\s+-]{{1,30}}\))?|\|\s*(?:[A-Z]{{2}}|{SYMBOL})\s*\|"
    rf"|(?:m\s*)?\\(?:angle|triangle)[^=]{{1,20}}"
    rf"|\(\s*{SYMBOL}(?:\s*[,;]\s*{SYMBOL})+\)|{SYMBOL}\s*[:/]\s*{SYMBOL}"
    rf"|\\frac\s*\{{\s*[A-Z]{{2}}\s*\}}\s*\{{\s*[A-Z]{{2}}\s*\}}"
    r"|[A-Za-z][a-z]+(?: (?:[A-Za-z]+|[0-9])){0,6}|\\?(?:sin|cos|tan|cot)\s*(?:\\angle\s*)?[A-Z]{1,3}"
)
VARIABLE = re.compile(r"\\?[A-Za-z]+'?(?:_(?:\{\w+\}|\w))?(?:\([a-z]\))?")
FUNCTION = re.compile(r"\\?[A-Za-z]+\s*\(\s*([a-z])\s*\)")
FLIPPED = {"<": ">", ">": "<", "\\leq": "\\geq", "\\geq": "\\leq"}
SPELLED = {"!=": "\\neq", "<=": "\\leq", ">=": "\\geq", "==": "="}
ARROW = re.compile(r"\\(?:implies|to|iff)(?![A-Za-z])")


def is_name(side: str, pattern: re.Pattern = NAME) -> bool:
    """One letter, capitals or a word, but no product of letters."""
    bare = re.sub(r"_\s*(?:\{[^{}]*\}|\\?\w+)|\\[A-Za-z]+|^(?:sin|cos|tan|cot)(?= [A-Z])", "", side)
    runs = re.findall("[A-Za-z]+", bare if bare.startswith("(") else re.sub(r"\([^()]*\)", "", bare))
    return pattern.fullmatch(side) is not None and all(len(r) == 1 or r.isupper() or words.is_word(r) for r in runs)


def read(text: str, inner) -> Answer | None:
    if mark(text) != "relation":
        return None
    signs, sides = [SPELLED.get(m[0], m[0]) for m in outside(text, RELATION)], split(text, RELATION)
    if arrow := list(outside(text, ARROW)):  # the last conclusion; `5 \\iff 6` concludes nothing
        before = trimmed(text[: arrow[-1].start()])
        return inner(trimmed(text[arrow[-1].end() :])) if mark(before) == "relation" or is_name(before) else UNKNOWN
    if "\\approx" in signs:
        return approximation(text, inner)
    if not all(sides):
        return inner(sides[1]) if signs == ["="] and sides[1] else UNKNOWN
    if signs == ["\\in"]:
        return replace(inner(sides[1]), name=sides[0])
    return equation(sides, inner) if set(signs) <= {"=", "\\equiv"} else interval(sides, signs, inner)


def approximation(text: str, inner) -> Answer:
    """parts: the value, and its rounding. `\\approx 3.14` and `x \\approx 3.14` are values."""
    left, right = (trimmed(side) for side in text.split("\\approx", 1))
    if mark(left) == "relation":
        return inner(left)  # x = 1/3 \\approx 0.33
    if not left or is_name(left, VARIABLE):
        return replace(inner(right), name=left)
    exact, rounded = inner(left), inner(right)
    if exact.kind not in ("number", "formula") or rounded.kind != "number":
        return UNKNOWN
    return replace(exact, kind="approximation", parts=(exact, rounded))


def equation(sides: list[str], inner) -> Answer:
    """The last value of x = 2 + 3 = 5, with its name; the sides of an equation between formulas."""
    first, last = sides[0], sides[-1]
    if is_name(first) and first not in letters(last):  # N = 5N names nothing
        return replace(inner(last), name=first)
    if len(sides) == 2 and is_name(last) and not words.is_text(first):
        return replace(inner(first), name=last)
    if not any(map(letters, sides)):  # 2 + 3 = 5, if it is
        values = tuple(map(inner, sides))
        return replace(values[-1], kind="approximation", parts=values)
    if len(sides) == 2:
        return Answer("equation", tuple(sides))
    named = [side for side in sides[:-1] if is_name(side, VARIABLE)]
    return replace(inner(last), name=named[-1]) if named and not letters(last) else UNKNOWN


def interval(sides: list[str], signs: list[str], inner) -> Answer:
    if len(signs) == 1 and any(side.startswith("-") and is_name(side[1:], VARIABLE) for side in sides):  # -x > 5
        sides = [side[1:] if side.startswith("-") else f"-({side})" for side in sides]
        signs = [FLIPPED.get(signs[0], signs[0])]
    middle = 1 if len(signs) == 2 else 0 if is_name(sides[0], VARIABLE) else 1
    if len(signs) > 2 or not is_name(sides[middle], VARIABLE) or not set(signs) <= FLIPPED.keys():
        return Answer("equation", (*sides, *signs))
    low, high = ("(", "-\\infty"), (")", "\\infty")
    for position, sign in enumerate(signs):
        sign, end = (FLIPPED[sign], sides[0]) if position + 1 == middle else (sign, sides[position + 1])
        if sign in (">", "\\geq"):
            low = ("(" if sign == ">" else "[", end)
        else:
            high = (")" if sign == "<" else "]", end)
    return Answer("tuple", ((low[0], high[0]), inner(low[1]), inner(high[1])), name=sides[middle])


# ---- comparison


def names_differ(gold: Answer, answer: Answer) -> bool:
    """x and y do, r and the radius do not."""
    a, b = (re.sub(r"[\s{}]", "", x.name).casefold() for x in (gold, answer))
    return len(a) == len(b) == 1 and a != b


def same_argument(gold: Answer, answer: Answer, compare) -> Answer:
    """f(t) = t^2, as a function of the gold answer's argument."""
    wanted, given = FUNCTION.fullmatch(gold.name), FUNCTION.fullmatch(answer.name)
    if not wanted or not given or wanted[1] == given[1] or answer.kind != "formula":
        return answer
    exchanged = {given[1]: wanted[1], wanted[1]: given[1]}
    single = r"(?<![A-Za-z\\])[a-z](?![A-Za-z])"
    renamed = re.sub(single, lambda letter: exchanged.get(letter[0], letter[0]), answer.parts[0])
    return replace(compare.read(renamed), name=gold.name)


def view(answer: Answer, compare) -> Answer | None:
    """A named value as the equation that it stands for."""
    value = answer.name and answer.kind in ("number", "formula")
    return Answer("equation", (answer.name, written(answer)), answer.text) if value else None


def same(gold: Answer, answer: Answer, compare) -> bool:
    if not gold.parts[2:] and not answer.parts[2:]:
        return guard.equal(gold.parts, answer.parts, timeout=compare.timeout)
    # x + y < 5: side by side
    return gold.parts[2:] == answer.parts[2:] and all(map(compare.formulas, gold.parts[:2], answer.parts[:2]))


def holds(answer: Answer, compare) -> Answer | None:
    """The value of an approximation or a chain, if it is true."""
    *exact, last = answer.parts
    for value in exact:
        close = value.kind == last.kind == "number" and number.equal(value.parts, last.parts, 1)
        if not close and not compare(value, last):
            return None
    return replace(exact[0], name=answer.name)
