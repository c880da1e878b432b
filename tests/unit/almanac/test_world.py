from dataclasses import replace
from itertools import permutations

import pytest

from entrogate_lab.almanac.tasks import HeldOutCast, Task, draw_task, held_out, held_out_task
from entrogate_lab.almanac.tools import execute
from entrogate_lab.almanac.world import (
    ATTRIBUTES,
    PLACE_ATTRIBUTES,
    RELATIONS,
    World,
    make_world,
    shifted,
)


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(0)


def test_a_world_is_a_function_of_its_seed(world: World):
    assert make_world(0) == world
    assert make_world(1).facts != world.facts


def test_kinds_of_people_and_words_do_not_overlap(world: World):
    kinds = (world.known_people, world.outsiders, world.unknown_people)
    names = [name for kind in kinds for name in kind]
    assert len(set(names)) == len(names) == 404
    words = world.words.everything()
    assert len(set(words)) == len(words)


def test_everybody_has_every_attribute_and_relations_lead_to_people(world: World):
    people = {*world.known_people, *world.outsiders, *world.unknown_people}
    for person in people:
        for attribute in ATTRIBUTES:
            value = world.fact(person, attribute)
            assert value is not None
            assert value != person
            assert (value in people) == (attribute in RELATIONS)


def test_outsiders_and_unknown_people_are_not_known(world: World):
    assert world.knows(world.known_people[0], "city")
    assert not world.knows(world.outsiders[0], "city")
    assert not world.knows(world.unknown_people[0], "city")
    assert not world.knows(world.known_people[0], "river")


def test_every_fact_of_the_library_can_be_reached_by_search_and_links(world: World):
    for place in world.places():
        for attribute in PLACE_ATTRIBUTES:
            entry = world.entry(place, attribute)
            assert entry is not None
            texts = [execute(world, "search", {"query": f"{place} {attribute}"})]
            texts += [execute(world, "read", {"page": str(page)}) for page in entry.path()]
            assert entry.value in texts[-1]
            assert entry.snippet() in texts[0].splitlines()


def test_held_out_tasks_are_deterministic_and_on_their_side_of_the_split(world: World):
    for index in range(100):
        task = held_out_task(world, 7, index)
        assert task == held_out_task(world, 7, index)
        assert held_out(task.domain, task.hops[0].subject, [hop.attribute for hop in task.hops])


def _calls_needed_by_brute_force(world: World, task: Task) -> int:
    """The shortest sequence of lookups after which the chain can be followed to its end."""
    entities = [hop.subject for hop in task.hops]
    calls = [(entity, hop.attribute) for entity in entities for hop in task.hops]
    for length in range(len(task.hops) + 1):
        for made in permutations(dict.fromkeys(calls), length):
            told = {call: world.facts[call] for call in made}
            subject = task.hops[0].subject
            for hop in task.hops:
                key = (subject, hop.attribute)
                value = told.get(key) or (world.facts[key] if world.knows(*key) else None)
                if value is None:
                    break
                subject = value
            else:
                return length
    raise AssertionError("no sequence of calls suffices")


def test_oracle_calls_of_facts_equal_a_brute_force_search(world: World):
    seen: set[int] = set()
    for index in range(150):
        task = held_out_task(world, 3, index)
        if task.domain == "facts":
            assert task.oracle_calls == _calls_needed_by_brute_force(world, task)
            seen.add(task.oracle_calls)
    assert seen == {0, 1, 2, 3}


def test_oracle_calls_of_walks_equal_a_search_over_what_the_pages_name(world: World):
    import random

    seen: set[int] = set()
    for index in range(60):
        rng = random.Random(index)
        cast = HeldOutCast(world=world)
        task = draw_task(rng, world, world, cast, domain="walk", split="held-out")
        if task.known:
            assert task.oracle_calls == 0
            continue
        query = f"{task.hops[0].subject} {task.hops[0].attribute}"
        texts = {execute(world, "search", {"query": query})}
        for made in range(1, 4):
            plain = f"{task.hops[0].subject}: {task.hops[0].attribute} "
            if any(
                task.gold in line
                and line.split("] ")[-1].startswith(plain)
                and "perhaps" not in line
                for text in texts
                for line in text.splitlines()
            ):
                assert task.oracle_calls == made
                seen.add(made)
                break
            numbers = {n for text in texts for n in world.pages if str(n) in text}
            texts |= {execute(world, "read", {"page": str(number)}) for number in numbers}
        else:
            raise AssertionError(f"the fact is not within three calls: {task}")
    assert seen == {1, 2, 3}


def test_a_shift_changes_what_the_model_knows_and_nothing_else(world: World):
    changed = shifted(world, 1.0)
    for fact, value in world.facts.items():
        assert (changed.facts[fact] != value) == world.knows(*fact)
    assert changed.entries.keys() == world.entries.keys()
    for fact, entry in changed.entries.items():
        assert entry.value == changed.facts[fact]
        assert replace(entry, value=world.facts[fact]) == world.entries[fact]
    assert changed.on_page(entry.page) == entry


def test_no_shift_is_the_same_world_and_a_part_changes_a_part(world: World):
    assert shifted(world, 0.0) == world
    known = [fact for fact in world.facts if world.knows(*fact)]
    share = sum(shifted(world, 0.3).facts[fact] != world.facts[fact] for fact in known) / len(known)
    assert 0.2 < share < 0.4
    with pytest.raises(ValueError, match=r"share of changed facts is 1\.5; want 0 … 1"):
        shifted(world, 1.5)


def test_tasks_of_a_shifted_world_ask_the_same_and_have_other_answers(world: World):
    changed = shifted(world, 1.0)
    pairs = [(held_out_task(world, 0, i), held_out_task(changed, 0, i)) for i in range(80)]
    stale = 0
    for before, after in pairs:
        assert before.question == after.question
        if before.domain == "sums":
            assert before == after
        elif before.known:
            stale += before.gold != after.gold
    assert stale > 20
