"""Formulas in plain notation, read and compared by value: exactly where they are rational, else at a few points.

    same(parse("\\frac{1}{x}+1"), parse("(x+1)/x"))  ->  True

Small on purpose: arithmetic, powers, roots, elementary functions, unknown functions. Time is bounded by the text's
length, numbers by MOST_BITS. What it does not know (series, limits, numbers out of a float's range) is Beyond, and
left to the guarded verifier; what is no formula is Malformed. The points are fixed: a verdict is the same on every
machine.
"""

from __future__ import annotations

import cmath
import math
import re
import zlib
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from reward_fns.notation import GREEK

DEEPEST = 60
# Tokens of one product: trees as deep as that are still within Python's recursion.
MOST_TOKENS = 600
MOST_BARS = 8
MOST_BITS = 1 << 16
# Relative differences: rounding of floats stays far below EQUAL, distinct answers lie far above APART.
EQUAL, APART = 1e-11, 1e-8
# The point at which symbols have either sign.
SIGNS = 2
# A decimal stands for a value that it is the rounding of, if it has so many digits.
MOST_ROUNDED = 6


class Malformed(ValueError):
    """Not a formula."""


class Beyond(ValueError):
    """A formula that is not computed here."""


class Undefined(ArithmeticError):
    """No value at this point: a division by zero."""


class Number(NamedTuple):
    value: Fraction
    decimals: int | None  # digits after the point; None for whole numbers and fractions


class Node(NamedTuple):
    """A function and its arguments; a symbol is a function of nothing."""

    name: str
    arguments: tuple


_FUNCTIONS = {
    "sin": cmath.sin, "cos": cmath.cos, "tan": cmath.tan, "sinh": cmath.sinh, "cosh": cmath.cosh, "tanh": cmath.tanh,
    "arcsin": cmath.asin, "arccos": cmath.acos, "arctan": cmath.atan, "exp": cmath.exp, "ln": cmath.log,
    "log": cmath.log, "lg": cmath.log10, "asin": cmath.asin, "acos": cmath.acos, "atan": cmath.atan,
    "cot": lambda x: 1 / cmath.tan(x), "sec": lambda x: 1 / cmath.cos(x), "csc": lambda x: 1 / cmath.sin(x),
}  # fmt: skip
_TRIGONOMETRIC = {"sin", "cos", "tan", "cot", "sec", "csc"}
_INVERSE = {"sin": "arcsin", "cos": "arccos", "tan": "arctan"}
_MANY = {"min": min, "max": max, "gcd": math.gcd, "lcm": math.lcm}
_BEYOND = {"iint", "oint", "sum", "prod", "lim", "limsup", "liminf", "sup", "inf", "begin", "mod", "pmod",
           "bmod", "setminus", "partial", "nabla", "det", "Re", "Im", "arg", "forall", "exists", "mathbb", "mathcal",
           "cap", "subset", "notin", "operatorname", "overrightarrow", "iff", "equiv", "sim", "perp"}  # fmt: skip
_ACCENTS = {"dot", "ddot", "hat", "vec", "bar", "tilde", "overline", "widehat", "mathring", "overrightarrow"}
_CLOSING = {"(": ")", "[": "]", "\\{": "\\}", "\\lfloor": "\\rfloor", "\\lceil": "\\rceil", "|": "|", "{": "}"}
_WORDS = sorted([*_FUNCTIONS, *_MANY, "sqrt", "pi", "cdot", "infinity", "infty", "theta", "alpha", "beta", "log",
                 "frac", "lambda", "phi", "omega", "gamma", "sigma"], key=len, reverse=True)  # fmt: skip
_TOKEN = re.compile(
    r"\s*(?:"
    r"(?P<number>(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][-+]?[0-9]{1,3}(?![0-9A-Za-z.^_{]))?|[0-9]+\.(?![0-9]))"
    r"|\\(?P<command>[A-Za-z]+|[{}|])|(?P<letters>[A-Za-z]+)"
    r"|(?P<other>[-+*/^_(){}\[\]|!%°'<>]))"
)
_WORD = re.compile("|".join(_WORDS))
_DERIVATIVE = re.compile(r"d(?:\^\{?[0-9]\}?)?\s*\\?[A-Za-z]+(?:_\{?\w+\}?)?(?:\^\{?[0-9]\}?)?(?:\([a-z]\))?")


@lru_cache(maxsize=16384)
def parse(text: str):
    """The formula in `text` (plain notation); raises Malformed or Beyond."""
    parser = _Parser(_tokens(text))
    try:
        tree = parser.sum()
    except RecursionError:
        raise Malformed("nested too deep") from None
    if parser.kind is not None:
        raise Malformed(text)
    return tree


def _tokens(text: str) -> list[tuple[str, str, bool]]:
    """(kind, text, whether a space stands before it) of every token."""
    tokens: list[tuple[str, str, bool]] = []
    position, text = 0, text.rstrip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise Malformed(text)
        kind, piece = match.lastgroup, match[match.lastgroup]
        spaced = match.start(kind) - (kind == "command") > position
        position = match.end()
        if kind == "letters":
            tokens += _letters(piece, spaced)
        elif kind == "command" and piece in "{}|":
            tokens.append(("other", "\\" + piece if piece != "|" else "|", spaced))
        elif kind == "command" and piece in ("lfloor", "rfloor", "lceil", "rceil"):
            tokens.append(("other", "\\" + piece, spaced))
        else:
            tokens.append((kind, piece, spaced))
    return tokens


def _letters(run: str, spaced: bool) -> list[tuple[str, str, bool]]:
    """A run of letters: function names, a word of four letters and more, else one symbol a letter."""
    if run in ("infinity", "inf", "oo"):
        return [("command", "infty", spaced)]
    tokens: list[tuple[str, str, bool]] = []
    while run:
        match = _WORD.search(run)
        before = run[: match.start()] if match else run
        if len(before) > 3:
            tokens.append(("word", before, spaced))
        else:
            tokens += [("symbol", letter, spaced and i == 0) for i, letter in enumerate(before)]
        if match is None:
            break
        tokens.append(("command", match[0], spaced and not before))
        run, spaced = run[match.end() :], False
    return tokens


class _Parser:
    def __init__(self, tokens: list[tuple[str, str, bool]]):
        self.tokens, self.position, self.depth = tokens, 0, 0
        self.bars = 0  # open |

    @property
    def kind(self) -> str | None:
        return self.tokens[self.position][0] if self.position < len(self.tokens) else None

    @property
    def text(self) -> str:
        return self.tokens[self.position][1] if self.position < len(self.tokens) else ""

    def take(self) -> str:
        if self.position >= len(self.tokens):
            raise Malformed("the text ends too early")
        self.position += 1
        return self.tokens[self.position - 1][1]

    def expect(self, piece: str) -> None:
        if self.take() != piece:
            raise Malformed(f"no {piece}")

    def at(self, *pieces: str) -> bool:
        return self.kind == "other" and self.text in pieces

    def sum(self):
        self.depth += 1
        if self.depth > DEEPEST:
            raise Beyond("too deep")
        parts = []
        while True:
            negative = False
            while self.at("+", "-"):
                negative ^= self.take() == "-"
            part = self.product()
            parts.append(Node("-", (part,)) if negative else part)
            if not self.at("+", "-"):
                value = parts[0] if len(parts) == 1 else Node("+", tuple(parts))
                if (self.kind, self.text) == ("command", "over"):
                    self.take()
                    value = Node("/", (value, self.sum()))
                self.depth -= 1
                return value

    def product(self):
        start = self.position
        value = self.signed()
        while True:
            if self.position - start > MOST_TOKENS:
                raise Malformed("a product of hundreds of factors")
            if self.at("*", "/"):
                name = self.take()
                value = Node(name, (value, self.signed()))
            elif self.starts_factor():
                if self.kind == "number" and isinstance(self.last, Number):
                    value = self.mixed(value)
                    continue
                # 2\frac{1}{3} is a mixed number
                whole = value if self.position == start + 1 and isinstance(value, Number) else None
                numerals = self.fraction_of_numerals() if whole is not None else None
                factor = self.power()
                mixed = numerals is not None and whole.decimals is None and numerals == factor
                value = Node("+" if mixed else "*", (value, factor))
            else:
                return value

    def fraction_of_numerals(self):
        """The fraction that comes next, if it is one of two whole numbers; nothing is taken."""
        if (self.kind, self.text) != ("command", "frac"):
            return None
        position = self.position
        try:
            node = self.atom()
        except Malformed:
            return None
        finally:
            after, self.position = self.position, position
        ends = after >= len(self.tokens) or self.tokens[after][1] not in ("^", "!")
        above_below = node.arguments if isinstance(node, Node) and node.name == "/" else ()
        return node if ends and above_below and all(isinstance(a, Number) for a in above_below) else None

    def mixed(self, value):
        """`1 1/2`, after the 1; two numbers side by side are nothing else."""
        rest = self.tokens[self.position : self.position + 3]
        if (
            isinstance(value, Number)
            and value.decimals is None
            and [t[0] for t in rest] == ["number", "other", "number"]
            and rest[0][2]
            and rest[1][1] == "/"
            and rest[0][1].isdigit()
            and rest[2][1].isdigit()
        ):
            self.position += 3
            self.last = None
            return Node("+", (value, Node("/", (number(rest[0][1]), number(rest[2][1])))))
        raise Malformed("two numbers side by side")

    last = None  # the atom read last, to tell 2 3 from 2x

    def starts_factor(self) -> bool:
        if self.kind in ("number", "symbol", "word"):
            return True
        if self.kind == "command":
            return self.text != "over"
        return self.at("(", "[", "{", "\\{", "\\lfloor", "\\lceil") or (self.at("|") and not self.bars)

    def signed(self):
        if self.at("-", "+"):
            negative = self.take() == "-"
            value = self.signed()
            return Node("-", (value,)) if negative else value
        return self.power()

    def power(self):
        value = self.atom()
        start = self.position
        while self.kind == "other":
            if self.position - start > DEEPEST:
                raise Malformed("dozens of powers of powers")
            if self.at("^"):
                self.take()
                value = Node("^", (value, self.exponent()))
            elif self.at("!"):
                self.take()
                value = Node("!", (value,))
            elif self.at("%"):
                self.take()
                value = Node("/", (value, Number(Fraction(100), None)))
            elif self.at("°"):
                self.take()
                value = Node("°", (value,))
            else:
                break
        self.last = value
        return value

    def exponent(self):
        if self.at("-", "+"):
            return self.signed_exponent()
        return self.group() if self.at("{") else self.atom()

    def signed_exponent(self):
        negative = self.take() == "-"
        value = self.exponent()
        return Node("-", (value,)) if negative else value

    def group(self):
        """{...} or one token, as TeX has it: \\frac12 is 1/2."""
        if self.at("{"):
            self.take()
            value = self.sum()
            self.expect("}")
            return value
        if self.kind == "number" and self.text.isdigit() and len(self.text) > 1:
            kind, digits, spaced = self.tokens[self.position]
            self.tokens[self.position : self.position + 1] = [(kind, digits[0], spaced), (kind, digits[1:], False)]
        return self.atom()

    def raw_group(self) -> str:
        """The text of {...} or of one token, for names."""
        if not self.at("{"):
            return self.take()
        self.take()
        parts, depth = [], 1
        while True:
            piece = self.take()
            depth += (piece == "{") - (piece == "}")
            if depth == 0:
                return "".join(parts)
            parts.append(piece)

    def atom(self):
        kind, piece = self.kind, self.text
        if kind == "number":
            return self.number()
        if kind in ("symbol", "word"):
            return self.symbol(self.take())
        if kind == "command":
            return self.command(self.take())
        if self.at("(", "[", "{", "\\{", "\\lfloor", "\\lceil", "|"):
            self.take()
            self.bars += piece == "|"
            if self.bars > MOST_BARS:
                raise Malformed("values of values")
            bars, self.bars = self.bars, self.bars if piece == "|" else 0
            value = self.sum()
            self.bars = bars - (piece == "|")
            self.expect(_CLOSING[piece])
            name = {"\\lfloor": "floor", "\\lceil": "ceil", "|": "abs"}.get(piece)
            self.last = value if name is None else None
            return Node(name, (value,)) if name else (value if piece == "{" else Node("()", (value,)))
        raise Malformed(f"{piece!r} begins nothing")

    def number(self):
        value = number(self.take())
        if self.at("_"):
            raise Beyond("a number in a base")
        self.last = value
        return value

    def symbol(self, name: str):
        if self.at("_"):
            self.take()
            name += "_" + self.raw_group()
        primes = 0
        while self.at("'"):
            self.take()
            primes += 1
        name += "'" * primes
        if name == "e":
            return Node("e", ())
        if name == "i":
            return Node("i", ())
        # f(x), I(0): a letter before one symbol or number in parentheses is a function of it, x(x+1) is a product.
        after = self.tokens[self.position : self.position + 3]
        if [t[1] for t in after[::2]] == ["(", ")"] and after[1][0] in ("symbol", "number") and not after[0][2]:
            self.position += 3
            argument = number(after[1][1]) if after[1][0] == "number" else Node("symbol " + after[1][1], ())
            return Node("function " + name, (argument,))
        return Node("symbol " + name, ())

    def command(self, name: str):
        if name in _BEYOND:
            raise Beyond(name)
        if name == "pi":
            return Node("pi", ())
        if name in GREEK or name in ("infty", "emptyset", "triangle", "odot", "star", "circ", "top", "dagger"):
            return self.symbol("\\" + name)
        if name == "frac":
            return self.fraction()
        if name == "sqrt":
            return self.root()
        if name == "int":
            return self.integral()
        if name == "binom":
            return Node("binom", (self.group(), self.group()))
        if name in _ACCENTS:
            return self.symbol(f"\\{name} {self.raw_group()}")
        if name in _FUNCTIONS:
            return self.function(name)
        if name in _MANY:
            raise Beyond(name)
        raise Malformed(f"\\{name}")

    def fraction(self):
        start = self.position
        if self.at("{"):
            above, below = self.raw_group(), self.raw_group() if self.at("{") else ""
            if _DERIVATIVE.fullmatch(above) and _DERIVATIVE.fullmatch(below):
                return Node(f"symbol {above}/{below}", ())
        self.position = start
        return Node("/", (self.group(), self.group()))

    def root(self):
        degree = None
        if self.at("["):
            self.take()
            degree = self.sum()
            self.expect("]")
        value = self.group() if self.at("{") or not self.at("(") else self.atom()
        return Node("sqrt", (value,)) if degree is None else Node("^", (value, Node("/", (_ONE, degree))))

    def integral(self):
        """\\int_a^b f dx, to the end of the formula where no dx stands."""
        ends = {}
        while self.at("_", "^"):
            mark = self.take()
            ends[mark] = self.group()
        if len(ends) < 2:
            raise Beyond("an integral without ends")
        rest = self.tokens[self.position :]
        differential = next(
            (i for i, (a, b) in enumerate(pairwise(rest)) if a[:2] == ("symbol", "d") and b[0] == "symbol"), None
        )
        body = _Parser(rest[:differential])
        self.position = len(self.tokens) if differential is None else self.position + differential + 2
        tree = body.sum()
        names = symbols(tree) if differential is None else {f"symbol {rest[differential + 1][1]}"}
        if body.kind is not None or len(names) != 1 or _holds_integral(tree):
            raise Beyond("an integral that is not read")
        return Node("int", (ends["_"], ends["^"], tree, Node(*names, ())))

    def function(self, name: str):
        base = power = None
        while self.at("_", "^"):
            if self.take() == "_":
                base = self.group() if self.at("{") else self.atom()
            else:
                power = self.exponent()
        if power == _MINUS_ONE and name in _INVERSE:
            name, power = _INVERSE[name], None
        argument = self.argument()
        node = Node(name, (argument,))
        if base is not None:
            if name not in ("log", "ln"):
                raise Malformed(f"{name} with an index")
            node = Node("/", (node, Node("log", (base,))))
        self.last = None
        return node if power is None else Node("^", (node, power))

    def argument(self):
        """Of a function: what stands in brackets, or the product that follows: \\sin 2t."""
        if self.at("(", "[", "{", "|"):
            return self.power() if self.at("{", "|") else self.atom()
        value = self.power()
        while self.kind in ("number", "symbol", "word") or (self.kind == "command" and self.text in {"pi"} | GREEK):
            if self.kind == "number":
                raise Malformed("two numbers side by side")
            value = Node("*", (value, self.power()))
        if self.at("/") and self.position + 1 < len(self.tokens) and self.tokens[self.position + 1][0] == "number":
            self.take()
            value = Node("/", (value, self.power()))
        return value


def number(text: str) -> Number:
    decimals = len(text.partition(".")[2].lower().partition("e")[0]) if "." in text else None
    if len(text) > 4000:
        raise Beyond("a number of thousands of digits")
    if "e" in text.lower():
        return Number(Fraction(text.lower()), None)
    return Number(Fraction(text.rstrip(".")), decimals or None)


_ONE = Number(Fraction(1), None)
_MINUS_ONE = Node("-", (_ONE,))


# ---- values ----------------------------------------------------------------------------------------------------

Value = Fraction | complex


def value_at(tree, point: int, angle: float = 1.0) -> Value:
    """The formula's value where every symbol has its value of that point; raises Undefined or Beyond.

    angle: what a degree sign stands for: 1, or π/180 within a trigonometric function.
    """
    try:
        value = _value(tree, point, angle)
    except (ZeroDivisionError, Undefined):
        raise Undefined from None
    except (OverflowError, ValueError, RecursionError) as error:
        if isinstance(error, Beyond):
            raise
        raise Beyond(str(error)) from None
    if isinstance(value, complex) and not cmath.isfinite(value):
        raise Beyond("out of range")
    return value


def _value(tree, point: int, angle: float) -> Value:
    if isinstance(tree, Number):
        return tree.value
    if isinstance(tree, complex):
        return tree
    name, arguments = tree
    if not arguments:
        return _symbol(name, point)
    if name == "int":
        return _integral(*arguments, point)
    inner = math.pi / 180 if name in _TRIGONOMETRIC else angle
    values = [_value(argument, point, inner) for argument in arguments]
    exact = all(isinstance(v, Fraction) for v in values)
    a = values[0]
    match name:
        case "+":
            return _bounded(sum(values)) if exact else sum(map(complex, values))
        case "*":
            return _bounded(a * values[1]) if exact else complex(a) * complex(values[1])
        case "/":
            return _bounded(a / values[1]) if exact else complex(a) / complex(values[1])
        case "-":
            return -a
        case "()":
            return a
        case "°":
            return a if angle == 1.0 else complex(a) * angle
        case "^":
            return _power(a, values[1])
        case "sqrt":
            return _power(a, Fraction(1, 2))
        case "!":
            return _factorial(a)
        case "binom":
            if exact and all(v.denominator == 1 and 0 <= v <= 2000 for v in values):
                return Fraction(math.comb(int(a), int(values[1])))
            n, k = map(complex, values)
            return _gamma(n + 1) / _gamma(k + 1) / _gamma(n - k + 1)
        case "abs":
            return abs(a) if exact else complex(abs(complex(a)))
        case "floor" | "ceil":
            return _rounded(a, math.floor if name == "floor" else math.ceil)
    if name.startswith("function "):
        return cmath.sin(complex(a) * 1.7 + 0.9) + _symbol(name, point)
    if exact and name in ("ln", "log") and a == 1:
        return Fraction(0)
    return _FUNCTIONS[name](complex(a))


def _integral(start, end, body, variable: Node, point: int) -> complex:
    """By double exponential quadrature (Takahashi and Mori 1974), where steps of h and 2h agree."""
    a, b = (_end(limit, point) for limit in (start, end))
    if a > b or (a == -math.inf and b == math.inf):
        raise Beyond("an integral the other way around, or over all numbers")

    def term(t: float) -> float:
        s = math.pi / 2 * math.sinh(t)
        if math.isinf(b):
            x, weight = a + math.exp(s), math.exp(s)
        elif math.isinf(a):
            x, weight = b - math.exp(s), math.exp(s)
        else:
            x, weight = (a + b + (b - a) * math.tanh(s)) / 2, (b - a) / 2 / math.cosh(s) ** 2
        try:
            value = complex(_value(_with(body, variable, complex(x)), point, 1.0))
        except (ArithmeticError, ValueError):
            return 0.0  # at an end, or where the integrand is below what a float holds
        return value.real * weight * math.pi / 2 * math.cosh(t) if not value.imag else math.nan

    steps = 32
    terms = [term(i / steps) for i in range(-4 * steps, 4 * steps + 1)]
    fine, rough = sum(terms) / steps, sum(terms[::2]) * 2 / steps
    if not abs(fine - rough) <= 1e-10 * abs(fine):
        raise Beyond("an integral that does not converge here")
    return complex(fine)


def _end(limit, point: int) -> float:
    """The value of an integral's end, which may be infinite."""
    if limit == Node("symbol \\infty", ()):
        return math.inf
    if limit == Node("-", (Node("symbol \\infty", ()),)):
        return -math.inf
    value = complex(_value(limit, point, 1.0))
    if value.imag:
        raise Beyond("a complex end")
    return value.real


def _with(tree, variable: Node, value: complex):
    """The tree with a value for a symbol."""
    if tree == variable:
        return value
    if not isinstance(tree, Node) or not tree.arguments:
        return tree
    return Node(tree.name, tuple(_with(argument, variable, value) for argument in tree.arguments))


def _holds_integral(tree) -> bool:
    return isinstance(tree, Node) and (tree.name == "int" or any(map(_holds_integral, tree.arguments)))


def _bounded(value: Fraction) -> Fraction:
    if value.numerator.bit_length() + value.denominator.bit_length() > MOST_BITS:
        raise Beyond("a number of thousands of digits")
    return value


def _symbol(name: str, point: int) -> Value:
    if name in _CONSTANTS:
        return _CONSTANTS[name]
    chance = zlib.crc32(f"{name} {point}".encode())
    value = 0.4 + 2 * (chance % 99991) / 99991
    if point > SIGNS:
        value *= 1.6**point  # up to some hundreds: rounding functions are constant over short ways
    return complex(-value if point == SIGNS and chance & 1 << 20 else value)


_CONSTANTS = {"pi": complex(math.pi), "e": complex(math.e), "i": 1j}


def _power(base: Value, exponent: Value) -> Value:
    if isinstance(exponent, Fraction) and isinstance(base, Fraction):
        if exponent.denominator == 1:
            bits = base.numerator.bit_length() + base.denominator.bit_length()
            if abs(exponent) * bits <= MOST_BITS or base in (0, 1, -1):
                return base ** int(exponent)
        elif base >= 0 and exponent.denominator <= 12 and (root := _root(base, exponent.denominator)) is not None:
            return _power(root, Fraction(exponent.numerator))
        elif base < 0 and exponent.denominator % 2 and exponent.denominator <= 12:
            return _real_root(base, exponent)
    value = complex(base) ** complex(exponent)
    if not value and base:
        raise Beyond("a number near 0")
    return value


def _real_root(base: Fraction, exponent: Fraction) -> Value:
    """(-8)^{1/3} is -2 to whoever writes it."""
    value = _power(-base, exponent)
    return -value if exponent.numerator % 2 else value


def _root(base: Fraction, degree: int) -> Fraction | None:
    """The exact root, if there is one."""
    roots = []
    for number in (base.numerator, base.denominator):
        root = math.isqrt(number) if degree == 2 else round(float(number) ** (1 / degree))
        if root**degree != number:
            return None
        roots.append(root)
    return Fraction(*roots)


def _factorial(n: Value) -> Value:
    if isinstance(n, Fraction) and n.denominator == 1 and n >= 0:
        if n > 3000:
            raise Beyond("a large factorial")
        return Fraction(math.factorial(int(n)))
    return _gamma(complex(n) + 1)


def _gamma(z: complex) -> complex:
    if z.imag:
        raise Beyond("gamma of a complex number")
    return complex(math.gamma(z.real))


def _rounded(value: Value, how: Callable) -> Value:
    if isinstance(value, Fraction):
        return Fraction(how(value))
    if abs(value.imag) > 1e-9:
        raise Undefined
    nearest = round(value.real)
    return Fraction(nearest if abs(value.real - nearest) < 1e-9 else how(value.real))


# ---- comparison ------------------------------------------------------------------------------------------------


def constant(tree) -> Fraction | None:
    """The exact value of a formula of numbers; None if it has none."""
    try:
        value = value_at(tree, 0)
    except (Undefined, Beyond):
        return None
    return value if isinstance(value, Fraction) else None


def literal(tree) -> Number | None:
    """The number that is written, with or without a sign; None for any other formula."""
    if isinstance(tree, Node) and tree.name == "()":
        return literal(tree.arguments[0])
    if isinstance(tree, Node) and tree.name == "-" and isinstance(tree.arguments[0], Number):
        inner = tree.arguments[0]
        return Number(-inner.value, inner.decimals)
    return tree if isinstance(tree, Number) else None


def is_stated(tree) -> bool:
    """Whether it states a number: 5, -5/2, 1 1/2, 1.8 · 10^3, 5 thousand; a sum or a product is still to be
    computed."""
    if isinstance(tree, Number):
        return True
    inner = [a for a in tree.arguments if is_stated(a)]
    if len(inner) != len(tree.arguments) or not inner:
        return False
    match tree.name:
        case "-" | "()" | "°":
            return True
        case "/":
            return all(isinstance(_bare(a), Number) for a in tree.arguments)
        case "+":
            return (
                len(inner) == 2 and isinstance(inner[0], Number) and isinstance(inner[1], Node) and inner[1].name == "/"
            )
        case "*":
            counted = isinstance(inner[0], Node) and inner[0].name == "()" and isinstance(inner[1], Number)
            return counted or _is_power_of_ten(inner[1])  # (18)*1000 is what kinds.py makes of 18 thousand
        case "^":
            return _is_power_of_ten(tree)
    return False


def _bare(tree):
    return _bare(tree.arguments[0]) if isinstance(tree, Node) and tree.name in ("-", "()") else tree


def _is_power_of_ten(tree) -> bool:
    return isinstance(tree, Node) and tree.name == "^" and tree.arguments[0] == Number(Fraction(10), None)


def symbols(tree) -> frozenset[str]:
    """The names of the symbols and unknown functions in it."""
    if isinstance(tree, Number):
        return frozenset()
    own = {tree.name} if tree.name.startswith(("symbol ", "function ")) else set()
    found = own.union(*(symbols(argument) for argument in tree.arguments))
    return frozenset(found - {tree.arguments[3].name, "symbol \\infty"} if tree.name == "int" else found)


def same(a, b) -> bool | None:
    """Whether two formulas are equal; None where that is not seen here."""
    try:
        if a == b:
            return None if undefined(a) else True
        if (rounding := _rounding(a, b)) is not None:
            return rounding
        free = symbols(a) | symbols(b)
        verdict: bool | None = True
        seen = 0
        points = 1 if not free else 16 if _has_steps(a) or _has_steps(b) else 3
        for point in range(points):
            try:
                x, y = value_at(a, point), value_at(b, point)
            except Undefined:
                if not free:
                    return False
                continue
            seen += 1
            near = _near(x, y, 1e-9 if _holds_integral(a) or _holds_integral(b) else EQUAL)
            if near is False and point != SIGNS:
                return False
            if near is not True:
                verdict = None  # only for numbers of either sign, or too near to tell
        if seen < (2 if free else 1):
            return None
        return verdict if symbols(a) == symbols(b) else None  # 10^14 - x is 10^14 to a float
    except (Beyond, RecursionError, OverflowError):
        return None


def _has_steps(tree) -> bool:
    return isinstance(tree, Node) and (tree.name in ("floor", "ceil") or any(map(_has_steps, tree.arguments)))


def undefined(tree) -> bool:
    """Whether it has no value, such as 1/0."""
    try:
        value_at(tree, 0)
    except Undefined:
        return True
    except Beyond:
        return False
    return False


def _near(x: Value, y: Value, equal: float) -> bool | None:
    if isinstance(x, Fraction) and isinstance(y, Fraction):
        return x == y
    x, y = complex(x), complex(y)
    difference, size = abs(x - y), max(abs(x), abs(y))
    if difference <= equal * size or size < 1e-300:
        return True
    return False if difference > APART * size else None


def _rounding(a, b) -> bool | None:
    """Whether a decimal is the rounding of the other value, or None if neither is a decimal.

    0.333333 is 1/3, 0.33 is not; 0.0000001 is no rounding of 0.00000012. Of two decimals the shorter is the rounding.
    """
    decimals = [(number, other) for number, other in ((literal(a), b), (literal(b), a)) if number and number.decimals]
    if not decimals:
        return None
    decimals.sort(key=lambda pair: pair[0].decimals)
    number, other = decimals[0]
    if symbols(other):
        return False
    value = value_at(other, 0)
    if isinstance(value, Fraction):
        if value == number.value:
            return True
        difference = abs(value - number.value)
    else:
        if abs(value.imag) > EQUAL * abs(value):
            return False
        difference = abs(Fraction(value.real) - number.value)
    digits = len(str(abs(number.value.numerator) * 10**number.decimals // number.value.denominator).lstrip("0"))
    half = Fraction(1, 2 * 10**number.decimals)
    return digits >= MOST_ROUNDED and difference <= half * (1 + Fraction(1, 10**6))


def proportional(a, b) -> bool | None:
    """Whether two formulas are equal but for a constant factor, as the sides of one equation are; its sign if so."""
    try:
        ratios = []
        for point in range(3):
            try:
                x, y = complex(value_at(a, point)), complex(value_at(b, point))
                ratios.append(x / y)
            except (Undefined, ZeroDivisionError):
                continue
        if len(ratios) < 2:
            return None
        return all(abs(r - ratios[0]) <= EQUAL * 100 * abs(ratios[0]) for r in ratios) and ratios[0] != 0
    except (Beyond, RecursionError, OverflowError):
        return None
