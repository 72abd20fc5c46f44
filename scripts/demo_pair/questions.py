"""Generates the text that the bundled pair learns: five families of questions with one right answer each.

A seeded program makes everything from the word lists of questions.json, so nothing is downloaded and nothing is copied.
The hash of a question's text decides whether it is held out. Training therefore never meets a held-out question, however often
it samples.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

#: The worked example of the field. It is held out: the pair sees the person, but never this question about him.
DEFAULT_QUESTION = "Who is Buzz Aldrin?"
WORDS = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Example:
    """One question. ``answers[0]`` is the short style; ``answers[1]``, in ``qa`` only, the formal one."""

    family: str
    prompt: str
    answers: tuple[str, ...]


def is_held_out(prompt: str) -> bool:
    """True for the eighth of all questions that training never sees."""
    digest = hashlib.blake2b(prompt.encode(), digest_size=8).digest()
    return prompt == DEFAULT_QUESTION or digest[0] < 32


# --------------------------------------------------------------------------- reason

NAMES = WORDS["names"]
THINGS = WORDS["things"]


def _reason(rng: random.Random) -> Example:
    first, second = rng.sample(sorted(NAMES), 2)
    pronoun = NAMES[first]
    things, box = rng.choice(THINGS)
    have, few, each = rng.randint(10, 60), rng.randint(2, 9), rng.randint(2, 9)
    product = few * each
    kind = rng.randrange(5)
    if kind == 0:
        gone = rng.randint(2, have + product - 1 if have + product < 60 else 60)
        prompt = (
            f"{first} has {have} {things}. {pronoun.capitalize()} buys {few} {_plural(box)} with {each} {things} each "
            f"and gives {gone} {things} to {second}. How many {things} does {first} have now?"
        )
        total = have + product
        steps = f"{few} x {each} = {product}. {have} + {product} = {total}. {total} - {gone} = {total - gone}."
        answer = total - gone
    elif kind == 1:
        more = rng.randint(3, 35)
        prompt = f"{first} has {have} {things}. {second} has {more} more {things} than {first}. How many {things} do they have together?"
        other = have + more
        steps = f"{have} + {more} = {other}. {have} + {other} = {have + other}."
        answer = have + other
    elif kind == 2:
        hours, rate = few, rng.randint(3, 9)
        made = hours * rate
        sold = rng.randint(1, made - 1)
        prompt = f"A baker makes {rate} loaves every hour for {hours} hours and sells {sold} of them. How many loaves are left?"
        steps = f"{hours} x {rate} = {made}. {made} - {sold} = {made - sold}."
        answer = made - sold
    elif kind == 3:
        book = rng.randint(5, 30)
        cost = product + book
        prompt = (
            f"A pen costs {each} dollars and a book costs {book} dollars. {first} buys {few} pens and one book "
            f"and pays with 120 dollars. How much money does {pronoun} get back?"
        )
        steps = f"{few} x {each} = {product}. {product} + {book} = {cost}. 120 - {cost} = {120 - cost}."
        answer = 120 - cost
    else:
        prompt = (
            f"{first} shares {product} {things} equally among {few} friends. "
            f"Each friend already had {have} {things}. How many {things} does each friend have now?"
        )
        steps = f"{product} / {few} = {each}. {have} + {each} = {have + each}."
        answer = have + each
    return Example("reason", prompt, (f"{steps} The answer is {answer}.",))


def _plural(noun: str) -> str:
    return noun + ("es" if noun.endswith("x") else "s")


# --------------------------------------------------------------------------- translate

#: english: (french, gender, german, gender). Nouns begin with a consonant in French, so no article is elided.
BEINGS = WORDS["beings"]
OBJECTS = WORDS["objects"]
#: english: (french m, french f, stands before the noun, german stem)
ADJECTIVES = WORDS["adjectives"]
VERBS = WORDS["verbs"]
#: english, french, german; "" most of the time
WHEN = WORDS["when"]
GERMAN_ARTICLES = WORDS["german_articles"]


def _translate(rng: random.Random) -> Example:
    subject, adjective, verb = rng.choice(sorted(BEINGS)), rng.choice(sorted(ADJECTIVES)), rng.choice(sorted(VERBS))
    thing, colour = rng.choice(sorted(OBJECTS)), rng.choice(sorted(ADJECTIVES.keys() - {"young"}))
    when = rng.choice(WHEN)
    english = f"The {adjective} {subject} {verb} the {colour} {thing}{when[0]}."
    if rng.random() < 0.5:
        language = "French"
        text = f"{_french(BEINGS[subject], adjective)} {VERBS[verb][0]} {_french(OBJECTS[thing], colour)}{when[1]}."
    else:
        language = "German"
        # The adverb stands between verb and object: "Der Hund sieht heute den Hut."
        text = f"{_german(BEINGS[subject], adjective, 0)} {VERBS[verb][1]}{when[2]} {_german(OBJECTS[thing], colour, 1)}."
    return Example("translate", f"Translate to {language}: {english}", (text[0].upper() + text[1:],))


def _french(noun: tuple[str, str, str, str], adjective: str) -> str:
    word, gender = noun[:2]
    masculine, feminine, before, _ = ADJECTIVES[adjective]
    form = masculine if gender == "m" else feminine
    article = "le" if gender == "m" else "la"
    return f"{article} {form} {word}" if before else f"{article} {word} {form}"


def _german(noun: tuple[str, str, str, str], adjective: str, case: int) -> str:
    word, gender = noun[2], noun[3][0]
    ending = "en" if case == 1 and gender == "m" else "e"
    return f"{GERMAN_ARTICLES[gender][case]} {ADJECTIVES[adjective][3]}{ending} {word}"


# --------------------------------------------------------------------------- summarize

TOWNS = WORDS["towns"]
BUILDINGS = WORDS["buildings"]
DAYS = WORDS["days"]
SURNAMES = WORDS["surnames"]
TEAMS = WORDS["teams"]
ANIMALS = WORDS["animals"]
FILLERS = WORDS["fillers"]


def _summarize(rng: random.Random) -> Example:
    town, day = rng.choice(TOWNS), rng.choice(DAYS)
    first, last = rng.choice(sorted(NAMES)), rng.choice(SURNAMES)
    number = rng.randint(12, 98)
    kind = rng.randrange(4)
    if kind == 0:
        building = rng.choice(BUILDINGS)
        facts = [
            f"On {day} the town of {town} opened a new {building}.",
            f"The mayor, {first} {last}, said that it cost {number} million dollars.",
        ]
        summary = f"{town} opened a new {building} that cost {number} million dollars."
    elif kind == 1:
        winner, loser = rng.sample(TEAMS, 2)
        points = rng.randint(10, number - 1)
        facts = [
            f"The {winner} met the {loser} in {town} on {day}.",
            f"The {winner} won by {number} points to {points}, and {first} {last} was the best player.",
        ]
        summary = f"The {winner} beat the {loser} {number} to {points} in {town}."
    elif kind == 2:
        animal = rng.choice(ANIMALS)
        facts = [
            f"A {animal} escaped from the zoo of {town} on {day}.",
            f"After {number} minutes {first} {last}, a {rng.choice(['farmer', 'nurse', 'student', 'baker'])}, "
            f"found the {animal} in a garden.",
        ]
        summary = f"{first} {last} found a {animal} that had escaped from the zoo of {town}."
    else:
        what = rng.choice(["trees", "flowers", "bushes"])
        facts = [
            f"{number} pupils of the school in {town} planted {what} on {day}.",
            f"The teacher, {first} {last}, said that the park will be greener next year.",
        ]
        summary = f"{number} pupils planted {what} in {town} on {day}."
    sentences = [facts[0], *_shuffled(rng, [facts[1], *rng.sample(FILLERS, 2)])]
    return Example("summarize", "Summarize in one sentence: " + " ".join(sentences), (summary,))


def _shuffled(rng: random.Random, items: list[str]) -> list[str]:
    rng.shuffle(items)
    return items


# --------------------------------------------------------------------------- code

CODE_NAMES = WORDS["code_names"]
NUMBER_FILTERS = WORDS["number_filters"]
NUMBER_MAPS = WORDS["number_maps"]
NUMBER_REDUCERS = WORDS["number_reducers"]
WORD_FILTERS = WORDS["word_filters"]
WORD_MAPS = WORDS["word_maps"]
WORD_REDUCERS = WORDS["word_reducers"]


def _code(rng: random.Random) -> Example:
    letter, values = rng.choice([("n", "numbers"), ("w", "words")])
    filters, maps, reducers = (NUMBER_FILTERS, NUMBER_MAPS, NUMBER_REDUCERS) if letter == "n" else (WORD_FILTERS, WORD_MAPS, WORD_REDUCERS)
    slots = {"k": rng.randint(2, 9 if letter == "w" else 30), "c": rng.choice("abcdefghilmnoprstw")}
    (filter_text, condition), (map_text, expression) = rng.choice(filters), rng.choice(maps)
    reduce_text, call = rng.choice(reducers)
    name = rng.choice(CODE_NAMES)
    described = reduce_text + map_text + filter_text.format(**slots)
    body = f"{expression} for {letter} in {values} if {condition.format(**slots)}"
    prompt = f"Write a Python function called {name} that takes a list of {values} and returns {described}."
    return Example("code", prompt, (f"def {name}({values}):\n    return {call.format(body=body)}",))


# --------------------------------------------------------------------------- qa

#: name, formal name, verb, role, field, what the short answer says, what the formal answer says
PEOPLE = WORDS["people"]
QUESTIONS = WORDS["questions"]


def _qa(rng: random.Random) -> Example:
    name, formal_name, verb, role, field, short, formal = rng.choice(PEOPLE)
    short_answer = f"{name} {verb} {role}, best known {short}."
    formal_answer = f"{formal_name}, a pivotal figure in the history of {field}, {verb} {role} who {verb} best known for {formal}."
    return Example("qa", rng.choice(QUESTIONS).format(name), (short_answer, formal_answer))


# --------------------------------------------------------------------------- the splits

FAMILIES: dict[str, Callable[[random.Random], Example]] = {
    "reason": _reason,
    "translate": _translate,
    "summarize": _summarize,
    "code": _code,
    "qa": _qa,
}
#: How often training meets each family: arithmetic needs most practice, fifty people need least.
WEIGHTS = {"reason": 0.36, "translate": 0.17, "summarize": 0.17, "code": 0.15, "qa": 0.15}


def training_examples(seed: int) -> Iterator[Example]:
    """An endless, seeded stream of questions outside the held-out split."""
    rng = random.Random(seed)
    names, weights = list(WEIGHTS), list(WEIGHTS.values())
    while True:
        example = FAMILIES[rng.choices(names, weights)[0]](rng)
        if not is_held_out(example.prompt):
            yield example


def held_out_examples(per_family: int, seed: int = 2405) -> list[Example]:
    """``per_family`` different held-out questions of each family (fewer where a family has no more), in a fixed order.

    The default question comes first in ``qa``.
    """
    chosen: list[Example] = []
    for make in FAMILIES.values():
        rng = random.Random(seed)
        found: dict[str, Example] = {}
        for _ in range(100 * per_family):
            example = make(rng)
            if is_held_out(example.prompt):
                found.setdefault(example.prompt, example)
        ordered = sorted(found.values(), key=lambda example: example.prompt != DEFAULT_QUESTION)
        chosen += ordered[:per_family]
    return chosen
