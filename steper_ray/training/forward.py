"""The forward pass of a student over packed rows, under any of the ways to attend. No DeepSpeed, no data, no Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from steper_ray.core.errors import TrainingError
from steper_ray.training.attention import IMPLEMENTATIONS, Attention, model_inputs
from steper_ray.training.packing import Packed, example_losses, supervised_columns, supervised_tokens


class Forward:
    """`run` is called for the forward pass of `module`, the Hugging Face model: itself, or an engine around it.

    Raises TrainingError where the model has no such attention.
    """

    def __init__(
        self,
        run: Callable[..., Any],
        module: Any,
        attention: Attention,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._run, self._module, self._dtype, self._device = run, module, dtype, device
        self._attend(attention)

    @property
    def module(self) -> Any:
        """The Hugging Face model, in PEFT's wrapper if adapters learn; under ZeRO-3 its parameters may be empty."""
        return self._module

    def losses(self, packed: Packed) -> torch.Tensor:
        """The loss of each example of one micro-batch, shape (examples,), float32, with gradient."""
        packed = packed.to(self._device)
        columns = supervised_columns(packed)
        return example_losses(self._logits(packed, columns), packed, columns)

    def supervised(self, packed: Packed) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of each supervised token of one micro-batch, row by row: its logits, its label and its example.

        Shapes (tokens, vocabulary), (tokens,) and (tokens,), on the device; the logits with gradient.
        """
        packed = packed.to(self._device)
        columns = supervised_columns(packed)
        return supervised_tokens(self._logits(packed, columns), packed, columns)

    def log_probabilities(self, packed: Packed) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of each supervised token, row by row: those of the whole vocabulary in float32, its label, its example.

        On the CPU, without gradient or dropout. For a few tokens.
        """
        with self.evaluating():
            logits, labels, example = self.supervised(packed)
        return logits.float().log_softmax(dim=-1).cpu(), labels.cpu(), example.cpu()

    def _logits(self, packed: Packed, columns: torch.Tensor) -> torch.Tensor:
        inputs = model_inputs(packed, self._attention, self._dtype)
        logits: torch.Tensor = self._run(**inputs, logits_to_keep=columns, use_cache=False).logits
        return logits

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Within it `losses` have no gradient and no dropout. Nothing that training continues with is touched."""
        self._module.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self._module.train()

    @contextmanager
    def attending(self, attention: Attention) -> Iterator[None]:
        """Within it the student attends another way."""
        own = self._attention
        self._attend(attention)
        try:
            yield
        finally:
            self._attend(own)

    def _attend(self, attention: Attention) -> None:
        try:
            self._module.set_attn_implementation(IMPLEMENTATIONS[attention])
        except (ValueError, ImportError) as error:
            raise TrainingError(
                f"train.attention={attention}: this model does not have it ({error}): set train.attention=blocks"
            ) from error
        self._attention: Attention = attention
