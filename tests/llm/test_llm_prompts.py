import os
import re
import subprocess
import sys

import pytest

from clone_rl.errors import BadValueError, UnknownNameError
from clone_rl.llm.prompts import KINDS, RESERVED_PER_KIND, SPLITS, make_prompt, make_prompts, reserved_texts

SEEDS = range(400)


@pytest.fixture(scope="module")
def reserved():
    return reserved_texts()


@pytest.fixture(scope="module")
def by_split():
    return {split: make_prompts(split, RESERVED_PER_KIND) for split in SPLITS}


@pytest.mark.parametrize("kind", KINDS)
def test_splits_share_no_prompt_even_when_all_are_used(by_split, kind):
    texts = {split: [p.text for p in prompts if p.kind == kind] for split, prompts in by_split.items()}
    sets = [set(t) for t in texts.values()]
    assert all(len(t) == len(set(t)) == RESERVED_PER_KIND for t in texts.values())
    assert len(sets[0] | sets[1] | sets[2]) == 3 * RESERVED_PER_KIND


def test_every_prompt_that_a_split_may_use_is_reserved(by_split, reserved):
    assert {p.text for prompts in by_split.values() for p in prompts} == reserved


def test_training_templates_are_not_all_reserved(reserved):
    fresh = [make_prompt(kind, seed).text not in reserved for kind in KINDS[1:] for seed in range(200)]
    assert sum(fresh) > 0.5 * len(fresh)


def test_a_shorter_set_is_the_start_of_a_longer_one_in_a_fixed_order(by_split):
    for split in SPLITS:
        short = make_prompts(split, 3)
        assert [p.kind for p in short] == [kind for kind in KINDS for _ in range(3)]
        longer = {kind: [p for p in by_split[split] if p.kind == kind][:3] for kind in KINDS}
        assert short == [p for kind in KINDS for p in longer[kind]]


def test_prompts_can_be_regenerated_from_their_kind_and_seed(by_split):
    for split in SPLITS:
        assert all(make_prompt(p.kind, p.seed) == p for p in by_split[split][:: RESERVED_PER_KIND // 40])


def test_prompts_do_not_depend_on_the_hash_seed_of_the_process():
    code = "from clone_rl.llm.prompts import *; print(repr([make_prompt(k, s) for k in KINDS for s in range(20)]))"
    outputs = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert outputs[0] == outputs[1] == repr([make_prompt(k, s) for k in KINDS for s in range(20)]) + "\n"


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_of_a_kind_vary(kind):
    assert len({make_prompt(kind, seed).text for seed in SEEDS}) > 0.9 * len(SEEDS)


def test_stories_have_no_single_right_answer_and_the_others_do():
    for seed in SEEDS:
        assert make_prompt("story", seed).answer == ""
        for kind in KINDS[1:]:
            prompt = make_prompt(kind, seed)
            assert prompt.text.endswith("\nAnswer:")
            assert prompt.answer.startswith(" ")
            assert prompt.answer.endswith(".")


def count_of(text):
    """What a reader of an arithmetic problem would count, with each step on the way."""
    story = text.partition("\nAnswer:")[0]
    *facts, question = re.split(r"(?<=[.?]) ", story)
    first = re.fullmatch(r"(\w+) has (\d+) (\w+)\.", facts[0])
    total, steps = int(first[2]), []
    for fact in facts[1:]:
        change = int(re.search(r"\d+", fact)[0])
        sign = {"gives": -1, "loses": -1, "finds": 1, "brings": 1}[fact.split()[1]]
        steps.append((total, sign, change, total + sign * change))
        total += sign * change
    assert re.fullmatch(rf"How many {first[3]} does {first[1]} have now\?", question)
    return total, steps


def test_arithmetic_answers_are_right_with_every_step_on_the_way():
    signs = set()
    for seed in SEEDS:
        prompt = make_prompt("arithmetic", seed)
        total, steps = count_of(prompt.text)
        work, _, said = prompt.answer.partition(" The answer is ")
        equations = re.findall(r"(\d+) ([+-]) (\d+) = (\d+)\.", work)
        assert [(int(a), {"+": 1, "-": -1}[op], int(b), int(c)) for a, op, b, c in equations] == steps
        assert said == f"{total}."
        assert total >= 0
        signs |= {step[1] for step in steps}
    assert signs == {1, -1}


def answer_of_list(text):
    """What a reader of a list task would answer."""
    task, _, rest = text.removesuffix("\nAnswer:").partition(": ")
    items = rest.rstrip(".?").split()
    if task == "Sort these numbers":
        return " ".join(sorted(items, key=int))
    if task.startswith("Find the"):
        numbers = [int(item) for item in items]
        return str({"Find the biggest number": max, "Find the smallest number": min}[task](numbers))
    return {
        "How many words are here": str(len(items)),
        "What are the first and last words": f"{items[0]} and {items[-1]}",
        "Repeat these words": " ".join(items),
        "Say these words backwards": " ".join(items[::-1]),
    }[task]


def test_list_answers_are_right_for_all_seven_tasks():
    tasks = set()
    for seed in SEEDS:
        prompt = make_prompt("list", seed)
        assert prompt.answer == f" {answer_of_list(prompt.text)}."
        tasks.add(prompt.text.partition(":")[0])
    assert len(tasks) == 7


def answer_of_question(text):
    """What a reader of a few facts would answer to the question after them."""
    story = text.removesuffix("\nAnswer:")
    has = dict(re.findall(r"(\w+) has the (\w+)\.", story))
    went = dict(re.findall(r"(\w+) went to the (\w+)\.", story))
    question = story.rpartition(". ")[2]
    if found := re.fullmatch(r"Who has the (\w+)\?", question):
        (person,) = [p for p, thing in has.items() if thing == found[1]]
        return f"{person} has the {found[1]}."
    if found := re.fullmatch(r"What does (\w+) have\?", question):
        return f"the {has[found[1]]}."
    if found := re.fullmatch(r"Where is (\w+)\?", question):
        return f"{found[1]} is in the {went[found[1]]}."
    found = re.fullmatch(r"Who is in the (\w+)\?", question)
    (person,) = [p for p, place in went.items() if place == found[1]]
    return f"{person}."


def test_questions_are_answered_by_exactly_one_of_the_facts():
    for seed in SEEDS:
        prompt = make_prompt("question", seed)
        assert prompt.answer == f" {answer_of_question(prompt.text)}"


def test_an_unknown_kind_is_refused_with_a_suggestion():
    with pytest.raises(UnknownNameError, match=r"unknown prompt kind 'arithmetics'.*did you mean 'arithmetic'"):
        make_prompt("arithmetics", 0)


def test_an_unknown_split_is_refused_with_a_suggestion():
    with pytest.raises(UnknownNameError, match=r"unknown split 'valid'.*did you mean 'validation'"):
        make_prompts("valid", 1)


@pytest.mark.parametrize("count", [-1, 0, RESERVED_PER_KIND + 1])
def test_a_number_of_prompts_outside_the_reserve_is_refused(count):
    with pytest.raises(BadValueError, match=rf"{count} prompts.*1 to {RESERVED_PER_KIND}"):
        make_prompts("train", count)
