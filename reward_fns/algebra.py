"""Formulas read by latex2sympy2_extended and compared by sympy, in the guarded worker: the asking process bounds it.

Two formulas are equal if they are at fixed points, to 20 digits: a verdict is the same on every machine.
"""

import contextlib
import re
import zlib
from functools import lru_cache

import mpmath
import sympy
from latex2sympy2_extended import NormalizationConfig, latex2sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig

from reward_fns.kinds.formula import NAMES

AS_WRITTEN = NormalizationConfig(
    basic_latex=True, units=False, malformed_operators=True, nits=False, boxed="none", equations=False
)
CASES_DIFFER = ConversionConfig(lowercase_symbols=False)
WARM_UP = (
    "-3.5", "\\frac{1}{2}", "12\\frac{3}{5}", "2\\sqrt{3}+\\pi", "x^2-3x", "10^{-3}", "\\sin 30°", "\\binom{5}{2}",
    "2^{x}", "\\log_2 8", "\\sin 2t", "3+4i", "|x|", "f(x)", "x_{1}y_2", "n!", "\\sqrt[3]{7}", "xyz",
    "e^{-\\frac{t}{RC}}",
    "\\tan^{-1} x", "\\sum_{k=1}^{9} k", "\\int_0^1 x^2 dx", "\\lim_{x \\to 0} x", "\\infty", "\\ln (x+1)",
    "\\frac{\\sqrt{a}}{b}",
)  # fmt: skip
POINTS, DIGITS = 3, 30
NO_NUMBERS = (sympy.nan, sympy.zoo, sympy.oo, -sympy.oo)
WITHOUT_BACKSLASH = re.compile(rf"(?<![\\A-Za-z])({NAMES.pattern})(?![a-z]{{3}})")
# What latex2sympy2_extended reads in another way, or not at all.
INDEX, WHOLE = r"\{?([0-9]+)\}?", r"([^{}]*)"
REWRITTEN = (
    (r"(?<![A-Za-z\\])(?:oo|infinity|inf)(?![A-Za-z])", r"\\infty "),
    (r"\\lg(?![A-Za-z])", r"\\log_{10}"),
    (r"\\log(?![A-Za-z])(?!\s*_)", r"\\ln "),
    (r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
    (rf"\{{{WHOLE}\\over\s{WHOLE}\}}|^{WHOLE}\\over\s{WHOLE}$", r"\\frac{\1\3}{\2\4}"),
    (rf"\{{{WHOLE}\\choose\s{WHOLE}\}}|^{WHOLE}\\choose\s{WHOLE}$", r"\\binom{\1\3}{\2\4}"),
    (r"(?<![0-9.}])([0-9]+)\s*\\frac\s*\{([0-9]+)\}\s*\{([0-9]+)\}(?!\s*\^)", r"(\1+\\frac{\2}{\3})"),
    (r"((?:[A-Za-z0-9]+|\([^()]*\))!)(?=\s*\^)", r"{(\1)}"),
    (r"\(([0-9.]+)\)!", r"\1!"),
    (r"\{([A-Za-z])\}(?=\s*_)", r"\1"),
    (r"_\s*\{\s*\\([A-Za-z]+)\s*\}", r"_{\1}"),
    (r"\\(dot|ddot|hat|vec|bar|tilde)\s*\{?\s*([A-Za-z])\s*\}?(?:\s*_\s*\{?(\w+)\}?)?", r"\2_{\1\3}"),
    # dy/dx is a letter
    (r"\\frac\s*\{\s*d(?:\^\{?[0-9]\}?)?\s*([A-Za-z])\s*\}\s*\{\s*d\s*([A-Za-z])(?:\^\{?[0-9]\}?)?\s*\}", r"D_{\1\2}"),
    (r"\\binom\s*(\w)\s*(\w)", r"\\binom{\1}{\2}"),
    # C_{10}^3, C^3_{10}, {}_{10}C_3, C(10, 3)
    (rf"(?<![A-Za-z])C\s*\^\s*{INDEX}\s*_\s*{INDEX}", r"\\binom{\2}{\1}"),
    (rf"(?<![A-Za-z])C\s*_{INDEX}\s*\^\s*{INDEX}", r"\\binom{\1}{\2}"),
    (rf"(?:\{{\s*\}})?\s*[_^]\s*{INDEX}\s*C\s*_\s*{INDEX}", r"\\binom{\1}{\2}"),
    (r"(?<![A-Za-z])C\(([0-9]+)\s*,\s*([0-9]+)\)", r"\\binom{\1}{\2}"),
)
DEGREES = re.compile(r"(\([^()]*\)|[0-9.]+|\\?[A-Za-z]+)\s*°")
LETTERS = re.compile(r"(?<![\\A-Za-z])([A-Za-z]+)(_\{\w+\}|_\w)?")


def apart(run: re.Match, reserved: str) -> str:
    """A run of letters, with those renamed that the parser takes for a differential, e or i."""
    *letters, last = run[1]
    names = [f" X_{{{letter}}} " if letter in reserved else letter for letter in letters]
    if last in reserved or (run[2] and last in "ei"):
        return "".join(names) + f" X_{{{last}{(run[2] or '').strip('_{}')}}} "
    return "".join(names) + last + (run[2] or "")


@lru_cache(maxsize=4096)
def parse(text: str) -> sympy.Basic:
    """The formula in `text` (plain notation); raises what the parser raises, and ValueError for a set or a relation."""
    text = WITHOUT_BACKSLASH.sub(r"\\\1 ", text)
    for pattern, replacement in REWRITTEN:
        text = re.sub(pattern, replacement, text)
    reserved = "EI" if "\\int" in text else "dEI"
    text = LETTERS.sub(lambda run: apart(run, reserved), text)
    trigonometric = re.search(r"\\(?:sin|cos|tan|cot|sec|csc)", text)
    text = DEGREES.sub(r"(\1*\\frac{\\pi}{180})", text) if trigonometric else text.replace("°", "")
    parsed = latex2sympy(text, normalization_config=AS_WRITTEN, conversion_config=CASES_DIFFER)
    if not isinstance(parsed, sympy.Expr | sympy.MatrixBase):
        raise ValueError(text)
    constants = {"e": sympy.E, "i": sympy.I}
    parsed = parsed.replace(lambda e: e.is_Float, lambda e: sympy.Rational(str(e)))
    parsed = parsed.replace(sympy.acot, lambda x: sympy.pi / 2 - sympy.atan(x))
    return parsed.subs({s: constants[s.name] for s in parsed.free_symbols if s.name in constants}).doit()


def value(expression: sympy.Basic, point: int) -> sympy.Basic:
    """Where each symbol has a value that its name and the point give it."""
    sign = -1 if point == POINTS - 1 else 1
    chance = {
        s: sympy.Rational(sign + zlib.crc32(f"{s} {point}".encode()) % 9973 * sign, 3989)
        for s in expression.free_symbols
    }
    number = sympy.N(expression.subs(chance), DIGITS)
    if number.is_number and not number.has(sympy.Integral):
        return number
    return sympy.N(number.replace(sympy.Integral, quadrature))


def quadrature(function: sympy.Basic, *limits: sympy.Tuple) -> sympy.Basic:
    """The value of an integral by mpmath, where sympy leaves it standing."""
    integral = sympy.Integral(function, *limits)
    if len(limits) != 1 or len(limits[0]) != 3 or integral.free_symbols:
        return integral
    variable, *ends = limits[0]
    return sympy.Float(
        mpmath.quad(sympy.lambdify(variable, function, "mpmath"), [mpmath.mpf(float(end)) for end in ends]), 15
    )


def names(expression: sympy.Basic) -> set[str]:
    return {str(s) for s in expression.free_symbols}


def equal(gold: list[str], answer: list[str], factor: str, tolerance: float) -> bool:
    """Whether gold = factor · answer, or two equations (left, right) are one."""
    a, b = (parse(side[0]) - parse(side[1]) if len(side) == 2 else parse(side[0]) for side in (gold, answer))
    if isinstance(a, sympy.MatrixBase | sympy.MatrixExpr):
        return sympy.Matrix(a).shape == sympy.Matrix(b).shape and (sympy.Matrix(a) - sympy.Matrix(b)).is_zero_matrix
    b = b * sympy.Rational(factor)
    if a.has(sympy.nan, sympy.zoo) or b.has(sympy.nan, sympy.zoo):
        return False
    if a == b or (a.is_Rational and b.is_Rational):
        return a == b or (tolerance > 0 and abs(a - b) <= tolerance)
    if names(a) != names(b):
        a, b = sympy.simplify(a), sympy.simplify(b)
        if names(a) != names(b):
            return False
    ratios = []
    apart = 1e-11 if a.has(sympy.Integral) or b.has(sympy.Integral) else 1e-20  # quadrature
    for point in range(POINTS if a.free_symbols else 1):
        x, y = value(a, point), value(b, point)
        if not (x.is_number and y.is_number) or x.has(*NO_NUMBERS) or y.has(*NO_NUMBERS):
            return False
        if len(gold) == 2:
            ratios.append(x / y)
        elif abs(x - y) > max(tolerance, apart * max(abs(x), abs(y))):
            return False
    return all(abs(r - ratios[0]) <= 1e-20 * abs(ratios[0]) for r in ratios)


def defined(text: str) -> bool:
    """Whether a formula has a value; raises what the parser raises."""
    return not parse(text).has(sympy.nan, sympy.zoo)


def warm_up() -> None:
    """Fills the parser's tables and loads what sympy imports late, for every worker: a first comparison takes
    0.2 s, a second one 0.01 s."""
    for text in WARM_UP:
        with contextlib.suppress(Exception):  # whatever the parser does not read
            equal([text], ["3\\sqrt{2}"], "1", 0.0)
    parse.cache_clear()
