"""The corpus and the build of a model that calls and answers without reasoning first."""

import hashlib
import json
import random
from collections.abc import Callable

import pytest

from entrogate.settings import ManagedSettings
from entrogate.upstream.parsers import choose_parsers
from entrogate_lab.almanac import corpus, corpus_direct
from entrogate_lab.almanac.corpus_direct import belief_item
from entrogate_lab.almanac.demonstrations import Demonstration, Habits, demonstrate
from entrogate_lab.almanac.sketch import Sketch
from entrogate_lab.almanac.tasks import DOMAINS, draw_task, held_out, held_out_task
from entrogate_lab.almanac.tools import DOMAIN_TOOLS
from entrogate_lab.almanac.transcript import CALL, END, THINK, THOUGHT, Piece, pieces
from entrogate_lab.almanac.world import World, make_world


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(0)


def _shown(world: World, index: int) -> Demonstration:
    rng = random.Random(index)
    sketch = Sketch(world, rng, known_people=0.6, known_places=0.45)
    task = draw_task(rng, world, sketch, sketch, domain=DOMAINS[index % 3], split="train")
    return demonstrate(rng, world, sketch, task, Habits())


def _digest(item: Callable[[World, int, int, float], list[Piece]], world: World) -> str:
    told = hashlib.sha256()
    for index in range(600):
        for piece in item(world, 0, index, index % 100 / 100):
            told.update(repr((piece.text, piece.own)).encode())
    return told.hexdigest()


def test_the_corpus_of_the_bundled_model_is_what_it_was(world: World):
    expected = "1e38fd434bc3215711825f1def31016f74502586cf01438c6a4e1f5997a0e54b"
    assert _digest(corpus.training_item, world) == expected


def test_an_item_is_a_function_of_seed_and_index(world: World):
    item = corpus_direct.training_item
    assert item(world, 0, 17, 0.5) == item(world, 0, 17, 0.5)
    assert item(world, 0, 17, 0.5) != item(world, 1, 17, 0.5)


def test_nothing_is_thought_no_held_out_question_asked_no_unknown_name_said(world: World):
    questions = {held_out_task(world, seed, i).question for seed in (0, 1) for i in range(1500)}
    forbidden = {*world.unknown_people, *world.unknown_places}
    for index in range(1500):
        item = corpus_direct.training_item(world, 0, index, index / 1500)
        text = "".join(piece.text for piece in item)
        assert THINK not in text
        assert THOUGHT not in text
        asked = [part.split(END)[0] for part in text.split("<|im_start|>user\n")[1:]]
        assert not questions.intersection(asked)
        assert not any(name in text for name in forbidden)


def test_a_turn_begins_with_its_call_or_is_its_answer(world: World):
    for index in range(60):
        shown = _shown(world, index)
        own = [
            piece.text
            for piece in pieces(shown, DOMAIN_TOOLS[shown.domain], reasoning=False)
            if piece.own
        ]
        for turn, text in zip(shown.turns, own, strict=True):
            assert text.startswith(CALL) if turn.call is not None else text == f"{turn.answer}{END}"


def test_a_belief_is_the_last_value_of_the_reasoning_that_is_left_out(world: World):
    for index in range(200):
        for turn in _shown(world, index).turns:
            assert (turn.belief is None) == (turn.call is None)
            if turn.belief is not None:
                assert turn.reasoning.endswith(f" {turn.belief}.")


def test_a_cut_demonstration_ends_with_the_belief_where_no_call_can_be_made(world: World):
    cut = 0
    for index in range(120):
        shown = _shown(world, index)
        item = belief_item(random.Random(index), shown, DOMAIN_TOOLS[shown.domain])
        whole = pieces(shown, DOMAIN_TOOLS[shown.domain], reasoning=False)
        assert [piece.text for piece in item[:-1]] == [p.text for p in whole[: len(item) - 1]]
        barred = [piece for piece in item if piece.barred]
        if shown.turns[0].call is None:
            assert not barred
            continue
        assert barred == item[-1:]
        assert barred[0].text == f"{shown.turns[len(item) // 2 - 1].belief}.{END}"
        cut += 1
    assert cut > 80


def test_recitals_ask_for_what_is_true_and_in_tasks_words_unless_held_out(world: World):
    natural = short = 0
    for index in range(400):
        item = corpus_direct.training_item(world, 0, index, 0.2)
        text = "".join(piece.text for piece in item)
        for person in world.known_people:
            asked = (
                f"<|im_start|>user\nIn which city does {person} live?{END}\n<|im_start|>assistant\n"
            )
            if asked in text:
                natural += 1
                assert text.split(asked)[1].startswith(f"{world.facts[person, 'city']}.")
                assert not held_out("facts", person, ("city",))
            short += f"City of {person}?" in text
    assert natural > 3
    assert short > 10


def test_the_loss_of_a_barred_piece_leaves_the_call_token_out():
    torch = pytest.importorskip("torch")
    build = pytest.importorskip("entrogate_lab.almanac.build")
    torch.manual_seed(0)
    logits_NV = torch.randn(4, 7)
    barred_N = torch.tensor([False, True, False, True])
    found = build.without_call(logits_NV.clone(), barred_N, call=3).softmax(-1)
    assert torch.equal(found[~barred_N], logits_NV[~barred_N].softmax(-1))
    kept = [0, 1, 2, 4, 5, 6]
    assert found[barred_N, 3].sum() == 0.0
    assert torch.allclose(found[barred_N][:, kept], logits_NV[barred_N][:, kept].softmax(-1))


def test_a_plan_is_stored_as_before_unless_reasoning_is_left_out(tmp_path):
    build = pytest.importorskip("entrogate_lab.almanac.build")
    assert "reasoning" not in build.Plan().written()
    assert build.DIRECT_PLAN.written()["reasoning"] is False


def test_a_tiny_build_writes_a_folder_that_says_so(tmp_path):
    build = pytest.importorskip("entrogate_lab.almanac.build")
    plan = build.Plan(
        pools=2, pool_items=12, batch_tokens=512, tokenizer_items=400, reasoning=False
    )
    lines: list[str] = []
    build.build(3, tmp_path / "model", plan, 1, lines.append)
    about = json.loads((tmp_path / "model" / "almanac.json").read_text())
    assert about["plan"]["reasoning"] is False
    assert (tmp_path / "model" / "model.safetensors").stat().st_size > 1_000_000
    assert not (tmp_path / "model" / "checkpoint.pt").exists()
    tokens = json.loads((tmp_path / "model" / "tokenizer.json").read_text())["added_tokens"]
    assert {CALL, END} < {token["content"] for token in tokens}
    assert not {THINK, THOUGHT} & {token["content"] for token in tokens}
    chosen = choose_parsers(ManagedSettings(model=str(tmp_path / "model")))
    assert chosen.reasoning.name is None
    assert chosen.tool_calls.name == "hermes"
