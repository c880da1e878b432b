"""Ages within what was seen: by hand."""

from entrogate.store.read.quiet import Sighting, Sightings, boot_id, uptime


def test_the_clock_counts_where_nothing_was_seen() -> None:
    assert Sightings().age(7, 12.5, 100.0) == 12.5


def test_a_clock_that_was_set_forward_makes_nothing_older_than_it_can_be() -> None:
    sightings = Sightings()
    sightings.add(10, 100.0)
    sightings.add(12, 130.0)
    assert sightings.age(11, 7200.0, 131.0) == 31.0  # it was not there at 100
    assert sightings.age(13, 7200.0, 131.0) == 1.0
    assert sightings.age(10, 7200.0, 131.0) == 7200.0  # older than the first look: who knows


def test_a_clock_that_was_set_back_makes_nothing_younger_than_it_is() -> None:
    sightings = Sightings()
    sightings.add(10, 100.0)
    sightings.add(12, 130.0)
    assert sightings.age(10, -7200.0, 160.0) == 60.0
    assert sightings.age(11, -7200.0, 160.0) == 30.0
    assert sightings.age(13, -7200.0, 160.0) == 0.0


def test_the_first_and_the_last_look_at_a_number_are_kept() -> None:
    sightings = Sightings()
    for moment in range(100):
        sightings.add(5, float(moment))
    assert [(each.sequence, each.uptime) for each in sightings.seen] == [(5, 0.0), (5, 99.0)]
    assert sightings.age(5, -1.0, 100.0) == 100.0
    assert sightings.age(6, 1e9, 100.0) == 1.0


def test_many_are_thinned_and_stay_in_order() -> None:
    sightings = Sightings()
    for number in range(10_000):
        sightings.add(number, number / 10)
    assert len(sightings.seen) <= 256
    assert sightings.seen == sorted(sightings.seen, key=lambda each: each.sequence)
    assert sightings.seen[0] == Sighting(sequence=0, uptime=0.0)
    assert sightings.seen[-1] == Sighting(sequence=9999, uptime=999.9)


def test_another_store_begins_anew() -> None:
    sightings = Sightings()
    sightings.add(10, 1.0)
    sightings.add(3, 2.0)
    assert sightings.seen == [Sighting(sequence=3, uptime=2.0)]


def test_the_timer_runs_and_the_machine_has_a_name() -> None:
    before = uptime()
    assert before <= uptime()
    assert boot_id() == boot_id() or boot_id().startswith("process")
