"""The miniature's recipe: what the base may see, and that the models are made and shipped by it."""

import json
import re
from dataclasses import asdict
from random import Random

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from steper_ray.corpora.miniature import make_worlds
from steper_ray.frameworks import FRAMEWORKS
from steper_ray.miniature import make
from steper_ray.miniature.curriculum import reading_tree
from steper_ray.models import ASSETS
from steper_ray.prompts import PromptEncoder


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(ASSETS / "base")


@pytest.mark.parametrize("varied", [False, True])
def test_the_base_never_reads_a_question_whose_hops_feed_one_another(tokenizer, varied):
    rng, encoder = Random(0), PromptEncoder(tokenizer, FRAMEWORKS["ircot"].layout)
    world = next(make_worlds(3, 1, "train"))[0]
    for _ in range(50):
        for branch in reading_tree(world, rng, encoder, 6, 8, varied=varied).branches:
            question, target = tokenizer.decode(branch.prompt), tokenizer.decode(branch.target)
            assert not re.search(r"the \w+ of the ", question)
            answers = re.findall(r" is (\w+)\.", target)
            subjects = re.findall(r" of (\w+) is ", target)
            assert len(answers) == len(subjects)
            concluded = " and ".join(reversed(answers)) if varied or len(answers) == 1 else None
            assert target.partition("So the answer is: ")[2].partition(".")[0] == (concluded or "")


def test_a_reading_tree_asks_only_what_its_passages_state(tokenizer):
    rng, encoder = Random(1), PromptEncoder(tokenizer, FRAMEWORKS["ircot"].layout)
    world = next(make_worlds(4, 1, "train"))[0]
    tree = reading_tree(world, rng, encoder, 6, 3, varied=True)
    trunk = tokenizer.decode(tree.trunk)
    for branch in tree.branches:
        for subject, value in re.findall(r" of (\w+) is (\w+)\.", tokenizer.decode(branch.target)):
            assert f"Title: {subject}" in trunk
            assert value in trunk


def test_the_same_seeds_make_the_same_batches(tokenizer):
    phase = make.PHASES[0]
    first, second = next(make._reading(tokenizer, phase)), next(make._reading(tokenizer, phase))
    assert first == second
    assert len(first) == phase.trees


def test_a_base_is_trained_finished_and_shipped_in_half_precision(tokenizer, tmp_path):
    make.make_base(tokenizer, tmp_path / "base", steps=1)
    assert json.loads((tmp_path / "base" / make.DONE).read_text())["model"] == "base"
    make.ship(tmp_path / "base", tmp_path / "assets")
    shipped = AutoModelForCausalLM.from_pretrained(tmp_path / "assets")
    assert shipped.config.hidden_size == make.WIDTH
    assert AutoTokenizer.from_pretrained(tmp_path / "assets").get_vocab() == tokenizer.get_vocab()


def test_a_base_that_was_stopped_goes_on_after_its_last_phase_to_the_same_weights(
    tokenizer, tmp_path, monkeypatch
):
    monkeypatch.setattr(make, "PHASES", [make.PHASES[1], make.PHASES[4], make.PHASES[2]])
    make.make_base(tokenizer, tmp_path / "whole", steps=1)
    started, train = [], make.train

    def stopped(*args, **kwargs):
        started.append(args)
        if len(started) == 3:
            raise KeyboardInterrupt
        train(*args, **kwargs)

    monkeypatch.setattr(make, "train", stopped)
    with pytest.raises(KeyboardInterrupt):
        make.make_base(tokenizer, tmp_path / "base", steps=1)
    make.make_base(tokenizer, tmp_path / "base", steps=1)
    assert len(started) == 4
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("whole", "base")]
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())


def test_the_shipped_models_were_made_by_the_recipe():
    base, teacher = (json.loads((ASSETS / name / make.DONE).read_text()) for name in ("base", "teacher"))
    assert base["phases"] == json.loads(json.dumps([asdict(phase) for phase in make.PHASES]))
    assert (teacher["steps"], teacher["rate"]) == (make.TEACHER_STEPS, make.TEACHER_RATE)


def test_the_shipped_models_fit_into_ten_megabytes_and_share_a_tokenizer():
    assert sum(file.stat().st_size for file in ASSETS.rglob("*") if file.is_file()) < 10e6
    base, teacher = (ASSETS / name / "tokenizer.json" for name in ("base", "teacher"))
    assert base.read_bytes() == teacher.read_bytes()
