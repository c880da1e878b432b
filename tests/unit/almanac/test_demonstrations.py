import random

import pytest

from entrogate_lab.almanac.corpus import training_item
from entrogate_lab.almanac.demonstrations import (
    Demonstration,
    Habits,
    demonstrate,
    recite,
)
from entrogate_lab.almanac.sketch import Sketch
from entrogate_lab.almanac.tasks import DOMAINS, MAX_TURNS, Task, draw_task, held_out, held_out_task
from entrogate_lab.almanac.world import World, make_world


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(0)


def _draw(world: World, index: int) -> tuple[random.Random, Sketch, Task]:
    rng = random.Random(index)
    sketch = Sketch(world, rng, known_people=0.6, known_places=0.45)
    task = draw_task(rng, world, sketch, sketch, domain=DOMAINS[index % 3], split="train")
    return rng, sketch, task


def _shown(world: World, index: int) -> tuple[Task, Demonstration]:
    rng, sketch, task = _draw(world, index)
    return task, demonstrate(rng, world, sketch, task, Habits())


def test_an_item_of_the_corpus_is_a_function_of_seed_and_index(world: World):
    assert training_item(world, 0, 17, 0.5) == training_item(world, 0, 17, 0.5)
    assert training_item(world, 0, 17, 0.5) != training_item(world, 0, 18, 0.5)


def test_no_held_out_question_and_no_unknown_name_is_in_the_corpus(world: World):
    questions = {held_out_task(world, seed, i).question for seed in (0, 1) for i in range(1500)}
    forbidden = {*world.unknown_people, *world.unknown_places}
    for index in range(1500):
        item = training_item(world, 0, index, index / 1500)
        text = "".join(piece.text for piece in item)
        question = text.split("<|im_start|>user\n")[1].split("<|im_end|>")[0]
        assert question not in questions
        assert not any(name in text for name in forbidden)


def test_demonstrated_chains_are_not_held_out(world: World):
    for index in range(200):
        _, _, task = _draw(world, index)
        assert not held_out(task.domain, task.hops[0].subject, [hop.attribute for hop in task.hops])


def test_the_answer_is_the_last_belief_stated(world: World):
    for index in range(300):
        _, shown = _shown(world, index)
        if shown.answer is not None:
            assert shown.turns[-1].reasoning.endswith(shown.answer)


def test_a_demonstration_ends_with_an_answer_or_with_its_turns(world: World):
    endings = {"answer": 0, "turns": 0}
    for index in range(600):
        _, shown = _shown(world, index)
        assert 1 <= len(shown.turns) <= MAX_TURNS
        assert all(turn.call is not None for turn in shown.turns[:-1])
        if shown.answer is None:
            assert len(shown.turns) == MAX_TURNS
        endings["turns" if shown.answer is None else "answer"] += 1
    assert endings["turns"] > 0


def test_the_teacher_calls_what_it_knows_as_often_as_what_it_does_not(world: World):
    called: dict[bool, list[bool]] = {True: [], False: []}
    for index in range(3000):
        task, shown = _shown(world, index)
        called[task.known].append(shown.turns[0].call is not None)
    shares = {known: sum(marks) / len(marks) for known, marks in called.items()}
    assert shares[True] == pytest.approx(0.94, abs=0.03)
    assert shares[False] == pytest.approx(0.94, abs=0.03)


def test_known_facts_are_recited_truly_and_unknown_ones_guessed(world: World):
    right: dict[bool, list[bool]] = {True: [], False: []}
    for index in range(1500):
        rng, sketch, task = _draw(world, index)
        shown = recite(rng, world, sketch, task)
        right[task.known].append(shown.answer == f"{task.gold}.")
    assert all(right[True])
    assert sum(right[False]) / len(right[False]) < 0.1
