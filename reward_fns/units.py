"""Units of measurement and currencies: what a unit measures, and how much of it.

    read("km/h")  ->  Unit({"length": 1, "time": -1}, 1000/3600)

Words that are no unit (eggs, apples) measure nothing, and say nothing about the value.
"""

import math
import re
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple


class Unit(NamedTuple):
    measures: tuple[tuple[str, int], ...]  # (dimension, power), sorted
    size: Fraction


_METRIC = {
    "": ("", Fraction(1)), "k": ("kilo", Fraction(10**3)), "M": ("mega", Fraction(10**6)),
    "G": ("giga", Fraction(10**9)), "d": ("deci", Fraction(1, 10)), "c": ("centi", Fraction(1, 100)),
    "m": ("milli", Fraction(1, 10**3)), "u": ("micro", Fraction(1, 10**6)), "n": ("nano", Fraction(1, 10**9)),
}  # fmt: skip
# dimension: (symbol, its word, the prefixes it is used with)
_SI = {
    "length": ("m", "meter metre", "kmcdnu"), "time": ("s", "second", "mnu"), "mass": ("g", "gram gramme", "kmu"),
    "volume": ("L", "liter litre", "mcdk"), "energy": ("J", "joule", "kmMG"), "power": ("W", "watt", "kmMG"),
    "force": ("N", "newton", "kmM"), "pressure": ("Pa", "pascal", "kMG"), "frequency": ("Hz", "hertz", "kMG"),
    "voltage": ("V", "volt", "kmM"), "current": ("A", "ampere amp", "mku"), "resistance": ("\\Omega", "ohm", "kM"),
    "charge": ("C", "coulomb", "mun"), "amount": ("mol", "mole", "mku"), "flux": ("T", "tesla", "m"),
    "electronvolt": ("eV", "electronvolt", "kMG"), "byte": ("B", "byte", "kMG"),
}  # fmt: skip
_OTHER = {
    "length": {"in inch inches": "0.0254", "ft foot feet": "0.3048", "yd yard": "0.9144", "mi mile": "1609.344",
               "parsec pc": "30856775814913673", "ly lightyear": "9460730472580800", "\\AA angstrom": "1e-10"},
    "time": {"sec": 1, "min minute": 60, "h hr hrs hour": 3600, "day": 86400, "week wk wks": 604800, "month": 2629800,
             "year yr yrs": 31557600, "decade": 315576000, "century centuries": 3155760000},
    "mass": {"lb lbs pound": "453.59237", "oz ounce": "28.349523125", "tonne": 10**6, "ton": "907184.74"},
    "volume": {"gal gallon": "3.785411784", "qt quart": "0.946352946", "pt pint": "0.473176473", "l": 1,
               "cup": "0.2365882365", "tablespoon tbsp": "0.0147867648", "teaspoon tsp": "0.0049289216"},
    "area": {"acre": "4046.8564224", "hectare ha": 10000},
    "energy": {"cal calorie": "4.184", "kcal kilocalorie": 4184},
    "pressure": {"bar": 100000, "atm atmosphere": 101325},
    "speed": {"mph": "0.44704", "kph kmh kmph": "0.2777777777777778", "mps": 1},
    "angle": {"° degree deg": 1, "rad radian": str(180 / math.pi), "arcminute": "0.016666666666666666",
              "arcsecond": "0.0002777777777777778"},
    "temperature": {"°C celsius": 1}, "fahrenheit": {"°F fahrenheit": 1}, "kelvin": {"K kelvin": 1},
    "dollar": {"$ USD dollar buck": 1, "cent ¢": "0.01"}, "euro": {"€ EUR euro": 1}, "pound": {"£ GBP": 1},
    "yen": {"¥ JPY yen": 1}, "rupee": {"₹ INR Rs rupee": 1}, "yuan": {"yuan RMB CNY": 1}, "won": {"₩ KRW": 1},
    "peso": {"peso": 1}, "franc": {"franc CHF": 1}, "canadian": {"CAD": 1}, "australian": {"AUD": 1},
    "rouble": {"ruble rouble RUB ₽": 1},
}  # fmt: skip
# What is measured by a power of another dimension, so that cm^3 is a millilitre and a mile an hour is a mph.
_DERIVED = {
    "volume": ({"length": 3}, Fraction(1, 1000)),
    "area": ({"length": 2}, Fraction(1)),
    "speed": ({"length": 1, "time": -1}, Fraction(1)),
}


def _table() -> dict[str, tuple[dict[str, int], Fraction]]:
    table: dict[str, tuple[dict[str, int], Fraction]] = {}
    for dimension, (symbol, words, prefixes) in _SI.items():
        measures, base = _DERIVED.get(dimension, ({dimension: 1}, Fraction(1)))
        for prefix in ["", *prefixes]:
            long, size = _METRIC[prefix]
            names = [prefix + symbol, *(f"{long}{word}{s}" for word in words.split() for s in ("", "s"))]
            names += [f"\\mu{symbol}", f"\\mu {symbol}"] if prefix == "u" else []
            table.update(dict.fromkeys(names, (measures, size * base)))
    for dimension, units in _OTHER.items():
        measures, base = _DERIVED.get(dimension, ({dimension: 1}, Fraction(1)))
        for names, size in units.items():
            plural = [f"{name}s" for name in names.split() if len(name) > 2 and name.islower()]
            table = dict.fromkeys(plural, (measures, Fraction(size) * base)) | table
            table.update(dict.fromkeys(names.split(), (measures, Fraction(size) * base)))
    return table


UNITS = _table()
PERCENT = {"%", "percent", "pct", "percentage", "percents", "percentages"}
_CURRENCY_SIGN = "$€£¥₹¢₩₽"
_BEFORE = re.compile(
    rf"([-+]?)\s*(?:(?:US|CA?|AU?|HK|NZ|S)?([{_CURRENCY_SIGN}])|(USD|EUR|GBP|INR|JPY|RMB|CNY|CAD|AUD|CHF"
    rf"|Rs)\b\.?)\s*(?=[-+.0-9({{\\])"
)
_PIECE = re.compile(
    r"\s*(?:(?P<operator>[/*])|(?P<word>\\?[A-Za-z]+|°\s*[CF]?(?![A-Za-z])"
    r"|[%$€£¥₹¢₩₽])\.?\s*(?:\^\s*\{?\s*(?P<power>-?[0-9])\s*\}?)?)"
)
LONGEST = 80


@lru_cache(maxsize=16384)
def read(text: str) -> Unit | None:
    """What a unit written in `text` measures; None if it measures nothing or is not read."""
    measures: dict[str, int] = {}
    size = Fraction(1)
    position, sign, next_power = 0, 1, 1
    text = text.strip()
    while position < len(text):
        if (match := _PIECE.match(text, position)) is None:
            return None
        position = match.end()
        if match["operator"]:
            sign = -1 if match["operator"] == "/" else sign
            continue
        word = match["word"].replace(" ", "")
        low = word.lower()
        if low in ("per", "a", "an", "each", "every"):
            sign = -1
        elif low in ("square", "sq", "cubic", "cu"):
            next_power = 2 if low.startswith("s") else 3
        elif low in ("squared", "cubed"):
            return _merged(measures, size, 2 if low == "squared" else 3)
        elif entry := UNITS.get(word) or UNITS.get(low):
            power = sign * int(match["power"] or next_power)
            for dimension, exponent in entry[0].items():
                measures[dimension] = measures.get(dimension, 0) + power * exponent
            size *= entry[1] ** power
            next_power = 1
    return _merged(measures, size, 1)


def _merged(measures: dict[str, int], size: Fraction, power: int) -> Unit | None:
    found = tuple(sorted((d, p * power) for d, p in measures.items() if p))
    return Unit(found, size**power) if found else None


def prefix(text: str) -> tuple[str, str]:
    """(`text` without a currency in front, the currency)."""
    match = _BEFORE.match(text)
    return (match[1] + text[match.end() :], match[2] or match[3]) if match else (text, "")


def is_unit(word: str) -> bool:
    return word in UNITS or (word.lower() in UNITS and len(word) > 1)
