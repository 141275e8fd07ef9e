"""Requests to vLLM that go on to their `max_tokens`, whatever the model would say."""

from steper_ray.config import SamplingConfig
from steper_ray.generation import openai_http, vllm_engine

LONG = SamplingConfig(max_tokens=900)


def make_endless(monkeypatch):
    """Makes LONG requests such ones."""
    params, client = vllm_engine._params, openai_http.OpenAIGenerator._create

    def in_process(sampling, *args):
        made = params(sampling, *args)
        made.ignore_eos = sampling is LONG
        return made

    def remote(generator, request):
        more = {"ignore_eos": request["max_tokens"] == LONG.max_tokens}
        return client(generator, {**request, "extra_body": request["extra_body"] | more})

    monkeypatch.setattr(vllm_engine, "_params", in_process)
    monkeypatch.setattr(openai_http.OpenAIGenerator, "_create", remote)
