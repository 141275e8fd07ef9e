"""Limits and idempotency keys over two replicas of the HTTP side on a real Ray Serve, and without their ledger."""

import time
from types import SimpleNamespace

import httpx
import pytest
import ray
from serving_apps import deploy, hanging, serving, small_config
from waiting import wait_until

from steper_ray.serving.keys import add_key, new_key

PER_MINUTE = 12
ASK = {"question": "Where was the director of Alba born?", "max_steps": 1}


@pytest.fixture(scope="module")
def service(ray_cluster, tmp_path_factory):
    """`url` of an app of two ingresses, with the keys of `free` and of `limited`, and their file `keys`."""
    folder = tmp_path_factory.mktemp("run")
    free, entry = new_key("free")
    add_key(folder / "keys.yaml", entry)
    limited, entry = new_key("limited", requests_per_minute=PER_MINUTE)
    add_key(folder / "keys.yaml", entry)
    config = small_config(folder, "serve.ingress_replicas=2", f"serve.keys_file={folder / 'keys.yaml'}")
    with serving() as url:
        deploy(hanging(config))
        yield SimpleNamespace(url=url, free=free, limited=limited, keys=folder / "keys.yaml")


def ask(service, key, **headers):
    headers["authorization"] = f"Bearer {key}"
    return httpx.post(f"{service.url}/v1/reason", json=ASK, headers=headers, timeout=60)


def ledger(app):
    """The name and namespace of the ledger's replica."""
    (found,) = [
        actor
        for actor in ray.util.list_named_actors(all_namespaces=True)
        if actor["name"].startswith(f"SERVE_REPLICA::{app}#Ledger#")
    ]
    return found


def test_whichever_replica_is_asked_again_gives_the_first_answer(service):
    replies = [ask(service, service.free, **{"idempotency-key": "one"}) for _ in range(12)]
    assert {reply.status_code for reply in replies} == {200}
    assert ["idempotent-replayed" in reply.headers for reply in replies] == [False] + [True] * 11
    assert len({reply.content for reply in replies}) == 1


def test_both_replicas_count_in_one_book(service):
    began = time.monotonic()
    replies = [ask(service, service.limited) for _ in range(2 * PER_MINUTE)]
    came_back = (time.monotonic() - began) * PER_MINUTE / 60
    answered = [reply for reply in replies if reply.status_code == 200]
    assert PER_MINUTE <= len(answered) <= PER_MINUTE + came_back + 1
    refused = next(reply for reply in replies if reply.status_code == 429)
    assert refused.json()["error"]["code"] == "rate_limited"
    assert 1 <= int(refused.headers["retry-after"]) <= 5
    assert refused.headers["x-ratelimit-limit-requests"] == str(PER_MINUTE)


def test_both_replicas_take_a_new_key_and_refuse_one_that_is_gone(service):
    before = service.keys.read_text()
    late, entry = new_key("late")

    def statuses():
        return {ask(service, late).status_code for _ in range(8)}

    assert statuses() == {401}
    add_key(service.keys, entry)
    wait_until(lambda: statuses() == {200}, "the new key", seconds=60)
    service.keys.write_text(before)
    wait_until(lambda: statuses() == {401}, "the key's end", seconds=60)
    assert ask(service, service.free).status_code == 200


def test_while_the_ledger_is_down_questions_are_answered_and_limits_held(service):
    actor = ledger("steper")
    ray.kill(ray.get_actor(actor["name"], actor["namespace"]), no_restart=True)
    replies = [ask(service, service.limited, **{"idempotency-key": str(number)}) for number in range(4)]
    assert [reply.status_code for reply in replies] == [200] * 4
    assert {reply.headers["x-ratelimit-limit-requests"] for reply in replies} == {str(PER_MINUTE)}
