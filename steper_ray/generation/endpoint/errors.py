"""Classification of an endpoint's errors: their kind, whether to retry, and whether to send fewer requests.

It knows the client's errors and sends nothing. No message repeats the key; log lines use fixed words only.
"""

from __future__ import annotations

import os
import time
from json import JSONDecodeError

from openai import APIConnectionError, APIError, APIStatusError, APITimeoutError

from steper_ray.config import EngineConfig
from steper_ray.core.errors import EngineSetupError, GenerationError, PromptTooLongError, RefusedError
from steper_ray.generation.endpoint.retrying import retry_after

#: What goes wrong between the client and the endpoint. A broken stream may end within an event.
Broken = APIError | JSONDecodeError

# How endpoints say that a prompt does not fit: OpenAI's error code, vLLM's and others' words.
_TOO_LONG = ("context_length_exceeded", "context length", "maximum model length", "max_model_len", "too long")
# How they say, under a status that means the key elsewhere, that a prompt's content is refused.
_CONTENT = ("content_filter", "content_policy", "moderation", "flagged")
_BUSY = (429, 503, 504, 529)  # too much at once, by whatever name
_WRONG_ROUTE = (405, 407, 410, 415, 421, 426)  # the address or the way there, whatever is asked
_NO_QUOTA = "insufficient_quota"  # OpenAI's code; its status is 429 too, but waiting does not help
_PAYMENT = 402  # others' status for the same
_OTHER_ROUTE = "engine.route"  # in the errors that another route may not have
_WORDS = 300  # most characters of an endpoint's own message in ours
_FEW_WORDS = 200  # the same, in a message that must stay one line


class Failure(Exception):
    """One attempt failed with `error`, which the reader sees if there is no other one.

    `reason` is for the log and in our own words: the endpoint's may repeat the prompt or the key. `unreached`: there
    was no connection.
    """

    def __init__(
        self,
        error: GenerationError,
        reason: str,
        again: bool,
        after_s: float = 0.0,
        unreached: bool = False,
    ) -> None:
        super().__init__(reason)
        self.error, self.reason, self.again, self.after_s = error, reason, again, after_s
        self.unreached = unreached


def is_refusal(error: Broken) -> bool:
    """Whether it is the endpoint's own answer, and no lost connection."""
    return _status(error) is not None


def is_unreached(error: Broken, opened: bool) -> bool:
    """Whether no connection came about: refused, an unknown host, or no answer to the attempt."""
    return isinstance(error, APIConnectionError) and not opened


def is_overload(error: Broken) -> bool:
    """Whether fewer requests at once would help."""
    return isinstance(error, APITimeoutError) or (_status(error) in _BUSY and not _out_of_quota(error))


def is_passing(error: Broken) -> bool:
    """Whether the same request may succeed later."""
    if _out_of_quota(error):
        return False
    if isinstance(error, APIStatusError):
        asked = error.response.headers.get("x-should-retry")  # OpenAI's own word on it
        if asked in ("true", "false"):
            return bool(asked == "true")
    status = _status(error)
    return status is None or status in (408, 409, 425, 429) or status >= 500


def asked_to_wait(error: Broken) -> float:
    """Seconds that the endpoint wants to be left alone; 0 where it does not say."""
    return retry_after(error.response.headers, time.time()) if isinstance(error, APIStatusError) else 0.0


def in_short(error: Broken, opened: bool) -> str:
    """The endpoint's failure in words, for the log. `opened`: its stream had come."""
    if (status := _status(error)) is not None:
        return f"answers {status}"
    return "breaks off streams" if opened else "cannot be reached"


def as_ours(error: Broken, config: EngineConfig, opened: bool, begun: bool) -> GenerationError:
    """The project's error for an endpoint's.

    EngineSetupError: every request fails until a setting changes. RefusedError: this request fails for what it says.
    GenerationError: the same request may succeed later. `opened`: the endpoint's stream had come; `begun`: with a part
    of the completion. A refusal may be an empty stream's only event (Ray Serve's).
    """
    if _out_of_quota(error):
        return EngineSetupError(
            f"{config.url}: the quota of the key in ${config.api_key_env} is used up: raise it with the provider, or "
            "name another endpoint (engine.url)"
        )
    words = _words(error, config)
    if begun or (opened and not is_refusal(error)):
        return GenerationError(f"{config.url} broke off its answer: {words}")
    if isinstance(error, APIConnectionError):
        return GenerationError(
            f"cannot reach {config.url} ({_cause(error)}): start the endpoint, or correct engine.url"
        )
    status = _status(error)
    if status is None or is_passing(error):
        return GenerationError(f"{config.url} could not answer the request: {words}")
    return _refused(error, status, words, config)


def page_error(config: EngineConfig, status: int) -> EngineSetupError:
    """The error for a web page (of a proxy, a login, another service) where the API should be."""
    return EngineSetupError(
        f"{config.url} answers {status} with a web page instead of an answer: set engine.url to the API's base, "
        "which mostly ends in /v1"
    )


def is_page(content_type: str | None) -> bool:
    """Whether a response is for people."""
    return "html" in (content_type or "").lower()


def has_no_chat(error: GenerationError) -> bool:
    """Whether an endpoint that refuses the plainest chat may still take completions: not for want of a key or quota."""
    return isinstance(error, RefusedError) or (
        isinstance(error, EngineSetupError) and _OTHER_ROUTE in str(error)
    )


def refuses_all(refused: RefusedError, config: EngineConfig) -> EngineSetupError:
    """The error for an endpoint that refuses the plainest request there is."""
    words = str(refused).removeprefix(f"{config.url} refused the request: ")[:_FEW_WORDS]
    return EngineSetupError(
        f"{config.url} refuses even a request for one token of engine.model={config.model} ({words}): correct "
        "engine.model, or set engine.route to the route that it has (completions or chat)"
    )


def _refused(error: Broken, status: int, words: str, config: EngineConfig) -> GenerationError:
    said = _all_words(error)
    if status in (400, 413, 422) and any(word in said for word in _TOO_LONG):
        return PromptTooLongError(
            f"the prompt does not fit into the endpoint's context: {words}; lower "
            "reasoning.max_passage_chars or reasoning.max_passages, or serve the model with a longer context"
        )
    if isinstance(error, APIStatusError) and is_page(error.response.headers.get("content-type")):
        return page_error(config, status)
    if status in (400, 413, 422) or (status == 403 and any(word in said for word in _CONTENT)):
        return RefusedError(f"{config.url} refused the request: {words}")
    if status in (401, 403):
        # Not in the endpoint's words: they may repeat the key.
        return EngineSetupError(
            f"{config.url} refused the key ({status}): set it in ${config.api_key_env}, with access to "
            f"engine.model={config.model}"
        )
    if status == 404:
        return EngineSetupError(
            f"{config.url} has no model '{config.model}' on this route ({words[:_FEW_WORDS]}): set engine.model to a "
            "name that it serves, engine.url to its base, which mostly ends in /v1, and engine.route to its route"
        )
    if status < 400 or status in _WRONG_ROUTE:
        return EngineSetupError(
            f"{config.url} answers {status} ({words[:_FEW_WORDS]}): correct engine.url, which mostly ends in /v1, or "
            "engine.route"
        )
    return GenerationError(f"{config.url} refused the request: {words}")


def _status(error: Broken) -> int | None:
    """The status, which in a stream is the error's code."""
    if isinstance(error, APIStatusError):
        return error.status_code
    code = error.code if isinstance(error, APIError) else None
    return int(code) if code and code.isdecimal() else None


def _out_of_quota(error: Broken) -> bool:
    named = isinstance(error, APIError) and _NO_QUOTA in (error.code, error.type)
    return named or _status(error) == _PAYMENT


def _all_words(error: Broken) -> str:
    return f"{error.code} {error.message} {error.body}" if isinstance(error, APIError) else ""


def _words(error: Broken, config: EngineConfig) -> str:
    """The endpoint's own message, in one line and shortened (it may repeat parts of the prompt), without the key."""
    body = error.body if isinstance(error, APIError) else None
    message = (body.get("message") or body.get("detail")) if isinstance(body, dict) else None
    words = _one_line(str(message or error))
    if key := os.environ.get(config.api_key_env, "").strip():
        words = words.replace(key, f"${config.api_key_env}")
    return words[:_WORDS]


def _cause(error: APIConnectionError) -> str:
    cause = error.__cause__
    return _one_line(str(cause or "")) or (type(cause).__name__ if cause else str(error))


def _one_line(text: str) -> str:
    return " ".join(text.split())
