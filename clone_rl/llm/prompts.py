"""Prompts that ship with the package: four request types from seeded generators, with exact answers.

The splits are disjoint ranges of seeds, and a prompt text that occurs in an earlier split is skipped, so nothing that a
controller is judged on was seen while it was trained.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from clone_rl.envs.trace import SPLITS
from clone_rl.errors import BadValueError, UnknownNameError

RESERVED_PER_KIND = 2_000
"""Prompts of each kind that every split keeps for itself, whether it uses them all or not."""

KINDS = ("story", "arithmetic", "list", "question")
_SPLIT_BASE = {"train": 1_000_000_000, "validation": 2_000_000_000, "test": 3_000_000_000}

_NAMES = ("Anna", "Ben", "Clara", "Dan", "Emma", "Fred", "Grace", "Henry", "Jack", "Kate", "Lucy", "Mary", "Peter", "Rose")
_HE = frozenset({"Ben", "Dan", "Fred", "Henry", "Jack", "Peter"})
_THINGS = ("apple", "ball", "basket", "bell", "book", "cup", "doll", "drum", "hat", "key", "kite", "lamp", "ring", "shoe")
_PLACES = ("barn", "castle", "field", "forest", "garden", "kitchen", "market", "river", "school", "shop")
_ITEMS = ("apples", "buttons", "cakes", "coins", "eggs", "flowers", "marbles", "nuts", "pears", "shells", "stamps")
_ANIMALS = ("bear", "cat", "dog", "duck", "fox", "frog", "goat", "hen", "mouse", "owl", "pony", "rabbit", "squirrel")
_MOODS = ("brave", "clever", "hungry", "jolly", "kind", "little", "lonely", "merry", "old", "sleepy", "tiny", "wise")
_HOMES = ("by the river", "in a little house", "in the deep woods", "near the sea", "on a farm", "under the hill")
_WEATHER = ("cold", "dark", "fine", "hot", "rainy", "snowy", "sunny", "windy")


@dataclass(frozen=True)
class Prompt:
    """One request.

    Attributes:
        kind: Request type, one of ``KINDS``.
        text: What the model is given.
        answer: The exact continuation, with its leading space; empty where there is no single right one (stories).
        seed: Seed that regenerates it.
        split: Split that it is meant for, where it says so.
    """

    kind: str
    text: str
    answer: str
    seed: int
    split: str = ""


def _story(rng: random.Random) -> tuple[str, str]:
    animal, mood, home = rng.choice(_ANIMALS), rng.choice(_MOODS), rng.choice(_HOMES)
    name, other = rng.sample(_NAMES, 2)
    opening = rng.choice(
        (
            f"Once upon a time there was a {mood} {animal} who lived {home}.",
            f"There was once a {mood} old man who lived {home} with his {animal}.",
            f"{name} and {other} were playing {home} when they saw a {mood} {animal}.",
            f'"Oh, what a {mood} {animal}!" cried {name}.',
        )
    )
    turn = rng.choice(
        (
            f" One {rng.choice(_WEATHER)} day",
            f' "Where are you going?" asked {other}.',
            f" Every morning {'he' if name in _HE else 'she'} went to the {rng.choice(_PLACES)},",
            f" One {rng.choice(_WEATHER)} morning the {rng.choice(_ANIMALS)} came to the {rng.choice(_PLACES)} and said,",
        )
    )
    return opening + turn, ""


def _arithmetic(rng: random.Random) -> tuple[str, str]:
    name, other = rng.sample(_NAMES, 2)
    item, have = rng.choice(_ITEMS), rng.randint(2, 40)
    pronoun = "He" if name in _HE else "She"
    sentences, work = [f"{name} has {have} {item}."], []
    for _ in range(rng.randint(1, 3)):
        if have > 3 and rng.random() < 0.5:
            change = rng.randint(1, min(have - 1, 20))
            sentences.append(rng.choice((f"{pronoun} gives {change} to {other}.", f"{pronoun} loses {change}.")))
            work.append(f"{have} - {change} = {have - change}.")
            have -= change
        else:
            change = rng.randint(1, 20)
            sentences.append(rng.choice((f"{pronoun} finds {change} more.", f"{other} brings {change} more.")))
            work.append(f"{have} + {change} = {have + change}.")
            have += change
    question = f"How many {item} does {name} have now?"
    return f"{' '.join(sentences)} {question}\nAnswer:", f" {' '.join(work)} The answer is {have}."


def _list(rng: random.Random) -> tuple[str, str]:
    task = rng.choice(("sort", "biggest", "smallest", "count", "ends", "repeat", "backwards"))
    if task in ("sort", "biggest", "smallest"):
        numbers = rng.sample(range(1, 100), rng.randint(3, 6))
        shown = " ".join(map(str, numbers))
        if task == "sort":
            return f"Sort these numbers: {shown}.\nAnswer:", f" {' '.join(map(str, sorted(numbers)))}."
        best = max(numbers) if task == "biggest" else min(numbers)
        return f"Find the {task} number: {shown}.\nAnswer:", f" {best}."
    words = rng.sample(_THINGS + _PLACES, rng.randint(3, 6))
    shown = " ".join(words)
    if task == "count":
        return f"How many words are here: {shown}?\nAnswer:", f" {len(words)}."
    if task == "ends":
        return f"What are the first and last words: {shown}?\nAnswer:", f" {words[0]} and {words[-1]}."
    if task == "repeat":
        return f"Repeat these words: {shown}.\nAnswer:", f" {shown}."
    return f"Say these words backwards: {shown}.\nAnswer:", f" {' '.join(reversed(words))}."


def _question(rng: random.Random) -> tuple[str, str]:
    count = rng.randint(2, 4)
    people = rng.sample(_NAMES, count)
    things, places = rng.sample(_THINGS, count), rng.sample(_PLACES, count)
    facts, asked = [], []
    for person, thing, place in zip(people, things, places, strict=True):
        if rng.random() < 0.5:
            facts.append(f"{person} has the {thing}.")
            asked.append((f"Who has the {thing}?", f" {person} has the {thing}."))
            asked.append((f"What does {person} have?", f" the {thing}."))
        else:
            facts.append(f"{person} went to the {place}.")
            asked.append((f"Where is {person}?", f" {person} is in the {place}."))
            asked.append((f"Who is in the {place}?", f" {person}."))
    question, answer = rng.choice(asked)
    return f"{' '.join(facts)} {question}\nAnswer:", answer


_GENERATORS: dict[str, Callable[[random.Random], tuple[str, str]]] = {
    "story": _story,
    "arithmetic": _arithmetic,
    "list": _list,
    "question": _question,
}


def make_prompt(kind: str, seed: int) -> Prompt:
    """The prompt of one kind and seed; the same arguments always give the same prompt.

    Raises:
        UnknownNameError: ``kind`` is not one of ``KINDS``.

    >>> make_prompt("list", 7) == make_prompt("list", 7)
    True
    """
    if kind not in _GENERATORS:
        raise UnknownNameError("prompt kind", kind, KINDS)
    text, answer = _GENERATORS[kind](random.Random(f"{kind}:{seed}"))
    return Prompt(kind, text, answer, seed)


def _distinct(kind: str, split: str, seen: set[str]) -> Iterator[Prompt]:
    seed = _SPLIT_BASE[split]
    while True:
        prompt = make_prompt(kind, seed)
        seed += 1
        if prompt.text not in seen:
            seen.add(prompt.text)
            yield prompt


def make_prompts(split: str, per_kind: int) -> list[Prompt]:
    """``per_kind`` distinct prompts of every kind, in a fixed order, disjoint from the other splits.

    Args:
        split: One of ``clone_rl.envs.trace.SPLITS``.
        per_kind: Number of prompts of each kind, > 0.

    Raises:
        UnknownNameError: ``split`` is not one of ``SPLITS``.
        BadValueError: ``per_kind`` is not in 1..``RESERVED_PER_KIND``.

    >>> train, test = ({p.text for p in make_prompts(s, 50)} for s in ("train", "test"))
    >>> len(train), train & test
    (200, set())
    """
    if split not in SPLITS:
        raise UnknownNameError("split", split, SPLITS)
    if not 1 <= per_kind <= RESERVED_PER_KIND:
        raise BadValueError(f"{per_kind} prompts of each kind", f"ask for 1 to {RESERVED_PER_KIND}")
    prompts = []
    for kind in KINDS:
        seen: set[str] = set()
        for earlier in SPLITS[: SPLITS.index(split)]:
            source = _distinct(kind, earlier, seen)
            for _ in range(RESERVED_PER_KIND):
                next(source)
        source = _distinct(kind, split, seen)
        prompts += [next(source) for _ in range(per_kind)]
    return prompts


def reserved_texts() -> frozenset[str]:
    """Texts of every prompt that may be used for control; language-model training must not see them."""
    texts: set[str] = set()
    for kind in KINDS:
        for split in SPLITS:
            source = _distinct(kind, split, texts)
            for _ in range(RESERVED_PER_KIND):
                next(source)
    return frozenset(texts)
