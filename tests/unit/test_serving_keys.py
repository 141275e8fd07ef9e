"""Keys of callers: their file, what is wrong with it, its changes, and the command that makes one."""

import hashlib
import hmac
import json

import pytest
from guarded import ASK, Clock, bearer, entry, guarded
from local_endpoint import SECRET, LocalEngine, error_of, replies
from typer.testing import CliRunner

from steper_ray import cli
from steper_ray.config import CallerLimits
from steper_ray.serving import callers, keys
from steper_ray.serving.callers import Callers
from steper_ray.serving.keys import KeysError, add_key, entry_yaml, load_keys, make_keyring, new_key

DIGEST = "ab" * 32


@pytest.fixture
def file(tmp_path):
    return tmp_path / "keys.yaml"


def test_a_file_of_keys_is_yaml_or_json(file, tmp_path):
    file.write_text(f"- name: a\n  sha256: {DIGEST}\n  concurrent: 2\n")
    other = tmp_path / "keys.json"
    other.write_text(json.dumps([{"name": "a", "sha256": DIGEST, "concurrent": 2}]))
    assert load_keys(file) == load_keys(other)
    assert load_keys(file)[0].concurrent == 2
    assert load_keys(None) == ()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no key in it"),
        ("a: [", ":1: neither YAML nor JSON"),
        ("- name: 2026-99-99", "neither YAML nor JSON"),
        ("a: b", "must be a list"),
        ("- 7", "entry 1: entry"),
        (f"- sha256: {DIGEST}", "entry 1: name: Field required; up to 64"),
        (f"- name: a b\n  sha256: {DIGEST}", "entry 1 ('a b'): name:"),
        ("- name: a\n  sha256: short", "sha256: .*64 hexadecimal digits"),
        ("- name: a\n  key: hunter2hunter2", "entry 1 ('a'): key: a key itself must not lie"),
        (f"- name: a\n  sha256: {DIGEST}\n  rpm: 3", "rpm: .*the fields are: requests_per_minute"),
        (f"- name: a\n  sha256: {DIGEST}\n  concurrent: 0", "concurrent: .*1 or more"),
        (f"- name: a\n  sha256: {DIGEST}\n  concurrent: true", "concurrent: .*1 or more"),
        (f"- name: token\n  sha256: {DIGEST}", "'token' is the server's own"),
        (f"- name: a\n  sha256: {DIGEST}\n- name: a\n  sha256: {'cd' * 32}", ":3: entry 2: its name"),
        (f"- name: a\n  sha256: {DIGEST}\n- name: b\n  sha256: {DIGEST}", "entry 2: its sha256"),
    ],
)
def test_what_is_wrong_with_a_file_is_told_with_entry_and_fix(file, text, says):
    file.write_text(text)
    with pytest.raises(KeysError, match=says.replace("(", "\\(").replace(")", "\\)")) as wrong:
        load_keys(file)
    assert str(wrong.value).startswith(str(file))
    assert "hunter2" not in str(wrong.value)


def test_a_file_that_is_not_there_is_told(file):
    with pytest.raises(KeysError, match="cannot be read"):
        load_keys(file)


def test_limits_that_an_entry_does_not_have_are_the_services():
    default = CallerLimits(requests_per_minute=60, concurrent=4)
    ring = make_keyring("t", [entry("a", concurrent=9), entry("b")], default)
    a, b, token = ring.find(b"key-of-a"), ring.find(b"key-of-b"), ring.find(b"t")
    assert a.limits == CallerLimits(requests_per_minute=60, concurrent=9)
    assert b.limits == token.limits == ring.loopback.limits == default
    assert (a.name, b.name, token.name) == ("a", "b", "token")


def test_every_hash_is_compared_whichever_key_is_shown(monkeypatch):
    compared = []

    def compare(left, right):
        compared.append((len(left), len(right)))
        return hmac_compare(left, right)

    hmac_compare = hmac.compare_digest
    monkeypatch.setattr("steper_ray.serving.keys.hmac.compare_digest", compare)
    ring = make_keyring("t", [entry(name) for name in "abc"])
    for shown in (b"t", b"key-of-a", b"key-of-c", b"", b"x" * 10_000):
        compared.clear()
        ring.find(shown)
        assert compared == [(32, 32)] * 4


def test_each_key_and_the_token_open_the_endpoint_and_no_other():
    app = guarded(LocalEngine(replies() * 3), entry("a"), entry("b"), token=SECRET)
    for header in (bearer("a"), bearer("b"), {"authorization": f"Bearer {SECRET}".encode()}):
        assert app.post("/v1/reason", json=ASK, headers=header).status_code == 200
    stolen = {"authorization": f"Bearer {hashlib.sha256(b'key-of-a').hexdigest()}"}
    for header in ({}, bearer("c"), stolen, {"authorization": "Basic key-of-a"}):
        assert error_of(app.post("/v1/reason", json=ASK, headers=header))[:2] == (401, "unauthorized")


def test_keys_alone_ask_for_a_key_of_this_machines_clients_too():
    app = guarded(LocalEngine(replies()), entry("a"))
    assert error_of(app.post("/v1/reason", json=ASK))[0] == 401
    assert app.post("/v1/reason", json=ASK, headers=bearer("a")).status_code == 200
    document = app.get("/openapi.json").json()
    assert document["paths"]["/v1/reason"]["post"]["security"] == [{"token": []}]


# ---- a file that changes


def write(file, *entries):
    """In one go, as an editor does."""
    new = file.with_suffix(".new")
    new.write_text("".join(map(entry_yaml, entries)))
    new.replace(file)


@pytest.fixture
def opens(monkeypatch):
    """Which of the keys of `a` to `c` open the endpoint over the file."""
    monkeypatch.setattr(callers, "LOOK_SECONDS", 0.0)

    def opens(app):
        return [name for name in "abc" if app.get("/v1/about", headers=bearer(name)).status_code == 200]

    return opens


def test_a_key_that_is_gone_from_the_file_is_refused_and_a_new_one_taken(file, opens):
    write(file, entry("a"), entry("b"))
    app = guarded(LocalEngine([]), *load_keys(file), keys_file=file)
    assert opens(app) == ["a", "b"]
    write(file, entry("b"), entry("c"))
    assert opens(app) == ["b", "c"]
    write(file)
    assert opens(app) == []
    assert error_of(app.get("/v1/about"))[0] == 401  # nor is it open to this machine's clients now


def test_a_callers_limits_are_those_of_the_file_as_it_is_now(file, opens):
    write(file, entry("a", max_question_chars=3))
    app = guarded(LocalEngine(replies()), *load_keys(file), keys_file=file)
    assert app.post("/v1/reason", json=ASK, headers=bearer("a")).status_code == 413
    write(file, entry("a"))
    assert app.post("/v1/reason", json=ASK, headers=bearer("a")).status_code == 200


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("- name: b\n  sha256: short", "keys.yaml:1: entry 1 ('b'): sha256:"),
        ("# ours\n- [", "keys.yaml:2: neither YAML nor JSON"),
        (None, "keys.yaml: the file of keys cannot be read"),
    ],
)
def test_a_broken_file_leaves_the_keys_before_it_and_is_told_of_once(file, opens, caplog, text, says):
    write(file, entry("a"))
    app = guarded(LocalEngine([]), *load_keys(file), keys_file=file)
    file.unlink() if text is None else file.write_text(text)
    assert opens(app) == opens(app) == ["a"]
    (told,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert says in told.getMessage()
    write(file, entry("b"))
    assert opens(app) == ["b"]


async def test_the_file_is_looked_at_once_a_second_and_read_when_it_changed(file, monkeypatch):
    looks, reads, clock = [], [], Clock()
    look, read = callers._signature, keys._read
    monkeypatch.setattr(callers, "_signature", lambda path: looks.append(path) or look(path))
    monkeypatch.setattr(keys, "_read", lambda path: reads.append(path) or read(path))
    write(file, entry("a"))
    known = Callers(None, path=file, clock=clock)
    assert (len(looks), len(reads)) == (1, 1)
    for _ in range(100):
        await known.now()
    clock.now += 1
    for _ in range(100):
        assert (await known.now()).find(b"key-of-a")
    assert (len(looks), len(reads)) == (2, 1)


async def test_a_file_that_is_being_written_is_read_when_it_is_whole(file, monkeypatch):
    parts = entry_yaml(entry("b")), entry_yaml(entry("c"))
    write(file, entry("a"))
    known = Callers(None, path=file, clock=(clock := Clock()))
    file.write_text(parts[0])
    # The other half comes while the change is looked at.
    monkeypatch.setattr(callers, "sleep", lambda seconds: file.write_text("".join(parts)))
    clock.now += 1
    now = await known.now()
    assert [now.find(f"key-of-{name}".encode()) is not None for name in "abc"] == [False, True, True]


async def test_a_service_that_does_not_see_the_file_goes_by_the_keys_it_was_built_with(file):
    known = Callers(None, [entry("a")], path=file, clock=(clock := Clock()))
    assert (await known.now()).find(b"key-of-a")
    write(file, entry("b"))
    clock.now += 1
    now = await known.now()
    assert now.find(b"key-of-b")
    assert not now.find(b"key-of-a")


# ---- new keys


def test_a_new_key_opens_by_the_entry_that_was_written(file):
    for name in ("a", "b"):
        key, made = new_key(name, requests_per_minute=3, concurrent=None)
        add_key(file, made)
        assert make_keyring(None, load_keys(file)).find(key.encode()).name == name
        assert key not in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600
    assert [entry.requests_per_minute for entry in load_keys(file)] == [3, 3]


def test_a_files_comments_and_form_stay_and_a_bad_addition_changes_nothing(file, tmp_path):
    file.write_text(f"# ours\n- name: a\n  sha256: {DIGEST}")
    add_key(file, new_key("b")[1])
    text = file.read_text()
    assert text.startswith("# ours\n")
    assert [entry.name for entry in load_keys(file)] == ["a", "b"]
    with pytest.raises(KeysError, match="entry 3: its name"):
        add_key(file, new_key("b")[1])
    assert file.read_text() == text
    for other in (tmp_path / "keys.json", tmp_path / "flow.yaml"):
        other.write_text(json.dumps([{"name": "a", "sha256": DIGEST}]))
        add_key(other, new_key("b")[1])
        assert [entry["name"] for entry in json.loads(other.read_text())] == ["a", "b"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["flow.yaml", "keys.json", "keys.yaml"]


def test_the_command_shows_the_key_once_and_keeps_its_hash(file):
    run = CliRunner().invoke(cli.app, ["key", "partner", "--file", str(file), "--concurrent", "2"])
    assert run.exit_code == 0
    key = run.stdout.strip()
    (made,) = load_keys(file)
    assert (made.name, made.concurrent, made.requests_per_minute) == ("partner", 2, None)
    assert made.sha256 == hashlib.sha256(key.encode()).hexdigest()
    assert len(key) >= 43
    printed = CliRunner().invoke(cli.app, ["key", "other"])
    assert "name: other" in printed.stderr
    assert hashlib.sha256(printed.stdout.strip().encode()).hexdigest() in printed.stderr
