"""Tokens to text: whole characters, stop strings over token borders, what fits, and draws by seed."""

from types import SimpleNamespace

import pytest
import torch
from chat_templates import byte_tokenizer

from steper_ray.config import SamplingConfig
from steper_ray.core.errors import GenerationError, PromptTooLongError
from steper_ray.generation.endpoint.client import _ends
from steper_ray.generation.endpoint.routes import Completions
from steper_ray.generation.loading import end_ids
from steper_ray.generation.sampling import choose, draws
from steper_ray.generation.stops import StopStrings
from steper_ray.generation.tokens import (
    Detokenizer,
    decoder_of,
    fit_tokens,
    prompt_ids,
)
from steper_ray.models import resolve_model
from steper_ray.pretrained import load_tokenizer

TEXT = " The naïve 🦙 of 漢字 is Bo."


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(resolve_model("miniature:base"))


def pieces(tokenizer, text, prompt="Q: Who?\nA:"):
    detokenizer = Detokenizer(decoder_of(tokenizer), prompt_ids(tokenizer, prompt))
    return [detokenizer.push(token) for token in tokenizer.encode(text, add_special_tokens=False)]


def test_pieces_add_up_to_the_text_and_hold_only_whole_characters(tokenizer):
    parts = pieces(tokenizer, TEXT)
    assert "".join(parts) == TEXT
    assert not any("\ufffd" in part for part in parts)
    assert "" in parts  # some character took several tokens


def test_the_first_piece_keeps_its_leading_space(tokenizer):
    assert pieces(tokenizer, " Bo was")[0].startswith(" ")


def test_bytes_that_never_become_a_character_are_not_given_out(tokenizer):
    llama = tokenizer.encode("🦙", add_special_tokens=False)
    detokenizer = Detokenizer(decoder_of(tokenizer), [])
    assert "".join(detokenizer.push(token) for token in llama[:-1]) == ""


def test_a_stop_string_is_found_over_piece_borders():
    stop = StopStrings(["\n\nTitle"])
    given = [stop.push(piece) for piece in ("Bo.", "\n", "\nTi", "tle: X")]
    assert given == [("Bo.", False), ("", False), ("", False), ("", True)]
    assert stop.flush() == ""


def test_what_only_began_like_a_stop_string_is_given_out_after_all():
    stop = StopStrings(["abc", "bd"])
    assert stop.push("xab") == ("x", False)
    assert stop.push("e") == ("abe", False)
    assert stop.push("ab") == ("", False)
    assert stop.flush() == "ab"


def test_the_earliest_of_several_stop_strings_counts():
    assert StopStrings(["c", "b"]).push("abc") == ("a", True)


def test_the_completion_is_clipped_to_what_the_prompt_leaves():
    assert fit_tokens(100, 64, 128) == 28
    assert fit_tokens(10, 64, 128) == 64


def test_a_prompt_that_leaves_nothing_and_an_empty_one_are_refused():
    with pytest.raises(PromptTooLongError, match="128 tokens, the engine takes 128"):
        fit_tokens(128, 1, 128)
    with pytest.raises(GenerationError, match="empty"):
        fit_tokens(0, 1, 128)


def test_a_prompt_as_text_gets_the_begin_token_and_ids_stay_as_they_are(tokenizer):
    assert prompt_ids(tokenizer, "Bo")[0] == tokenizer.bos_token_id
    assert prompt_ids(tokenizer, (5, 6)) == [5, 6]


def test_draws_follow_the_seed_alone_and_greedy_has_none():
    warm = SamplingConfig(temperature=1.0, seed=3)
    assert draws(warm, 4) == draws(warm, 6)[:4]
    assert draws(warm, 4) != draws(warm.model_copy(update={"seed": 4}), 4)
    assert draws(SamplingConfig(), 4) == ()


def test_draws_follow_the_distribution_of_the_nucleus_and_never_its_tail():
    n = 3000
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).repeat(n, 1)
    nucleus = SamplingConfig(temperature=1.0, top_p=0.75)
    ids, logprobs = choose(logits, [nucleus] * n, [number / n for number in range(n)])
    assert set(ids) == {0, 1}
    assert ids.count(0) / n == pytest.approx(0.5 / 0.8, abs=0.03)
    assert {round(value, 3) for value in logprobs} == {-0.693, -1.204}
    hot, _ = choose(logits, [SamplingConfig(temperature=2.0)] * n, [number / n for number in range(n)])
    wanted = torch.tensor([0.5, 0.3, 0.15, 0.05]).sqrt()
    for token, share in enumerate((wanted / wanted.sum()).tolist()):
        assert hot.count(token) / n == pytest.approx(share, abs=0.03)


def test_a_draw_does_not_depend_on_the_last_bits_of_the_logits():
    n = 3000
    logits = torch.randn(n, 1024, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(n, 1024, generator=torch.Generator().manual_seed(1)) * 1e-5
    hot, uniforms = [SamplingConfig(temperature=6.0)] * n, [number / n + 1e-5 for number in range(n)]
    assert choose(logits, hot, uniforms)[0] == choose(logits + noise, hot, uniforms)[0]


def test_every_engine_ends_at_the_end_of_a_chats_turn():
    tokenizer = byte_tokenizer("phi")
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=[7]), config=SimpleNamespace())
    assert end_ids(model, tokenizer) == {tokenizer.eos_token_id, end, 7}
    assert _ends(tokenizer) == [end]  # of an endpoint; vLLM's own engine takes the same
    request = Completions(_ends(tokenizer)).request([5], SamplingConfig(), 8, ())
    assert request["extra_body"]["stop_token_ids"] == [end]
    assert _ends(byte_tokenizer("mistral")) == []  # its end of turn is the end of sequence
