"""Parameters that an endpoint does not take: left out of all later requests once it has refused them. Sends nothing."""

from __future__ import annotations

import logging
import re

from openai import APIStatusError

from steper_ray.generation.endpoint.routes import CONTINUES, Request

logger = logging.getLogger(__name__)

#: What a request may go without. The others decide what is asked.
_SPARE = ("temperature", "top_p", "seed", "logprobs", "stop", "stream_options")
#: What of these changes the answers when it is missing.
_MISSED = {"temperature", "top_p", "seed", "stop", "chat_template_kwargs"}
_OLD, _NEW = "max_tokens", "max_completion_tokens"
_REFUSES = re.compile(
    r"un(?:supported|known|recognized|expected)|not (?:supported|permitted|allowed|available|a valid|compatible)"
    r"|does ?n[o']t support|only the default|extra|deprecated|incompatible|cannot be|no such",
    re.IGNORECASE,
)


class Parameters:
    """The parameters one endpoint accepts, as far as it has answered."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._refused: set[str] = set()

    def taken(self, request: Request) -> Request:
        """The request without what was refused; with the newer name of `max_tokens` where that one is wanted."""
        kept = {name: value for name, value in request.items() if name not in self._refused or name == _OLD}
        more = kept.get("extra_body") or {}
        kept["extra_body"] = {name: value for name, value in more.items() if name not in self._refused}
        if _OLD in self._refused:
            kept[_NEW] = kept.pop(_OLD)
        return kept

    def learn(self, error: APIStatusError, request: Request) -> bool:
        """Whether the error refuses parameters that a next request may go without: they are, from now on."""
        if error.status_code not in (400, 422):
            return False
        more = set(request.get("extra_body") or {}) - set(CONTINUES)
        names = ({*_SPARE, _OLD} & request.keys() | more) - self._refused
        words = f"{error.message} {error.body}"
        named = {name for name in names if re.search(rf"\b{name}\b", words)}
        if _NEW not in words:
            named.discard(_OLD)
        # One of the standard's may be named for its value; an extension is named for being one.
        if not named or not (named & more or _REFUSES.search(words) or _NEW in words):
            return False
        self._refused |= named
        for name in sorted(named & _MISSED):
            logger.warning(
                "the endpoint of %s takes no %s: its answers are drawn without it", self._model, name
            )
        return True
