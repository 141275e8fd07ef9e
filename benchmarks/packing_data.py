"""What packing.py trains on: trajectories of the annotation teacher, and a tokenizer of their own passages.

    musique     gold decompositions; one step a hop, then the answer: 3 to 5 steps
    hotpotqa    for want of decompositions, each hop quotes the first sentence of its gold passage: 3 steps
    miniature   made-up worlds, where no files are given: 3 to 5 steps of short passages

Retrieval is real (BM25, K=4, S=5); only what the steps say is gold.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from steper_ray import stages
from steper_ray.config import Config
from steper_ray.corpora import open_corpus
from steper_ray.training.tokenising import tokenise
from steper_ray.training.tokens import Tokens

VOCABULARY = 8192


def build(name: str, data: Path | None, folder: Path) -> tuple[Tokens, PreTrainedTokenizerFast]:
    """The token files of one data set, and the tokenizer. `data` holds <name>/corpus.jsonl(.gz) and
    <name>/questions.jsonl, as the project's own format (`corpus.kind=plain`) has them."""
    corpus: dict[str, Any] = {"miniature": {"worlds": 20}}
    if name != "miniature":
        if data is None:
            raise SystemExit(
                f"{name} needs --data FOLDER, with {name}/corpus.jsonl and {name}/questions.jsonl"
            )
        corpus = {
            "kind": "plain",
            "passages": _unpacked(data / name / "corpus.jsonl", folder),
            "questions": data / name / "questions.jsonl",
        }
        if name == "hotpotqa":
            corpus["questions"] = _quoting(corpus["questions"], corpus["passages"], folder)
    settings = {"run_dir": folder / name, "corpus": corpus, "build": {"teacher": "annotation", "engines": 1}}
    config = Config.model_validate(settings)
    stages.build(config)
    tokenizer, saved = _tokenizer(config), folder / name / "tokenizer"
    tokenizer.save_pretrained(saved)
    return tokenise(stages.trajectories_folder(config), str(saved), config.run_dir), tokenizer


def _unpacked(path: Path, folder: Path) -> Path:
    packed = path.with_name(path.name + ".gz")
    if path.exists() or not packed.exists():
        return path
    copy = folder / f"{path.parent.name}-{path.name}"
    copy.write_bytes(gzip.decompress(packed.read_bytes()))
    return copy


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as stream:
        yield from map(json.loads, stream)


def _quoting(questions: Path, passages: Path, folder: Path) -> Path:
    """The questions with a decomposition whose hops quote the gold passages."""
    known = {passage["id"]: passage for passage in _lines(passages)}
    out = folder / "hotpotqa-questions.jsonl"
    with out.open("w", encoding="utf-8") as stream:
        for question in _lines(questions):
            gold = [known[name] for name in question["gold_ids"] if name in known]
            question["decomposition"] = [
                {
                    "question": f"{passage['title']} >> first sentence",
                    "answer": passage["text"].split(". ")[0],
                    "gold_id": passage["id"],
                }
                for passage in gold
            ]
            stream.write(json.dumps(question) + "\n")
    return out


def _tokenizer(config: Config) -> PreTrainedTokenizerFast:
    """Byte-level BPE, trained on the corpus."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<pad>", "<s>", "</s>"], show_progress=False
    )
    texts = (f"Title: {passage.title}\n{passage.text}" for passage in open_corpus(config.corpus).passages())
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
