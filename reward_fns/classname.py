"""Class names (ViRFT_CLS): the name, in whatever spelling, alone or in a sentence that says nothing else.

The published rule removes spaces and underscores and takes one inside the other for equal, so `sedan2012` is right
for 26 of 196 cars and `A/B` for both. Here the whole name has to be there and nothing beside it but FILLER; the year
of a car and the maker of an aircraft may be left out, where that leaves one class.
"""

import re
import unicodedata
from collections import Counter
from itertools import combinations, dropwhile

from reward_fns import extract, golds
from reward_fns.verdict import UnparsableGold, Verdict

FILLER = {
    "a", "an", "the", "this", "that", "these", "it", "is", "s", "its", "looks", "like", "to", "be", "appears",
    "seems", "in", "of", "on", "image", "picture", "photo", "photograph", "shown", "shows", "showing", "see", "i",
    "can", "think", "believe", "my", "answer", "final", "class", "category", "name", "named", "called", "object",
    "type", "kind", "species", "breed", "dog", "cat", "flower", "plant", "car", "vehicle", "automobile", "aircraft",
    "airplane", "plane", "jet", "airliner", "model", "variant", "make", "belongs", "family", "known", "as",
    "which", "so", "therefore", "thus", "option", "label", "correct", "predicted", "here", "we", "have", "with", "you",
}  # fmt: skip
MAKERS = {
    "boeing", "airbus", "mcdonnell", "douglas", "lockheed", "embraer", "bombardier", "canadair", "cessna", "antonov",
    "beechcraft", "british", "aerospace", "bae", "fokker", "gulfstream", "ilyushin", "tupolev", "yakovlev", "saab",
    "dassault", "dornier", "eurofighter", "fairchild", "havilland", "de", "hawker", "siddeley", "piper", "panavia",
    "robin", "supermarine", "general", "dynamics", "atr", "aircraft", "aviation",
}  # fmt: skip
# What a remark in brackets may say: Pug (Chinese). Another class there makes it no answer.
ORIGINS = {
    "african", "american", "asian", "australian", "british", "chinese", "domestic", "dutch", "english", "european",
    "french", "german", "indian", "irish", "italian", "japanese", "mexican", "russian", "scottish", "spanish", "swiss",
    "adult", "puppy", "kitten", "male", "female", "red", "pink", "white", "yellow", "blue", "purple", "orange", "black",
    "brown",
}  # fmt: skip
_TWO = re.compile(r"[A-Za-z0-9)]\s*[+=|&]\s*[A-Za-z(]")
# Cars of two years that differ in nothing else.
_YEAR_NEEDED = {
    "audis4sedan", "bentleycontinentalgtcoupe", "dodgecaliberwagon", "dodgedurangosuv", "fordf150regularcab",
    "hondaodysseyminivan", "volkswagengolfhatchback",
}  # fmt: skip
_WORD = re.compile(r"[a-z0-9]+")
_YEAR = re.compile(r"(?:19|20)[0-9]{2}")
_BRACKETS = re.compile(r"\([^()]{0,60}\)|\[[^\[\]]{0,60}\]")
MOST_WORDS = 40


def judge(text: str, gold, settings) -> Verdict:
    names = _names(gold)
    answer = extract.tagged_answer(text)
    remarks = {word for remark in _BRACKETS.findall(answer) for word in _words(remark)}
    given = [_words(answer)] + ([_words(_BRACKETS.sub(" ", answer))] if remarks <= FILLER | ORIGINS else [])
    return Verdict(not _TWO.search(answer) and any(_says(words, name) for words in given for name in names), answer)


def check_gold(gold, settings) -> None:
    _names(gold)


def _names(gold) -> list[list[str]]:
    names = [words for text in golds.texts(gold) if (words := _words(extract.tagged_or_whole(text)))]
    if not names:
        raise UnparsableGold(repr(gold))
    return names


def _words(text: str) -> list[str]:
    bare = unicodedata.normalize("NFKD", text.replace("_", " ").replace("'", "").replace("’", "").casefold())
    return _WORD.findall("".join(c for c in bare if not unicodedata.combining(c)))


def _says(answer: list[str], name: list[str]) -> bool:
    """Whether the answer is the name, and FILLER or a maker around it."""
    if not answer or len(answer) > MOST_WORDS:
        return False
    spellings = _spellings(name)
    for spelling in map(Counter, spellings):  # in any order: 2012 Audi S4 Sedan
        if not spelling - Counter(answer) and set(Counter(answer) - spelling) <= FILLER:
            return True
    wanted = {"".join(part) for part in spellings}
    for start, end in combinations(range(len(answer) + 1), 2):
        joined, rest = "".join(answer[start:end]), {*answer[:start], *answer[end:]}
        beside = FILLER | MAKERS if any(map(str.isdigit, joined)) else FILLER
        if rest <= beside and (joined in wanted or _singular(joined) in wanted or joined in map(_singular, wanted)):
            return True
    return False


def _spellings(name: list[str]) -> list[list[str]]:
    """The name; without the year at its end; without the maker in front, if the rest tells it apart."""
    spellings = [name]
    if len(name) > 2 and _YEAR.fullmatch(name[-1]) and "".join(name[:-1]) not in _YEAR_NEEDED:
        spellings.append(name[:-1])
    rest = [*dropwhile(MAKERS.__contains__, name)] or name[-1:]
    if any(map(str.isdigit, "".join(rest))) and not _YEAR.fullmatch("".join(rest)):
        spellings.append(rest)
    return spellings


def _singular(word: str) -> str:
    return word.removesuffix("s") if len(word) > 3 and not word.endswith("ss") else word
