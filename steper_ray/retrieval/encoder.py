"""Texts to vectors by an encoder in the form of sentence-transformers, through transformers.

What its folder says about pooling, prompts, length and similarity holds unless the config says otherwise. A text alone
and in a batch gives the same vector up to rounding, so queries are encoded one by one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steper_ray.config import EncoderConfig
from steper_ray.core.errors import ModelError
from steper_ray.models import context_limit, resolve_model
from steper_ray.pretrained import load_encoder, load_tokenizer

_POOLING = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last",
}


class Encoder:
    """One encoder in this process, on its GPU if it has one. Not safe to call from several threads at once."""

    def __init__(self, config: EncoderConfig) -> None:
        """Raises ModelError."""
        import torch

        model, trusted = resolve_model(config.model), config.trust_remote_code
        self._about = _About(model)
        self._pooling = self._about.pooling if config.pooling == "auto" else config.pooling
        self._normalised = (
            self._about.similarity if config.similarity == "auto" else config.similarity
        ) == "cosine"
        self._prefixes = {
            "query": self._about.prompt("query") if config.query_prefix is None else config.query_prefix,
            "passage": self._about.prompt("passage", "document")
            if config.passage_prefix is None
            else config.passage_prefix,
        }
        self._tokenizer = load_tokenizer(model, trusted)
        self._device = "cuda" if config.num_gpus and torch.cuda.is_available() else "cpu"
        dtype = torch.bfloat16 if self._device == "cuda" else torch.float32
        self._model = load_encoder(model, trusted, dtype=dtype).to(self._device).eval()
        wanted = min(config.max_tokens, self._about.length or config.max_tokens)
        self._length = readable(self._model.config, self._tokenizer, wanted)
        self._batch = config.batch_size

    def queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n, width) vectors."""
        return np.concatenate([self._encode([self._prefixes["query"] + text]) for text in texts])

    def passages(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n, width) vectors; texts of like lengths are encoded together."""
        order = sorted(range(len(texts)), key=lambda n: len(texts[n]))
        found: list[Any] = [None] * len(texts)
        for at in range(0, len(order), self._batch):
            these = order[at : at + self._batch]
            vectors = self._encode([self._prefixes["passage"] + texts[n] for n in these])
            for n, vector in zip(these, vectors, strict=True):
                found[n] = vector
        return np.stack(found)

    def _encode(self, texts: list[str]) -> NDArray[np.float32]:
        import torch

        read = self._tokenizer(
            list(map(as_utf8, texts)),
            padding=True,
            truncation=True,
            max_length=self._length,
            return_tensors="pt",
        ).to(self._device)
        with torch.inference_mode():
            states = self._model(**read).last_hidden_state.float()
        mask = read["attention_mask"]
        if self._pooling == "mean":
            weights = mask[..., None].float()
            pooled = (states * weights).sum(1) / weights.sum(1)
        elif self._pooling == "last":
            # The last token, on whichever side the tokenizer pads.
            places = torch.arange(mask.shape[1], device=mask.device)
            pooled = states[torch.arange(len(texts)), (mask * places).argmax(1)]
        else:
            pooled = states[:, 0]
        if self._normalised:
            pooled = torch.nn.functional.normalize(pooled, dim=1)
        vectors: NDArray[np.float32] = pooled.cpu().numpy()
        return vectors


def as_utf8(text: str) -> str:
    """The text with '?' for each half of a surrogate pair, which no tokenizer takes."""
    return text.encode("utf-8", "replace").decode("utf-8")


def readable(shape: Any, tokenizer: Any, wanted: int) -> int:
    """The wanted number of tokens, or what the model reads at most."""
    return min(wanted, int(tokenizer.model_max_length), context_limit(shape) or wanted)


@lru_cache(maxsize=2)
def encoder(config: EncoderConfig) -> Encoder:
    """The encoder of a config, loaded once in this process."""
    return Encoder(config)


class _About:
    """The settings in sentence-transformers' files; for a hub name each file is fetched."""

    def __init__(self, model: str) -> None:
        self._model = model
        settings = self._read("config_sentence_transformers.json")
        self.similarity = "dot" if settings.get("similarity_fn_name") == "dot" else "cosine"
        self._prompts = settings.get("prompts") or {}
        self.length: int | None = self._read("sentence_bert_config.json").get("max_seq_length")
        pooling = self._read("1_Pooling/config.json")
        chosen = [name for key, name in _POOLING.items() if pooling.get(key)]
        if pooling and len(chosen) != 1:
            raise ModelError(
                f"model '{model}': 1_Pooling/config.json has another pooling than {list(_POOLING)}"
            )
        self.pooling = chosen[0] if chosen else "mean"

    def prompt(self, *names: str) -> str:
        return next((self._prompts[name] for name in names if self._prompts.get(name)), "")

    def _read(self, name: str) -> dict[str, Any]:
        """The object in a file of the model; empty where there is none. Raises ModelError."""
        from transformers.utils import cached_file

        try:
            path = cached_file(self._model, name, _raise_exceptions_for_missing_entries=False)
            found = json.loads(Path(path).read_text(encoding="utf-8")) if path else {}
        except (OSError, ValueError) as error:
            raise ModelError(f"model '{self._model}': {name} cannot be read: {error}") from error
        if not isinstance(found, dict):
            raise ModelError(f"model '{self._model}': {name} is not an object")
        return found
