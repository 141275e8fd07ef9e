"""What an endpoint's error means: for the reader, for a further attempt, and for the limit of requests.

It knows the client's errors and sends nothing. No message repeats the key, and the log's words are all our own.
"""

from __future__ import annotations

import time
from json import JSONDecodeError

from openai import APIConnectionError, APIError, APIStatusError, APITimeoutError

from steper_ray.config import EngineConfig
from steper_ray.errors import EngineDeadError, GenerationError, PromptTooLongError
from steper_ray.generation.retrying import retry_after

#: What goes wrong between the client and the endpoint. A broken stream may end within an event.
Broken = APIError | JSONDecodeError

# How endpoints say that a prompt does not fit: OpenAI's error code, vLLM's and others' words.
_TOO_LONG = ("context_length_exceeded", "context length", "maximum model length", "max_model_len", "too long")
_BUSY = (429, 503, 504, 529)  # too much at once, by whatever name
_NO_QUOTA = "insufficient_quota"  # OpenAI's code; its status is 429 too, but waiting does not help
_PAYMENT = 402  # others' status for the same


def is_refusal(error: Broken) -> bool:
    """Whether it is the endpoint's own answer, and no lost connection."""
    return _status(error) is not None


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
    return status is None or status in (408, 409, 429) or status >= 500


def asked_to_wait(error: Broken) -> float:
    """Seconds that the endpoint wants to be left alone; 0 where it does not say."""
    return retry_after(error.response.headers, time.time()) if isinstance(error, APIStatusError) else 0.0


def in_short(error: Broken, opened: bool) -> str:
    """What the endpoint does, for the log. `opened`: its stream had come."""
    if (status := _status(error)) is not None:
        return f"answers {status}"
    return "breaks off streams" if opened else "cannot be reached"


def as_ours(error: Broken, config: EngineConfig, opened: bool, begun: bool) -> GenerationError:
    """The error as ours. What would refuse every request is an EngineDeadError.

    `opened`: the endpoint's stream had come; `begun`: with a part of the completion. A refusal may be an empty
    stream's only event (Ray Serve's).
    """
    url = config.url
    if _out_of_quota(error):
        return EngineDeadError(
            f"{url}: the quota of the key in ${config.api_key_env} is used up: raise it with the provider, or name "
            "another endpoint (engine.url)"
        )
    if begun or (opened and not is_refusal(error)):
        return GenerationError(f"{url} broke off the completion: {_words(error)}")
    if isinstance(error, APIConnectionError):
        return EngineDeadError(
            f"cannot reach {url} ({error.__cause__ or error}): start the endpoint, or correct engine.url"
        )
    match _status(error):
        case 401 | 403:
            # Not in the endpoint's words: they may repeat the key.
            return EngineDeadError(f"{url} refused the key: set it in ${config.api_key_env}")
        case 404:
            return EngineDeadError(
                f"{url} has no model '{config.model}' or no completions: set engine.model to a name that it serves, "
                "and engine.url to its base, which mostly ends in /v1"
            )
        case 400 | 413 | 422 if any(words in _all_words(error) for words in _TOO_LONG):
            return PromptTooLongError(
                f"the prompt does not fit into the endpoint's context: {_words(error)}; lower "
                "reasoning.max_passage_chars or reasoning.max_passages, or serve the model with a longer context"
            )
    return GenerationError(f"{url} refused the request: {_words(error)}")


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
    return f"{error.code} {error.message}" if isinstance(error, APIError) else ""


def _words(error: Broken) -> str:
    """The endpoint's own message, shortened: it may repeat parts of the prompt."""
    body = error.body if isinstance(error, APIError) else None
    message = body.get("message") if isinstance(body, dict) else None
    return str(message or error)[:300]
