"""Soft targets: the teacher's distribution of every target token, from the step trees that the student reads.

- One forward pass over a tree gives the teacher's distributions of all steps: passages are read once, not once a step.
- The divergence is a mean over an example's target tokens, as its cross-entropy is; passages and questions have none.
- Probabilities are computed for a few tokens at a time and again in the backward pass: what is kept are the logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import cross_entropy, kl_div
from torch.utils.checkpoint import checkpoint

from steper_ray.config import SoftTargetsConfig, TrainConfig
from steper_ray.core.errors import TrainingError
from steper_ray.models import resolve_model
from steper_ray.pretrained import load_shape, load_tokenizer
from steper_ray.training.alignment import NONE
from steper_ray.training.engine import Worker, deepspeed_config, load_whole_or_parts
from steper_ray.training.forward import Forward
from steper_ray.training.memory import SMALL, training_dtype
from steper_ray.training.packing import Packed, example_means
from steper_ray.training.sizes import model_size

_AT_ONCE = 256  # target tokens whose whole distributions are there together
_NOTHING = -100.0  # the log-probability of what has none, as a number that can be multiplied by 0
_LEAST = 1e-6  # of the teacher's tokens that are not among its likeliest


class Teacher(Forward):
    """The frozen teacher on all workers, in parts under ZeRO-3 as the student is. Raises TrainingError, ModelError."""

    def __init__(
        self, name: str, targets: SoftTargetsConfig, student: str, config: TrainConfig, worker: Worker
    ) -> None:
        name = resolve_model(name)
        self._targets: SoftTargetsConfig = targets
        self._weighs_steps = config.method == "on_policy" and config.on_policy.step_weights == "divergence"
        self._vocabulary = shared_vocabulary(student, name, config.trust_remote_code)
        shape = load_shape(name, config.trust_remote_code)
        parameters = model_size(shape, config.model_copy(update={"lora": None})).parameters
        parted = config.zero_stage == 3 and parameters > SMALL
        settings = (
            deepspeed_config(config, parameters, shape.get_text_config().hidden_size) if parted else None
        )
        model = load_whole_or_parts(name, config, settings).requires_grad_(False).eval()
        model.config.use_cache = False
        self._parts = None if settings is None else _in_parts(model, settings)
        run = model.to(worker.device) if self._parts is None else self._parts
        super().__init__(run, model, config.attention, training_dtype(config), worker.device)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """It never does anything else."""
        with torch.no_grad():
            yield

    def close(self) -> None:
        """Frees its memory."""
        if self._parts is not None:
            self._parts.destroy()
        self._module = self._parts = None
        del self._run

    def losses_of(self, student: Forward, packed: Packed) -> torch.Tensor:
        """The loss of each example of one micro-batch for the student, shape (examples,), float32, with gradient."""
        logits, labels, example = student.supervised(packed)
        with self.evaluating():
            wanted, _, _ = self.supervised(packed.taught or packed)
        size = self._vocabulary
        apart = divergences(logits[:, :size], wanted[:, :size], self._targets.beta, self._targets.temperature)
        copied = 1 - self._targets.share * (1 - packed.reward.to(example.device)[example])
        token_losses = (1 - copied) * apart
        if bool(copied.any()):
            token_losses = token_losses + copied * cross_entropy(logits.float(), labels, reduction="none")
        losses = example_means(token_losses, example, packed)
        if self._weighs_steps:
            losses = losses * step_weights(example_means(apart.detach(), example, packed), packed.chain)
        return losses


def stored_losses(targets: SoftTargetsConfig, student: Forward, packed: Packed) -> torch.Tensor:
    """As `Teacher.losses_of`, from what the build's teacher said; other tokens have their cross-entropy alone."""
    logits, labels, example = student.supervised(packed)
    token_losses = cross_entropy(logits.float(), labels, reduction="none")
    if packed.soft_ids is not None and packed.soft_logprobs is not None:
        ids = packed.soft_ids.to(logits.device)
        said = (ids != NONE).any(dim=-1).nonzero()[:, 0]
        theirs = packed.soft_logprobs.to(logits.device)[said]
        apart = bucket_divergences(logits[said], ids[said], theirs, targets.beta)
        own = token_losses[said]
        token_losses = token_losses.index_add(0, said, targets.share * (apart - own))
    return example_means(token_losses, example, packed)


def step_weights(divergence: torch.Tensor, chain: torch.Tensor) -> torch.Tensor:
    """The trust in the teacher at each step: the least divergence of its chain so far, over its own; at most 1.

    `divergence` and `chain` have shape (examples,), the steps of a chain in order. A student that has gone astray is
    past what the teacher knows, and one that comes back is taught in full again (after SOD, arXiv 2605.07725).
    """
    least, weights = dict[int, float](), list[float]()
    for of, value in zip(chain.tolist(), divergence.tolist(), strict=True):
        least[of] = min(least.get(of, value), value)
        weights.append(least[of] / value if value > 0 else 1.0)
    return divergence.new_tensor(weights)


def divergences(
    student: torch.Tensor, teacher: torch.Tensor, beta: float, temperature: float
) -> torch.Tensor:
    """The generalised Jensen-Shannon divergence of each token's distributions, shape (tokens,), float32.

    Of logits of shape (tokens, vocabulary). With m = (1 - beta) student + beta teacher it is
    beta KL(teacher || m) + (1 - beta) KL(student || m) for 0 < beta < 1, KL(teacher || student) for 0 and
    KL(student || teacher) for 1 (Agarwal et al., arXiv 2306.13649, section 3), times temperature^2.
    """
    return _by_parts(_divergence, (student, teacher), beta, temperature)


def bucket_divergences(
    student: torch.Tensor, ids: torch.Tensor, logprobs: torch.Tensor, beta: float
) -> torch.Tensor:
    """As `divergences` at temperature 1, over the teacher's likeliest tokens and one bucket of all others.

    `student` are logits of shape (tokens, vocabulary); `ids` and `logprobs` have shape (tokens, k), NONE for no token.
    The divergence of buckets is a lower bound of that of the whole distributions.
    """
    return _by_parts(_bucket_divergence, (student, ids, logprobs), beta)


def _by_parts(
    divergence: Callable[..., torch.Tensor], of: Sequence[torch.Tensor], *settings: float
) -> torch.Tensor:
    """A function of each token, computed for a few of them at a time, and again in the backward pass."""
    parts = [
        checkpoint(divergence, *(one[at : at + _AT_ONCE] for one in of), *settings, use_reentrant=False)
        for at in range(0, len(of[0]), _AT_ONCE)
    ]
    return torch.cat(parts) if parts else of[0].new_zeros(0, dtype=torch.float32)


def _bucket_divergence(
    student: torch.Tensor, ids: torch.Tensor, logprobs: torch.Tensor, beta: float
) -> torch.Tensor:
    student, none = student.float(), ids == NONE
    whole = student.logsumexp(dim=-1, keepdim=True)
    listed = student.gather(-1, ids.clamp(min=0)) - whole
    # One column more, for tokens that are none.
    of = torch.zeros(len(ids), student.shape[-1] + 1, dtype=torch.bool, device=ids.device)
    of = of.scatter(-1, ids.masked_fill(none, student.shape[-1]), True)[:, :-1]
    rest = student.masked_fill(of, -torch.inf).logsumexp(dim=-1, keepdim=True) - whole
    ours = torch.cat([listed.masked_fill(none, _NOTHING), rest.clamp(min=_NOTHING)], dim=-1)
    theirs = logprobs.clamp(min=_NOTHING).masked_fill(none, _NOTHING)
    # Rounded probabilities may add up to a little more than 1.
    other = (1 - theirs.exp().sum(dim=-1, keepdim=True)).clamp(min=_LEAST).log()
    theirs = torch.cat([theirs, other], dim=-1).log_softmax(dim=-1)
    return _generalised(ours, theirs, beta)


def _divergence(
    student: torch.Tensor, teacher: torch.Tensor, beta: float, temperature: float
) -> torch.Tensor:
    ours = (student.float() / temperature).log_softmax(dim=-1)
    theirs = (teacher.float() / temperature).log_softmax(dim=-1)
    return _generalised(ours, theirs, beta) * temperature**2


def _generalised(ours: torch.Tensor, theirs: torch.Tensor, beta: float) -> torch.Tensor:
    """The generalised Jensen-Shannon divergence of log-probabilities, by token."""
    if beta in (0.0, 1.0):
        return _kl(theirs, ours) if beta == 0 else _kl(ours, theirs)
    shares = torch.tensor([1 - beta, beta], device=ours.device).log()
    mixed = torch.logsumexp(torch.stack([ours + shares[0], theirs + shares[1]]), dim=0)
    return beta * _kl(theirs, mixed) + (1 - beta) * _kl(ours, mixed)


def _kl(of: torch.Tensor, to: torch.Tensor) -> torch.Tensor:
    """KL(of || to) of log-probabilities, by token."""
    return kl_div(to, of, reduction="none", log_target=True).sum(dim=-1)


def shared_vocabulary(student: str, teacher: str, trusted: bool) -> int:
    """The number of tokens that both know. Raises TrainingError where they do not read text alike."""
    ours, theirs = (load_tokenizer(name, trusted) for name in (student, teacher))
    if ours.get_vocab() != theirs.get_vocab():
        raise TrainingError(
            f"train.soft_targets.teacher={teacher} has another tokenizer than the student {student}: their tokens "
            "cannot be compared. Take a teacher of the student's family, or learn its chains alone (no soft_targets)"
        )
    return len(ours)


def _in_parts(model: torch.nn.Module, settings: dict[str, Any]) -> Any:
    """Inside a DeepSpeed engine without an optimiser, which gathers a layer at a time."""
    import deepspeed

    without = {key: value for key, value in settings.items() if key != "gradient_clipping"}
    engine, _, _, _ = deepspeed.initialize(model=model, config=without)
    engine.eval()
    return engine
