"""Notation in plain form: one spelling for what LaTeX, unicode and prose write in many. Linear in the text's length.

    plain("\\dfrac{1}{2}\\,\\text{ cm}²")  ->  "\\frac{1}{2} cm ^{2}"

What comes out is read by answer.py, prose.py and kinds/: commands that set type or space are gone, `\\text{...}` is its
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

_SPACES = (
    ",", ";", ":", ">", " ", "\n", "\t", "space", "quad", "qquad", "enspace", "thinspace", "medspace", "thickspace",
    "nobreakspace", "enskip", "hfill", "hfil", "newline", "smallskip", "medskip",
)  # fmt: skip
# Sizes and types: of mathematics in another type the mathematics stays.
_NOTHING = (
    "!", "left", "right", "middle", "big", "Big", "bigg", "Bigg", "bigl", "bigr", "Bigl", "Bigr", "biggl", "biggr",
    "Biggl", "Biggr", "displaystyle", "textstyle", "scriptstyle", "limits", "nolimits", "negthinspace", "rm", "bf",
    "it", "sf", "tt", "negmedspace", "large", "Large", "LARGE", "huge", "Huge", "small", "normalsize", "bfseries",
    "itshape", "boldmath", "unboldmath", "nonumber", "notag", "(", ")", "[", "]", "protect", "relax", "/", "-",
    "mathbf", "mathit", "mathnormal", "boldsymbol", "bm", "pmb", "underline", "uline", "fbox", "boxed", "framebox",
    "ensuremath", "mathop", "mathord", "cancel", "bold", "smash", "mathopen", "mathclose", "underbar", "colorbox",
    "mathinner", "oldstylenums", "num", "textbackslash", "checkmark", "square", "blacksquare", "Box", "qed",
)  # fmt: skip
# Commands whose argument is words.
_WORDS = {"text", "textbf", "textit", "textrm", "textsf", "texttt", "textnormal", "textup", "textsc", "textmd", "mbox",
          "hbox", "mathrm", "emph", "textsl", "mathsf", "mathtt", "operatorname", "operatorname*", "si",
          "unit"}  # fmt: skip
# Commands whose first argument is not content.
_SKIPPED = {"hspace", "hspace*", "vspace", "color", "textcolor", "phantom", "hphantom", "vphantom", "tag", "label",
            "kern", "hskip", "rule", "colorbox", "cellcolor"}  # fmt: skip
_RENAMED = {
    **dict.fromkeys(_SPACES, " "), **dict.fromkeys(_NOTHING, ""), **{c: f"\\{c}" for c in ("\\", "{", "}", "|", "")},
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
    "lang": "(", "rang": ")", "arcctg": "\\arccot ", "euler": "e", "forall": " for all ", "surd": "\\sqrt ",
    "textasciitilde": " ", "textasciicircum": "^",
}  # fmt: skip
_COMMAND = re.compile(r"\\([A-Za-z]+\*?|.|$)|\{|\}|~|[^\\{}~]+", re.DOTALL)
_TO_BRACE = re.compile(r"\s*\{")
_SKIP_ARGUMENT = re.compile(r"\s*\*?(?:\{[^{}]{0,40}\}|-?[0-9.]{1,6}(?:pt|em|ex|mu|cm|mm))")
# Applied in this order, before the commands are read.
_FIRST = (
    # Backslashes that were escaped once more; in a matrix \\\\ ends a row.
    (
        r"(?<!\\)\\\\(?=(?:d?frac|sqrt|left|right|text|mathrm|pi|cup|infty|in|leq?|geq?|cdot|times|circ|pm|begin|end)(?![A-Za-z]))",
        r"\\",
    ),
    (r"\\(?:SI|qty)\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"\1 \\text{\2}"),
    (r"\\ang\s*\{([^{}]*)\}", r"\1°"),
    (r"\\[dt]?frac" + r"\s*\{\s*\\(?:text|mathrm)\s*\{([^{}]*)\}\s*\}" * 2, r" \\text{\1/\2}"),
    (r"\\(?:operatorname\*?|mathrm|text)\s*\{\s*((?:arc)?c?tg)\s*\}", r"\\\1 "),
    (r"\\(?:left|right)\.", ""),
)
_THEN = (
    (r"(?<!\\)\{\s*(?:\\[,;:! ]|~)\s*\}", " "),
    (r"(?<!\\)\{\s*\}", ""),
    (r"(?<=[0-9])\s*(?:\{\s*,\s*\}|,\s*\\!)\s*(?=[0-9])", ","),
    (r"\{\s*([,:;=<>+*/-])\s*\}", r"\1"),
    (r"(?<![\\A-Za-z])sqrt\s*([0-9]+(?:\.[0-9]+)?)", r"\\sqrt{\1}"),
)
_LAST = (
    (r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z])|\{\s*°\s*\}|°|\{\s*[oO]\s*\}|\s[oO]\b)", "°"),
    (r"\^\s*(?:\{\s*('[' ]*)\}|('))", lambda m: (m[1] or m[2]).replace(" ", "")),
    (r"\s+", " "),
)
_MATH_DOLLARS = re.compile(r"(?<!\\)\$")


def plain(text: str) -> str:
    """The plain form of an answer; what it does not know stays as it is."""
    if text.isascii() and text.isdigit():
        return text
    text = _rewritten(text, _FIRST) if "\\" in text else text
    text = _RUN_ABOVE.sub(lambda m: "^{" + "".join(map(_SUPERSCRIPTS.get, m[0])) + "}", text)
    text = _RUN_BELOW.sub(lambda m: "_{" + "".join(map(_SUBSCRIPTS.get, m[0])) + "}", text)
    text = _ROOT.sub(lambda m: _ROOTS[m[1]] + (f"{{{m[2]}}}" if m[2] else ""), text)
    text = _rewritten(text.translate(_CHARACTERS), _THEN)
    if len(_MATH_DOLLARS.findall(text)) > 1:  # a single one, or an escaped one, is money
        text = _MATH_DOLLARS.sub(" ", text)
    text = _without_markdown(text.replace("\\$", "$"))
    if "\\" in text or "{" in text or "~" in text:
        text = _without_commands(text)
    return _rewritten(text, _LAST).strip()


def _rewritten(text: str, rules) -> str:
    for pattern, replacement in rules:
        text = re.sub(pattern, replacement, text)
    return text


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
        if piece == "}":
            out.append("}" if not braces or braces.pop() else " ")
        elif name is None:
            braces += [True] if piece == "{" else []
            out.append(" " if piece == "~" else piece)
        elif name in _SKIPPED:
            skipped = _SKIP_ARGUMENT.match(text, position)
            position = skipped.end() if skipped else position
        elif name in _WORDS:
            if brace := _TO_BRACE.match(text, position):
                position = brace.end()
                braces.append(False)
            out.append(" ")
        else:  # anything else that is no word is a stray backslash
            out.append(_RENAMED.get(name, piece + " " if name[:1].isalpha() else ""))
    return "".join(out)
