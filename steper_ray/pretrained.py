"""Loads configs, tokenizers and models through transformers, with one rule for errors and for code of repositories.

Python code that a model's repository brings along runs only where `trust_remote_code` is set, and no terminal is asked.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from steper_ray.core.copies import local_name
from steper_ray.core.errors import ModelError


def load_shape(model: str, trusted: bool = False) -> Any:
    """The config of a folder or hub name. Raises ModelError."""
    from transformers import AutoConfig

    with _loading(model, "config"):
        return AutoConfig.from_pretrained(local_name(model), trust_remote_code=trusted)


def load_tokenizer(model: str, trusted: bool = False, *, local: bool = False) -> Any:
    """The tokenizer of a folder or hub name; `local` asks no hub. Raises ModelError."""
    from transformers import AutoTokenizer

    with _loading(model, "tokenizer"):
        return AutoTokenizer.from_pretrained(
            local_name(model), local_files_only=local, trust_remote_code=trusted
        )


def load_model(model: str, trusted: bool = False, **how: Any) -> Any:
    """The causal language model of a folder or hub name; `how` is passed on. Raises ModelError."""
    from transformers import AutoModelForCausalLM

    with _loading(model, "weights"), _without_bars():
        return AutoModelForCausalLM.from_pretrained(local_name(model), trust_remote_code=trusted, **how)


def load_encoder(model: str, trusted: bool = False, **how: Any) -> Any:
    """The model of a folder or hub name without a head; `how` is passed on. Raises ModelError."""
    from transformers import AutoModel
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # it reports the head that encoders lack
    try:
        with _loading(model, "weights"), _without_bars():
            return AutoModel.from_pretrained(local_name(model), trust_remote_code=trusted, **how)
    finally:
        logging.set_verbosity(verbosity)


def load_classifier(model: str, trusted: bool = False, **how: Any) -> Any:
    """The model of a folder or hub name with its head for classes; `how` is passed on. Raises ModelError."""
    from transformers import AutoModelForSequenceClassification

    with _loading(model, "weights"), _without_bars():
        return AutoModelForSequenceClassification.from_pretrained(
            local_name(model), trust_remote_code=trusted, **how
        )


@contextmanager
def _without_bars() -> Iterator[None]:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextmanager
def _loading(model: str, what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a broken file raises anything: tokenizers' Rust core even plain Exceptions
        reason = " ".join(str(error).split())
        if "trust_remote_code" in reason:
            raise ModelError(
                f"model '{model}' brings Python code along, which would run here: read it, then set "
                "trust_remote_code=true in `engine`, `train` or `retrieval.encoder`, or take a model that transformers "
                "knows"
            ) from error
        raise ModelError(
            f"model '{model}': its {what} cannot be loaded ({type(error).__name__}: {reason[:500]})"
        ) from error
