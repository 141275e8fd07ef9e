"""Deployments apart on a real Ray Serve: two students, an index in shards, replicas that die, and an update."""

import asyncio
from types import SimpleNamespace

import pytest
from ray import serve
from serving_apps import FIRST, REST, deploy, dying, kill_replica, searching, serving, small_config
from waiting import wait_until

from steper_ray.client import Answer, Client
from steper_ray.corpora import open_corpus
from steper_ray.generation import open_generator
from steper_ray.reasoning import Reasoner
from steper_ray.retrieval import open_index
from steper_ray.serving.deployments import bind
from steper_ray.serving.plan import make_plan
from steper_ray.serving.wire import DeltaEvent

APART = [
    "serve.num_cpus=0.5",
    "serve.retriever={shards: 2, num_cpus: 0.25}",
    "reasoning.max_steps=3",
    # A busy machine may be slow to open a replica anew; nothing here is to be degraded.
    "serve.request_timeout_s=120",
    "serve.retrieval_timeout_s=60",
]
STUDENTS = "serve.students=[{name: big, model: 'miniature:teacher'}, {name: small, model: 'miniature:base'}]"


@pytest.fixture(scope="module")
def service(ray_cluster, tmp_path_factory):
    """`url` of two students over two shards, and the `config` of both."""
    config = small_config(tmp_path_factory.mktemp("run"), *APART, STUDENTS)
    with serving() as url:
        deploy(bind(make_plan(config)))
        questions = [question.text for question in open_corpus(config.corpus).questions()]
        yield SimpleNamespace(url=url, config=config, questions=questions)


def ask(url, questions, **how):
    """What each question came to."""

    async def all_of_them():
        async with Client(url, retries=0) as client:
            return [result async for result in client.reason_many(questions, concurrency=4, **how)]

    return asyncio.run(all_of_them())


def told(answers):
    assert all(isinstance(answer, Answer) for answer in answers), answers
    return [
        (a.text, a.chain, a.stop_reason, [[p.id for p in step.passages] for step in a.steps]) for a in answers
    ]


@pytest.fixture(scope="module")
def expected(service):
    """What the loop comes to over the whole index, in this process."""

    async def reasoned(model):
        config = service.config
        plan = make_plan(config)
        generator = open_generator(config.engine.model_copy(update={"model": f"miniature:{model}"}))
        reasoner = Reasoner(
            open_index(plan.index, config.retrieval), generator, config.reasoning, config.sampling
        )
        questions = list(open_corpus(config.corpus).questions())
        trajectories = await asyncio.gather(*(reasoner.run(question) for question in questions))
        await generator.close()
        return [
            (t.answer, t.chain, t.stop_reason, [[h.passage.id for h in step.hits] for step in t.steps])
            for t in trajectories
        ]

    return {"big": asyncio.run(reasoned("teacher")), "small": asyncio.run(reasoned("base"))}


def test_each_student_answers_over_the_shards_as_over_the_whole_index(service, expected):
    found = {name: told(ask(service.url, service.questions, model=name)) for name in ("big", "small")}
    assert found == expected
    assert found["big"] != found["small"]


@pytest.mark.parametrize("deployment", ["Retriever-2", "Engine"])
def test_no_question_is_lost_when_a_replica_dies_under_it(service, expected, deployment):
    async def killed_meanwhile():
        async with Client(service.url, retries=0) as client:
            asked = [asyncio.create_task(client.reason(text)) for text in service.questions * 4]
            await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.to_thread(kill_replica, "steper", deployment)
            return await asyncio.gather(*asked)

    assert told(asyncio.run(killed_meanwhile())) == expected["big"] * 4


def test_a_stream_whose_generator_dies_goes_on_where_it_was(service, tmp_path):
    config = small_config(tmp_path, "reasoning.unit=chain", "serve.num_cpus=0.1")
    deploy(dying(config), "dying")

    async def streamed():
        async with Client(f"{service.url}/dying", retries=0) as client:
            return [event async for event in client.stream("Where was the director of Alba born?")]

    try:
        events = asyncio.run(streamed())
    finally:
        serve.delete("dying")
    assert (tmp_path / "died").exists()
    assert [type(event).__name__ for event in events if not isinstance(event, DeltaEvent)] == [
        *["StepStartedEvent", "PassagesEvent", "StepOut"] * 2,
        "Answer",
    ]
    written = [event.text for event in events if isinstance(event, DeltaEvent)]
    assert "".join(written) == f"{FIRST}{REST} Cem. So the answer is: Cem."
    assert events[-1].text == "Cem"


def test_a_shard_that_dies_under_a_search_is_asked_again(service, tmp_path):
    plan = make_plan(service.config)
    handle = serve.run(searching(plan, tmp_path / "died"), name="searching", route_prefix=None)
    try:
        found = handle.find.remote(service.questions, 4).result(timeout_s=120)
    finally:
        serve.delete("searching")
    assert (tmp_path / "died").exists()
    assert found == open_index(plan.index, service.config.retrieval).search(service.questions, 4)


def test_an_update_to_another_model_loses_no_request(service, expected):
    """Last: it leaves another student."""
    swapped = STUDENTS.replace("teacher", "other").replace("base", "teacher").replace("other", "base")
    config = small_config(service.config.run_dir, *APART, "serve.max_surge_percent=100", swapped)
    seen = []

    async def asked_meanwhile():
        async with Client(service.url, retries=0) as client:
            update = asyncio.create_task(asyncio.to_thread(deploy, bind(make_plan(config))))
            while not update.done():
                seen.append(await client.reason(service.questions[0]))
            await update

    asyncio.run(asked_meanwhile())
    answers = told(seen)
    assert set(map(str, answers)) <= {str(expected["big"][0]), str(expected["small"][0])}
    wait_until(
        lambda: told(ask(service.url, service.questions[:1])) == expected["small"][:1],
        "the new model",
        seconds=60,
    )
