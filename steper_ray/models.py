"""Model names: the embedded miniature models, Hugging Face folders and hub names, resolved and checked.

Knows the settings and no other room.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from steper_ray.config import EngineConfig, ReasoningConfig
from steper_ray.core.copies import local
from steper_ray.core.errors import ModelError
from steper_ray.core.fingerprints import folder_fingerprint
from steper_ray.core.storage import as_path, has_scheme, is_remote
from steper_ray.core.sums import SUMS, sums_damage

ASSETS = Path(__file__).parent / "miniature" / "assets"
_PREFIX = "miniature:"
_ADAPTERS = "adapter_config.json"
#: The setting that says how far back a kind of layer sees.
_REACH = {
    "sliding_attention": "sliding_window",
    "chunked_attention": "attention_chunk_size",
    "local_attention": "window_size",
}
_POINTER = b"version https://git-lfs"
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")


def resolve_model(name: str) -> str:
    """A folder of this node that holds config, weights and tokenizer, or a hub name as it is.

    Of a folder of a store it is this node's copy.

    A folder with SHA256SUMS is compared with them; large files are read once a node. Raises ModelError, naming what is
    missing or damaged, for a folder that cannot be loaded.
    """
    if name.startswith(_PREFIX):
        folder = ASSETS / name.removeprefix(_PREFIX)
        if not folder.is_dir():
            known = ", ".join(f"{_PREFIX}{p.name}" for p in sorted(ASSETS.glob("*")) if p.is_dir())
            raise ModelError(f"model '{name}': the package ships {known or 'no miniature models'}")
    else:
        folder = _here(name)
        if not folder.exists():
            if has_scheme(name) or name.startswith((".", "/", "~")) or name.count("/") != 1:
                raise ModelError(f"model '{name}': no such folder, and not a hub name (organisation/model)")
            return name
    check_sums(folder)
    if not (folder / "config.json").is_file():
        if (folder / _ADAPTERS).is_file():
            raise ModelError(
                f"model '{name}': {folder} holds LoRA adapters, not a whole model: train with train.lora.merge=true, "
                "or merge them into their base: peft.AutoPeftModelForCausalLM.from_pretrained(FOLDER)"
                ".merge_and_unload().save_pretrained(OUT), and put the tokenizer beside it"
            )
        raise ModelError(f"model '{name}': {folder} has no config.json: not a Hugging Face model folder")
    if not any((folder / file).is_file() for file in _TOKENIZERS):
        raise ModelError(
            f"model '{name}': {folder} has no tokenizer ({_TOKENIZERS[0]}): save the model's tokenizer there, "
            "or name one in `engine.tokenizer`"
        )
    if not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
        raise ModelError(f"model '{name}': {folder} has no weights (*.safetensors)")
    _check_files(folder)
    return str(folder)


def _here(name: str) -> Path:
    """A folder on this node; of a store's, its copy, or its path there where nothing is there. Raises ModelError."""
    try:
        path = as_path(name)
        return local(path) if is_remote(path) else path.expanduser()
    except FileNotFoundError:
        return path
    except ValueError as error:
        raise ModelError(f"model '{name}': {error}") from error


def _check_files(folder: Path) -> None:
    """Raises ModelError for files that were not downloaded, or not to their end. Of weights it reads the headers."""
    from safetensors import SafetensorError, safe_open

    weights = sorted(folder.glob("*.safetensors"))
    for file in (*weights, *folder.glob("*.bin"), *(folder / name for name in _TOKENIZERS)):
        if file.is_file():
            with file.open("rb") as stream:
                if stream.read(len(_POINTER)) == _POINTER:
                    raise ModelError(
                        f"{file}: a Git LFS pointer, not the file: run `git lfs pull` in {folder}"
                    )
    for file in weights:
        try:
            with safe_open(file, framework="numpy"):
                pass
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"{file}: cut off, or no safetensors file ({error}): download it again"
            ) from error
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ModelError(f"{index}: cannot be read ({error}): download it again") from error
        if missing := sorted(named - {file.name for file in weights}):
            raise ModelError(
                f"{folder}: {len(missing)} files of weights are missing, the first: {missing[0]}"
            )


def check_sums(folder: Path) -> None:
    """Raises ModelError where a folder has SHA256SUMS, as every exported student, and they do not hold."""
    if (folder / SUMS).exists() and (wrong := sums_damage(folder)) is not None:
        raise ModelError(
            f"{folder}: damaged: {wrong}. Copy the folder again, or train again to export it; if its files were "
            f"changed on purpose, delete {SUMS}"
        )


def model_fingerprint(engine: EngineConfig) -> dict[str, str | None]:
    """The fingerprint of a model: its files and its tokenizer's by content; a hub name or an endpoint by name.

    Raises ModelError for a folder that cannot be loaded.
    """
    found = {"model": engine.model, "tokenizer": engine.tokenizer}
    if engine.kind == "openai":
        found["url"] = engine.url
    elif (folder := Path(resolve_model(engine.model))).is_dir():
        found["model"] = folder_fingerprint(folder)
    if engine.tokenizer and (folder := _here(engine.tokenizer)).is_dir():
        found["tokenizer"] = folder_fingerprint(folder)
    return found


def check_adapter(name: str, engine: EngineConfig) -> None:
    """Raises ModelError unless `name` is a folder of LoRA adapters that this engine can serve over its model."""
    if engine.kind != "vllm":
        raise ModelError(
            f"adapter '{name}': engine.kind={engine.kind} serves no LoRA adapters: set engine.kind=vllm, or train with "
            "train.lora.merge=true and serve the whole model"
        )
    path = _here(name) / _ADAPTERS
    if not path.is_file():
        raise ModelError(f"adapter '{name}': no {_ADAPTERS} there: not a folder of LoRA adapters")
    check_sums(path.parent)


def adapter_rank(folder: str) -> int:
    """The rank of a LoRA adapter's matrices. Raises ModelError."""
    path = _here(folder) / _ADAPTERS
    try:
        return int(json.loads(path.read_text(encoding="utf-8"))["r"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ModelError(f"{path}: cannot be read as a LoRA adapter's config: {error}") from error


def absolute_engine(engine: EngineConfig) -> EngineConfig:
    """The engine with its folders by their whole paths, for processes that work in other folders.

    An endpoint's model is a name that it serves; its tokenizer may be a folder.
    """
    names = {"tokenizer": engine.tokenizer} | ({} if engine.kind == "openai" else {"model": engine.model})
    folders = {
        field: str(Path(name).expanduser().resolve())
        for field, name in names.items()
        if name and Path(name).expanduser().is_dir()
    }
    return engine.model_copy(update=folders)


def absolute_reasoning(config: ReasoningConfig) -> ReasoningConfig:
    """The settings with their folders and files by whole paths, as `absolute_engine`."""
    whole: dict[str, object] = {}
    if config.demonstrations is not None:
        whole["demonstrations"] = config.demonstrations.resolve()
    if config.escalate is not None:
        engine = absolute_engine(config.escalate.engine)
        whole["escalate"] = config.escalate.model_copy(update={"engine": engine})
    return config.model_copy(update=whole)


def partial_attention(model_config: Any, tokens: int) -> list[str]:
    """The kinds of a model's layers that do not see everything before them in a sequence of `length` tokens.

    `model_config` is a text model's config of transformers; a window that no sequence outgrows is full attention.
    """
    window = getattr(model_config, "sliding_window", None)
    kinds = set(
        getattr(model_config, "layer_types", None) or ["sliding_attention" if window else "full_attention"]
    )
    if "local" in (getattr(model_config, "attention_layers", None) or ()):  # GPT-Neo
        kinds.add("local_attention")
    reach = {kind: getattr(model_config, name, None) for kind, name in _REACH.items()}
    short = {kind for kind in kinds if (reach.get(kind) or 0) < tokens}
    return sorted(short - {"full_attention"})


def context_limit(model_config: Any) -> int | None:
    """Most tokens of one sequence that a text model's config allows; None where positions have no end."""
    names = ("max_position_embeddings", "n_positions", "max_seq_len")
    return next((limit for name in names if (limit := getattr(model_config, name, None))), None)
