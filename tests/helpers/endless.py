"""Requests to vLLM that go on to their `max_tokens`, whatever the model would say."""

from steper_ray.config import SamplingConfig
from steper_ray.generation import vllm_engine
from steper_ray.generation.endpoint.routes import Completions

LONG = SamplingConfig(max_tokens=900)


def make_endless(monkeypatch):
    """Makes LONG requests such ones."""
    params, opened = vllm_engine._params, Completions.open

    def in_process(sampling, *args):
        made = params(sampling, *args)
        made.ignore_eos = sampling is LONG
        return made

    def remote(route, client, request):
        more = {"ignore_eos": request["max_tokens"] == LONG.max_tokens}
        return opened(route, client, {**request, "extra_body": request["extra_body"] | more})

    monkeypatch.setattr(vllm_engine, "_params", in_process)
    monkeypatch.setattr(Completions, "open", remote)
