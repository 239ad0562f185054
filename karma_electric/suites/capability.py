"""The items of the capability suite, made by rule: short questions with one right answer among four.

    python -m karma_electric.suites.capability data/suites/capability.jsonl

They measure what a cap costs, not how clever a model is; so they are many, short, and of many kinds.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from karma_electric.canonical import write_json_lines

ITEMS_PER_KIND = 40
OPTIONS = 4
_SEED = 41

_OPPOSITES = (
    "hot cold, early late, full empty, wet dry, loud quiet, heavy light, thick thin, deep shallow, "
    "sharp blunt, rich poor, open closed, fast slow, wide narrow, old young, strong weak, clean dirty, "
    "sweet bitter, safe dangerous, cheap expensive, tight loose, rough smooth, brave timid, polite rude, "
    "awake asleep, above below, always never, arrive leave, begin end, buy sell, build destroy, "
    "remember forget, win lose, push pull, lend borrow, praise blame, hide show, rise fall, laugh cry, "
    "gather scatter, accept refuse"
)
_KINDS_OF_THINGS = {
    "a fruit": "apple pear plum cherry peach apricot grape melon fig quince",
    "a tool": "hammer chisel pliers wrench screwdriver saw drill rasp mallet spanner",
    "a bird": "sparrow heron robin swallow owl magpie pigeon stork finch crow",
    "a vehicle": "tractor bicycle tram lorry ferry scooter wagon canoe bus taxi",
    "a piece of clothing": "scarf mitten jacket sock trousers apron cardigan skirt vest hat",
    "a metal": "iron copper silver lead tin gold zinc nickel chromium platinum",
    "a part of the body": "elbow ankle shoulder wrist knee forehead heel thumb chin hip",
    "a musical instrument": "violin trumpet drum flute cello oboe harp guitar piano clarinet",
}
_ORDERED = {
    "day": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
    "month": "January February March April May June July August September October November December",
}
_NAMES = (
    "Anna Ben Clara David Eva Filip Greta Hugo Ivana Jonas Klara Leo Marta Nils Olga Pavel Rosa Simon Tereza Viktor"
)
_COMPARED = (("taller", "tallest", "shortest"), ("older", "oldest", "youngest"), ("faster", "fastest", "slowest"))
_PLURALS = (
    "child children, mouse mice, foot feet, tooth teeth, goose geese, man men, woman women, person people, "
    "leaf leaves, knife knives, wolf wolves, half halves, life lives, shelf shelves, thief thieves, "
    "loaf loaves, wife wives, calf calves, city cities, baby babies, story stories, berry berries, "
    "party parties, lady ladies, box boxes, bus buses, dish dishes, church churches, glass glasses, "
    "potato potatoes, tomato tomatoes, hero heroes, ox oxen, cherry cherries, louse lice, army armies, "
    "fly flies, penny pennies, brush brushes, wish wishes"
)
_PAST = (
    "go went, see saw, eat ate, take took, give gave, write wrote, speak spoke, break broke, choose chose, "
    "drive drove, fall fell, fly flew, grow grew, know knew, throw threw, wear wore, begin began, drink drank, "
    "ring rang, sing sang, swim swam, run ran, come came, find found, hold held, keep kept, leave left, "
    "lose lost, make made, meet met, pay paid, say said, sell sold, send sent, sit sat, sleep slept, "
    "stand stood, teach taught, tell told, think thought"
)


def capability_items() -> list[dict[str, Any]]:
    """The rows of the suite, always the same."""
    rows = []
    for category, make in _MAKERS.items():
        chance = random.Random(f"{_SEED} {category}")  # noqa: S311 - the same items every time
        seen: set[str] = set()
        while len(seen) < ITEMS_PER_KIND:
            question, right, others = make(chance)
            if question in seen:
                continue
            seen.add(question)
            wrong = [other for other in dict.fromkeys(others) if other != right][: OPTIONS - 1]
            options = [right, *wrong]
            chance.shuffle(options)
            rows.append(
                {"category": category, "question": question, "options": options, "answer": options.index(right)}
            )
    return [{"id": f"capability-{number:03}", "suite": "capability", **row} for number, row in enumerate(rows, 1)]


Made = tuple[str, str, Sequence[str]]  # the question, the right answer, and wrong ones, the best first
Maker = Callable[[random.Random], Made]


def _near(right: int, chance: random.Random) -> list[str]:
    """Wrong numbers near the right one, none negative."""
    steps = [1, -1, 2, -2, 10, -10, 11, 5]
    chance.shuffle(steps)
    return [str(right + step) for step in steps if right + step >= 0]


def _sum(chance: random.Random) -> Made:
    left, right = chance.randint(2, 60), chance.randint(2, 39)
    return f"What is {left} plus {right}?", str(left + right), _near(left + right, chance)


def _difference(chance: random.Random) -> Made:
    right, rest = chance.randint(2, 39), chance.randint(1, 50)
    return f"What is {right + rest} minus {right}?", str(rest), _near(rest, chance)


def _product(chance: random.Random) -> Made:
    left, right = chance.randint(2, 12), chance.randint(2, 9)
    return f"What is {left} times {right}?", str(left * right), _near(left * right, chance)


def _sequence(chance: random.Random) -> Made:
    start, step = chance.randint(1, 20), chance.choice([2, 3, 4, 5, 6, 7, 10])
    shown = ", ".join(str(start + step * place) for place in range(4))
    return f"Which number comes next: {shown}?", str(start + step * 4), _near(start + step * 4, chance)


def _largest(chance: random.Random) -> Made:
    numbers = chance.sample(range(11, 999), OPTIONS)
    word, pick = chance.choice([("largest", max), ("smallest", min)])
    shown = ", ".join(map(str, numbers))
    return f"Which of these numbers is the {word}: {shown}?", str(pick(numbers)), [str(number) for number in numbers]


def _calendar(chance: random.Random) -> Made:
    kind = chance.choice(sorted(_ORDERED))
    names = _ORDERED[kind].split()
    place, ahead = chance.randrange(len(names)), chance.choice([1, -1, 2])
    words = {1: "comes right after", -1: "comes right before", 2: "comes two after"}[ahead]
    right = names[(place + ahead) % len(names)]
    others = [name for name in names if name not in (right, names[place])]
    chance.shuffle(others)
    return f"Which {kind} {words} {names[place]}?", right, others


def _opposite(chance: random.Random) -> Made:
    pairs = _pairs(_OPPOSITES)
    word, right = chance.choice(pairs)
    others = [other for pair in chance.sample(pairs, 4) for other in pair if other not in (word, right)]
    return f'What is the opposite of "{word}"?', right, others


def _kind_of_thing(chance: random.Random) -> Made:
    kind = chance.choice(sorted(_KINDS_OF_THINGS))
    right = chance.choice(_KINDS_OF_THINGS[kind].split())
    others = [chance.choice(_KINDS_OF_THINGS[other].split()) for other in chance.sample(sorted(_KINDS_OF_THINGS), 5)
              if other != kind]  # fmt: skip
    shown = sorted([right, *others[: OPTIONS - 1]])
    return f"Which of these is {kind}: {', '.join(shown)}?", right, others


def _order(chance: random.Random) -> Made:
    more, most, least = chance.choice(_COMPARED)
    first, second, third = chance.sample(_NAMES.split(), 3)
    word, right = chance.choice([(most, first), (least, third)])
    text = f"{first} is {more} than {second}, and {second} is {more} than {third}. Who is the {word}?"
    return text, right, [name for name in (second, first, third, "Nobody") if name != right]


def _form(chance: random.Random) -> Made:
    table, words = chance.choice([(_PLURALS, "the plural"), (_PAST, "the simple past")])
    word, right = chance.choice(_pairs(table))
    made_up = [f"{word}s", f"{word}ed", f"{word}es", f"{word}en", f"{word}"]
    return f'What is {words} of "{word}"?', right, made_up


def _pairs(table: str) -> list[tuple[str, str]]:
    return [(first, second) for first, second in (pair.split() for pair in table.split(","))]


_MAKERS: dict[str, Maker] = {
    "sums": _sum,
    "differences": _difference,
    "products": _product,
    "sequences": _sequence,
    "sizes": _largest,
    "calendar": _calendar,
    "opposites": _opposite,
    "kinds-of-things": _kind_of_thing,
    "order": _order,
    "word-forms": _form,
}


if __name__ == "__main__":
    Path(sys.argv[1]).write_bytes(write_json_lines(capability_items()))
