"""Notation in plain form: one spelling for what LaTeX, unicode and prose write in many. Linear in the text's length.

    plain("\\dfrac{1}{2}\\,\\text{ cm}²")  ->  "\\frac{1}{2} cm ^{2}"

What comes out is read by kinds.py and formula.py only: commands that set type or space are gone, `\\text{...}` is its
words, an operator has one name, a degree sign is `°`, a dollar sign is money.
"""

import re
import unicodedata

_SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱˣ", "0123456789+-()nix", strict=True))
_SUBSCRIPTS = dict(zip("₀₁₂₃₄₅₆₇₈₉₊₋₍₎", "0123456789+-()", strict=True))


def _greek(letter: str) -> str:
    """Its name in LaTeX: unicode's, but lamda."""
    name = unicodedata.name(letter).split()[-1].replace("LAMDA", "LAMBDA")
    return name.title() if letter.isupper() else name.lower()


# Bidirectional controls and digits of other scripts stay as they are, and make no number: nobody honest needs them.
_CHARACTERS = str.maketrans(
    {
        **dict.fromkeys([0xA0, *range(0x2000, 0x200B), 0x202F, 0x205F, 0x3000], " "),
        **dict.fromkeys("\u200b\u2060\ufeff\u00ad\u2061\u2062\ufe0f", ""),
        **dict.fromkeys("−﹣－‐‑–", "-"),
        **dict.fromkeys("×✕✖⨯", "*"),
        **dict.fromkeys("·⋅∙•∗", "*"),
        **dict.fromkeys("÷∕⁄／", "/"),
        **dict.fromkeys("’′ʹ‘", "'"),
        **dict.fromkeys("“”″", '"'),
        **dict.fromkeys("º˚", "°"),
        **dict.fromkeys("∅⌀", "\\emptyset "),
        **{c: re.sub("(.+)⁄(.+)", r"\\frac{\1}{\2}", unicodedata.normalize("NFKC", c)) for c in "½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅐⅛⅜⅝⅞⅑⅒"},
        **{c: f"\\{_greek(c)} " for c in "αβγδεζηθικλμνξπρστυφχψωΓΔΘΛΞΠΣΦΨΩ"},
        "≤": "\\leq ", "⩽": "\\leq ", "≥": "\\geq ", "⩾": "\\geq ", "≠": "\\neq ", "≈": "\\approx ", "≃": "\\approx ",
        "±": "\\pm ", "∓": "\\mp ", "∞": "\\infty ", "∈": "\\in ", "∪": "\\cup ", "∩": "\\cap ",
        "⟨": "(", "⟩": ")", "∠": "\\angle ", "△": "\\triangle ", "⇒": "\\implies ", "→": "\\to ", "∶": ":", "：": ":",
        "，": ",", "、": ",", "；": ";", "（": "(", "）": ")", "［": "[", "］": "]", "＝": "=", "＋": "+", "％": "%",
        "＄": "\\$", "。": ".", "…": "...", "∫": "\\int ", "∑": "\\sum ", "∏": "\\prod ", "⌊": "\\lfloor ",
        "⌋": "\\rfloor ", "⌈": "\\lceil ", "⌉": "\\rceil ", "ℝ": "\\mathbb{R}", "ℤ": "\\mathbb{Z}", "ℕ": "\\mathbb{N}",
        "µ": "\\mu ", "‰": " permille", "℃": "°C", "℉": "°F", "ℏ": "\\hbar ",
    }
)  # fmt: skip
_RUN_ABOVE = re.compile(f"[{''.join(_SUPERSCRIPTS)}]+")
_RUN_BELOW = re.compile(f"[{''.join(_SUBSCRIPTS)}]+")
_ROOT = re.compile(r"([√∛∜])\s*([0-9]+(?:\.[0-9]+)?)?")
_ROOTS = {"√": "\\sqrt", "∛": "\\sqrt[3]", "∜": "\\sqrt[4]"}

_SPACES = {",", ";", ":", ">", " ", "\n", "\t", "space", "quad", "qquad", "enspace", "thinspace", "medspace",
           "thickspace", "nobreakspace", "enskip", "hfill", "hfil", "newline", "smallskip", "medskip"}  # fmt: skip
_NOTHING = {
    "!", "left", "right", "middle", "big", "Big", "bigg", "Bigg", "bigl", "bigr", "Bigl", "Bigr", "biggl", "biggr",
    "Biggl", "Biggr", "displaystyle", "textstyle", "scriptstyle", "limits", "nolimits", "negthinspace", "rm", "bf",
    "it", "sf", "tt", "negmedspace", "large", "Large", "LARGE", "huge", "Huge", "small", "normalsize", "bfseries",
    "itshape", "boldmath", "unboldmath", "nonumber", "notag", "(", ")", "[", "]", "protect", "relax", "/", "-",
}  # fmt: skip
# Commands whose argument is words, or mathematics in another type.
_WORDS = {"text", "textbf", "textit", "textrm", "textsf", "texttt", "textnormal", "textup", "textsc", "textmd", "mbox",
          "hbox", "mathrm", "emph", "textsl", "mathsf", "mathtt", "operatorname", "operatorname*", "si",
          "unit"}  # fmt: skip
_TYPE = {"mathbf", "mathit", "mathnormal", "boldsymbol", "bm", "pmb", "underline", "uline", "fbox", "boxed",
         "framebox", "ensuremath", "mathop", "mathord", "cancel", "bold", "smash", "mathopen", "mathclose",
         "underbar", "colorbox", "mathinner", "oldstylenums", "num"}  # fmt: skip
# Commands whose first argument is not content.
_SKIPPED = {"hspace", "hspace*", "vspace", "color", "textcolor", "phantom", "hphantom", "vphantom", "tag", "label",
            "kern", "hskip", "rule", "colorbox", "cellcolor"}  # fmt: skip
_RENAMED = {
    "dfrac": "\\frac", "tfrac": "\\frac", "cfrac": "\\frac", "nicefrac": "\\frac", "sfrac": "\\frac",
    "flatfrac": "\\frac", "xfrac": "\\frac", "fraction": "\\frac", "dbinom": "\\binom", "tbinom": "\\binom",
    "le": "\\leq ", "leqslant": "\\leq ", "leqq": "\\leq ", "ge": "\\geq ", "geqslant": "\\geq ", "geqq": "\\geq ",
    "ne": "\\neq ", "lt": "<", "gt": ">", "cdot": "*", "times": "*", "ast": "*", "bullet": "*", "centerdot": "*",
    "div": "/", "varnothing": "\\emptyset ", "infin": "\\infty ", "degree": "°", "textdegree": "°", "deg": "°",
    "degrees": "°", "lvert": "|", "rvert": "|", "vert": "|", "mid": "|", "lbrace": "\\{", "rbrace": "\\}",
    "lbrack": "[", "rbrack": "]", "lparen": "(", "rparen": ")", "colon": ":", "dots": "...", "ldots": "...",
    "cdots": "...", "dotsc": "...", "dotsb": "...", "textellipsis": "...", "prime": "'", "%": "%", "&": " and ",
    "#": "#", "_": "_", "thickapprox": "\\approx ", "simeq": "\\approx ", "approxeq": "\\approx ", "tg": "\\tan ",
    "ctg": "\\cot ", "arctg": "\\arctan ", "land": " and ", "lor": " or ", "wedge": " and ", "vee": " or ",
    "union": "\\cup ", "bigcup": "\\cup ", "isin": "\\in ", "Rightarrow": "\\implies ", "rightarrow": "\\to ",
    "longrightarrow": "\\to ", "textpi": "\\pi ", "euro": "€", "texteuro": "€", "pounds": "£", "textsterling": "£",
    "yen": "¥", "percent": "%", "lnot": " not ", "neg": " not ", "imaginary": "i", "imath": "i", "slash": "/",
    "eqslantless": "\\leq ", "exponentialE": "e", "therefore": " ", "because": " because ", "textquotesingle": "'",
    "textminus": "-", "mathellipsis": "...", "overbar": "\\overline", "langle": "(", "rangle": ")",
    "lang": "(", "rang": ")",
    "euler": "e", "forall": " for all ", "surd": "\\sqrt ",
    "textbackslash": "", "textasciitilde": " ", "textasciicircum": "^", "checkmark": "", "square": "",
    "blacksquare": "", "Box": "", "qed": "",
}  # fmt: skip
_COMMAND = re.compile(r"\\([A-Za-z]+\*?|.|$)|\{|\}|~|[^\\{}~]+", re.DOTALL)
_TO_BRACE = re.compile(r"\s*\{")
_SKIP_ARGUMENT = re.compile(r"\s*\*?(?:\{[^{}]{0,40}\}|-?[0-9.]{1,6}(?:pt|em|ex|mu|cm|mm))")
_DEGREE = re.compile(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z])|\{\s*°\s*\}|°|\{\s*[oO]\s*\}|\s[oO]\b)")
_PRIMES = re.compile(r"\^\s*(?:\{\s*('[' ]*)\}|('))")
_TIGHT_COMMA = re.compile(r"(?<=[0-9])\s*(?:\{\s*,\s*\}|,\s*\\!)\s*(?=[0-9])")
_BRACED_SIGN = re.compile(r"\{\s*([,:;=<>+*/-])\s*\}")
_BRACED_SPACE = re.compile(r"(?<!\\)\{\s*(\\[,;:! ]|~)?\s*\}")
# Backslashes that were escaped once more; in a matrix \\\\ ends a row.
_ESCAPED = re.compile(
    r"(?<!\\)\\\\(?=(?:d?frac|sqrt|left|right|text|mathrm|pi|cup|infty|in|leq?|geq?|cdot|times|circ|pm|begin"
    r"|end)(?![A-Za-z]))"
)
_QUANTITY = re.compile(r"\\(?:SI|qty)\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
_ANGLE = re.compile(r"\\ang\s*\{([^{}]*)\}")
_UNIT_FRACTION = re.compile(r"\\[dt]?frac" + r"\s*\{\s*\\(?:text|mathrm)\s*\{([^{}]*)\}\s*\}" * 2)
_BARE_ROOT = re.compile(r"(?<![\\A-Za-z])sqrt\s*([0-9]+(?:\.[0-9]+)?)")
_MATH_DOLLARS = re.compile(r"(?<!\\)\$")
_SPACE_RUN = re.compile(r"\s+")


def plain(text: str) -> str:
    """The plain form of an answer; what it does not know stays as it is."""
    if text.isascii() and text.isdigit():
        return text
    if "\\" in text:
        text = _ANGLE.sub(r"\1°", _QUANTITY.sub(r"\1 \\text{\2}", _ESCAPED.sub(r"\\", text)))
        text = _UNIT_FRACTION.sub(r" \\text{\1/\2}", text)
    text = _RUN_ABOVE.sub(lambda m: "^{" + "".join(map(_SUPERSCRIPTS.get, m[0])) + "}", text)
    text = _RUN_BELOW.sub(lambda m: "_{" + "".join(map(_SUBSCRIPTS.get, m[0])) + "}", text)
    text = _ROOT.sub(lambda m: _ROOTS[m[1]] + (f"{{{m[2]}}}" if m[2] else ""), text)
    text = text.translate(_CHARACTERS)
    text = _TIGHT_COMMA.sub(",", _BRACED_SPACE.sub(lambda m: " " if m[1] else "", text))
    text = _BARE_ROOT.sub(r"\\sqrt{\1}", _BRACED_SIGN.sub(r"\1", text))
    text = _without_markdown(_without_math_dollars(text))
    if "\\" in text or "{" in text or "~" in text:
        text = _without_commands(text)
    text = _PRIMES.sub(lambda m: (m[1] or m[2]).replace(" ", ""), _DEGREE.sub("°", text))
    return _SPACE_RUN.sub(" ", text).strip()


def _without_math_dollars(text: str) -> str:
    """Pairs of dollars delimit mathematics; a single one, or an escaped one, is money."""
    count = len(_MATH_DOLLARS.findall(text))
    if count and (count % 2 == 0 or not re.match(r"[-+]?\s*\$\s*[-+]?[0-9.]", text) or count > 1):
        text = _MATH_DOLLARS.sub(" ", text) if count > 1 else text
    return text.replace("\\$", "$")


def _without_markdown(text: str) -> str:
    text = text.strip().replace("`", "")
    if text.startswith(("**", "__")) or text.endswith(("**", "__")):
        text = text.replace("**", "").replace("__", "")
    elif len(text) > 2 and text[0] == text[-1] in "*_" and text[1].isalnum():
        text = text[1:-1]
    return text.replace("**", "^")


def _without_commands(text: str) -> str:
    out: list[str] = []
    braces: list[bool] = []  # of each open brace: whether it is written
    position = 0
    while position < len(text):
        match = _COMMAND.match(text, position)
        position = match.end()
        piece, name = match[0], match[1]
        if piece == "{":
            braces.append(True)
            out.append("{")
        elif piece == "}":
            out.append("}" if not braces or braces.pop() else " ")
        elif piece == "~":
            out.append(" ")
        elif name is None:
            out.append(piece)
        elif name in _SKIPPED:
            skipped = _SKIP_ARGUMENT.match(text, position)
            position = skipped.end() if skipped else position
        elif name in _WORDS:
            if brace := _TO_BRACE.match(text, position):
                position = brace.end()
                braces.append(False)
            out.append(" ")
        elif name in _TYPE or name in _NOTHING:
            if name in ("left", "right") and text[position : position + 1] == ".":
                position += 1
        elif name in _SPACES:
            out.append(" ")
        elif name in _RENAMED:
            renamed = _RENAMED[name]
            out.append(renamed)
        elif name == "\\" or name in "{}|":
            out.append(piece)
        elif name[:1].isalpha():
            out.append(piece + " ")
        # anything else is a stray backslash
    return "".join(out)
