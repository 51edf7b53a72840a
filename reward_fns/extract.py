"""Where the final answer stands in a model's text. Linear in its length: no regular expression that backtracks.

Rules, the same for every kind: the last answer counts (models correct themselves), one that was taken back or cut
does not, and answers that stand side by side are one answer, a list, which equals a gold answer only if that is the
same list. Listing options wins nothing.
"""

import re

from reward_fns import words

# No honest final answer is longer; OlympiadBench's longest gold answer has 204 characters.
LONGEST_ANSWER = 4096
# Boxes with more than this between them are never one list.
SIDE_BY_SIDE, MOST_BOXES = 70, 100
# What a part of an answer may take.
PART_LENGTH = 400

_OPEN, _CLOSE = "<answer>", "</answer>"
_TAGGED = re.compile(f"{_OPEN}(.*?){_CLOSE}", re.DOTALL)
_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s{0,9}(?:\{|(?=[-0-9\\]))")
_TO_CLOSE = re.compile(r"[^\\{}]{0,100}\}")
_UNBRACED = re.compile(r"[^\s$.,;}]{1,100}")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_MATH = re.compile(r"\\(?:text|mbox|textbf|mathrm)\s*\{|\\(?:quad|qquad|[,;:! ()\[\]])|[${}*~]")
_LEFT_SIDE = re.compile(r"\\?[A-Za-z]\w{0,9}(?:_\{\w{1,9}\})?\s*=[\s$]*$")
# A sentence's end, or a word of one who corrects himself.
_NO_LIST = re.compile(
    r"[.!?:…=\\]|\n\s*\n|</|\b(?:wait|no|not|actually|instead|correct|corrected|correction|rather|sorry|hmm|oops|mistake"
    r"|but|so|thus|therefore|hence|gives?|answer|should|check|recheck|then|again|is|wrong|incorrect|it['’]s)\b",
    re.IGNORECASE,
)
# Whatever words follow, what stands behind these is another answer, and so is what has a label of its own: (b), 2.
_HEDGES = re.compile(
    r"\W*(?:\bor\b(?!\W*(?:rather|actually|better|more))|\band/or\b|(?:alternatively|otherwise|possibly|maybe|perhaps)\b)",
    re.IGNORECASE,
)
_LABEL = re.compile(r"[.,;]?\s*\(?(?:[a-h]|[1-9]|i{1,3}|iv)[.):]", re.IGNORECASE)
# (b), Part 2, Second part, - y: what a part of an answer is called.
_PART = re.compile(
    r"(?:^|(?<=[\s*_#(.]))(?:\(?(?P<letter>[a-h])\)|(?:part|question|problem|answer)\s*\(?(?P<part>[0-9]|[a-h]|i{1,3}|iv)\b\)?"
    r"|(?:the )?(?P<ordinal>first|second|third|fourth|fifth)\s+(?:part|question|answer)"
    r"|(?<=[-*•] )(?P<item>\w{1,20})\s*:)",
    re.IGNORECASE,
)
_ORDINALS = {
    **{letter: i for i, letter in enumerate("abcdefgh", 1)}, **{str(i): i for i in range(10)},
    "first": 1, "second": 2, "third": 3, "fourth": 4, "fifth": 5, "i": 1, "ii": 2, "iii": 3, "iv": 4,
}  # fmt: skip
_JOINS = re.compile(r"[,;&/|]|\b(?:and|or)\b", re.IGNORECASE)
_TAKEN_BACK = re.compile(
    r"(?:\bnot|n['’]t|\bnever|\bneither|\bnor)\s*(?:(?:equal to|equal|be|is|=)\s*)?[$\\(\[*:\s]*$", re.IGNORECASE
)
_ANNOUNCED = re.compile(
    r"\b(?:(?:answer|ans|solution|result)(?:\s+(?:to|of|for)\s+(?:the|this|that|our)\s+\w{1,20})?\**\s*"
    r"(?::|=|\b(?:is|equals|(?:would|should|must|will) be|comes out (?:to|as))\b)|final answer\**\s*\n)",
    re.IGNORECASE,
)
_FINALLY = re.compile(r"final answer is\W{0,5}[-$0-9]", re.IGNORECASE)  # behind the last box
_END = re.compile(r"\.\s+(?=[A-Z*\\\n])|\.?\s*\n|\.\s*$")
# A formula in a text.
SPAN = re.compile(r"\$\$([^$]+)\$\$|(?<!\\)\$([^$]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_JOINED = re.compile(r"\s*(?:,|and|or|, ?and|, ?or)\s*")
_CONCLUDES = re.compile(
    r"[*\s]*(?:so|thus|hence|therefore|finally|consequently|in conclusion|we conclude that|it follows that"
    r"|this (?:gives|means|yields)|we (?:get|have|find|obtain)|in total|altogether|overall)\b[,:]?\s*",
    re.IGNORECASE,
)
_ASSUMES = re.compile(
    r"[*\s]*(?:let|suppose|assume|if|since|when|consider|given|step|see|note|find|where|because|for)\b", re.IGNORECASE
)
_SENTENCES = re.compile(r"(?<=[.!?$])\s+(?=[A-Z$\\])|\n\s*\n|\n(?=[A-Z])")
_NUMBER = re.compile(r"(?<![\w.,])-?(?:[$€£] ?)?(?:[0-9]+(?:[., ][0-9]+)*|\.[0-9]+)(?:/[0-9]+)?(?: ?%)?(?![0-9])")
_COMMANDS, _PROSE = re.compile(r"\\[A-Za-z]+\s*(?:\{[^{}]*\})?"), re.compile(r"[A-Za-z]{2,}")
LONGEST_BARE = 400


# ---- boxes -----------------------------------------------------------------------------------------------------


def contents(text: str) -> list[str] | None:
    """What the last boxes hold, each once: several where they form a list. None if the text has no box; [] if the last
    one is empty, was cut, or is taken back (`not \\boxed{5}`): an earlier one does not stand in for it.
    """
    starts = _starts(text, 2)
    if not starts:
        return None
    last = _span(text, starts[0])
    before = text[max(0, starts[0] - 40) : starts[0]]
    if last is None or not text[slice(*last)].strip() or ("n" in before and _TAKEN_BACK.search(before)):
        return []
    group, first = [last], starts[0]  # of each box where its content begins and ends
    for start in _starts(text, MOST_BOXES)[1:] if len(starts) > 1 else ():
        span = _span(text, start)
        if span is None or span[1] >= first:
            break
        if not _lists(text[span[1] + 1 : first]) and not _are_parts(text, start, span[1], first):
            break
        group.insert(0, span)
        first = start
    return list(dict.fromkeys(text[begin:end].strip() for begin, end in group))


def opens_box(text: str) -> bool:
    """Whether the text ends inside a box: output that was cut in mid-formula."""
    return any(_span(text, start) is None for start in _starts(text, 1))


def last_box_start(text: str) -> int:
    """Where the last box begins; -1 if there is none."""
    return next(iter(_starts(text, 1)), -1)


def _starts(text: str, most: int) -> list[int]:
    """Where the last boxes begin, the last one first."""
    found: list[int] = []
    for name in ("\\boxed", "\\fbox"):
        position, left = text.rfind(name) if name in text else -1, most  # `in` is faster than a search from the end
        while position >= 0 and left:
            if _BOX.match(text, position):
                found.append(position)
                left -= 1
            position = text.rfind(name, 0, position)
    return sorted(found, reverse=True)[:most]


def _span(text: str, start: int) -> tuple[int, int] | None:
    """Where the content of the box that starts at `start` begins and ends; None if it does not end within
    LONGEST_ANSWER."""
    begin = _BOX.match(text, start).end()
    if text[begin - 1] != "{":
        unbraced = _UNBRACED.match(text, begin)
        return (begin, unbraced.end()) if unbraced else None
    if plain := _TO_CLOSE.match(text, begin):  # as most are
        return begin, plain.end() - 1
    depth = 1
    for brace in _BRACE.finditer(text, begin, begin + LONGEST_ANSWER):  # an escaped one is the formula's, not TeX's
        depth += (brace[0] == "{") - (brace[0] == "}")
        if depth == 0:
            return begin, brace.start()
    return None


def _lists(between: str) -> bool:
    """Whether what stands between two boxes makes them a list: nothing, commas, "and", "or", and a few words."""
    if len(between) > SIDE_BY_SIDE:
        return False
    between = _MATH.sub(" ", _LEFT_SIDE.sub("", between)).strip()
    if not between or _HEDGES.match(between) or _LABEL.fullmatch(between):
        return True
    return not _NO_LIST.search(between) and _JOINS.search(between) is not None


def _are_parts(text: str, first: int, end: int, second: int) -> bool:
    """Whether two boxes that begin at `first` and `second` answer one part of a question and the next."""
    if second - end > PART_LENGTH:
        return False
    labels = [list(_PART.finditer(part))[-1:] for part in (text[max(0, first - PART_LENGTH) : first], text[end:second])]
    if [] in labels or labels[0][0].lastgroup != labels[1][0].lastgroup:
        return False
    (kind, a), (_, b) = ((label.lastgroup, label[label.lastgroup].lower()) for (label,) in labels)
    return a != b if kind == "item" else _ORDINALS[b] == _ORDINALS[a] + 1


# ---- tags and announcements ------------------------------------------------------------------------------------


def tagged(text: str) -> str | None:
    """The text in answer tags after the thinking; None without tags, "" for several that differ."""
    closed = _after_thinking(text).rpartition(_CLOSE)
    answers = {answer.strip() for answer in _TAGGED.findall(closed[0] + closed[1])}
    return (answers.pop() if len(answers) == 1 else "") if answers else None


def tagged_or_whole(text: str) -> str:
    """The text in answer tags, or what follows the thinking where there are none (a base model writes no tags)."""
    answer = tagged(text)
    if answer is None:
        answer = "" if in_thinking(text) else _after_thinking(text)
    return answer.strip() if len(answer) <= LONGEST_ANSWER else ""


def tagged_answer(text: str) -> str:
    """The same, or what the boxes in it hold."""
    answer = tagged_or_whole(text)
    return answer if (boxes := contents(answer)) is None else ", ".join(boxes)


def in_thinking(text: str) -> bool:
    """Whether the text ends within its thinking."""
    return "<think>" in text and text.rfind("<think>") > text.rfind("</think>")


def _after_thinking(text: str) -> str:
    return text.rpartition("</think>")[2]


def announced(text: str) -> str | None:
    """What the text says is its answer, in its last sentence that says so; None if none does."""
    found = list(_ANNOUNCED.finditer(text, max(0, len(text) - LONGEST_ANSWER)))
    if not found:
        return None
    rest = text[found[-1].end() :][:400].lstrip(" \n*:")
    for opening, closing in (("\\[", "\\]"), ("$$", "$$")):
        if rest.startswith(opening):
            return rest[2:].partition(closing)[0].strip()
    return _END.split(rest)[0].strip().strip("*").strip()


def final(text: str, boxes_in_thinking: bool = False) -> str | None:
    """The final answer of a text in mathematics: its box, tags, `####` or announcement; None if it has none of them.

    What follows the thinking comes first. Boxes that form a list are joined by commas.
    """
    thinking, _, after = text.rpartition("</think>")
    answer = _final(after) if boxes_in_thinking or not in_thinking(text) else None
    if answer is None and thinking and boxes_in_thinking:
        answer = _final(thinking)
    return "" if answer and len(answer) > LONGEST_ANSWER else answer


def _final(part: str) -> str | None:
    tag = part.rfind(_OPEN) if _OPEN in part else -1  # a search from the end is slow
    if not (tag >= 0 and _CLOSE in part[tag:] and tag > last_box_start(part)) and (boxes := contents(part)) is not None:
        last = _FINALLY.search(part, last_box_start(part))
        return (last and announced(part[last.start() :])) or ", ".join(boxes)
    if tag >= 0 and _CLOSE in part:
        return tagged(part)
    mark = part.rfind("####")
    if mark >= 0 and (line := part[mark + 4 : mark + 400].strip().partition("\n")[0]):
        return line
    return announced(part)


def bare(text: str, last_formula: bool = False) -> list[str]:
    """What may be the answer of a text without box, tags, `####` and announcement, the likeliest first: the text
    itself, what its last sentence concludes, and with `last_formula` the last formula or number of any text."""
    text = "" if in_thinking(text) else _after_thinking(text).strip()[-LONGEST_ANSWER:]
    sentences, spans = _SENTENCES.split(text), list(SPAN.finditer(text))
    found, last = [], sentences[-1].strip()
    concludes = _CONCLUDES.match(last)
    stated = last[concludes.end() :] if concludes else last
    if len(last) <= LONGEST_BARE and not _ASSUMES.match(stated):
        if not concludes:
            joined = not spans or _from_span(text, spans) == text[spans[0].start() : spans[-1].end()]
            found += [text] if joined and len(sentences) == 1 else []
        elif not words.hedged(SPAN.sub(" ", stated)):
            found.append(_from_span(stated, list(SPAN.finditer(stated))) or stated)
    if last_formula:
        numbers = [m[0] for m in _NUMBER.finditer(text, spans[-1].end() if spans else 0)]
        ends = [*numbers[-1:], _from_span(text, spans)]
        found = found + ends if not _PROSE.search(_COMMANDS.sub("", text)) else ends + found
    return [candidate for candidate in found if candidate.strip()]


def _from_span(text: str, spans: list[re.Match]) -> str:
    """The last formula, with those that it is joined to: `$3$ and $4$`; "" if there is none."""
    first = len(spans) - 1
    while first > 0 and _JOINED.fullmatch(text, spans[first - 1].end(), spans[first].start()):
        first -= 1
    return text[spans[first].start() : spans[-1].end()] if spans else ""


def looks_cut(text: str) -> bool:
    """Whether the text stops before it is done: in a box, in the thinking or in the answer tags."""
    return opens_box(text) or in_thinking(text) or (_OPEN in text and text.rfind(_OPEN) > text.rfind(_CLOSE))


def showable(answer: str, most: int = 200) -> str:
    """An extracted answer for logs: at most `most` characters, storable anywhere (no lone surrogates, no null
    bytes)."""
    return answer[:most].encode("utf-8", "replace").decode("utf-8").replace("\0", "\ufffd")
