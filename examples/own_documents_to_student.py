"""Your passages and questions become a trained student.

    python examples/own_documents_to_student.py passages.jsonl questions.jsonl runs/mine [section.field=value ...]

Each run continues where the one before stopped. Set `engine.*` for your teacher and `train.student` for your student;
by default both are the embedded miniature models.
"""

from __future__ import annotations

import sys

from steper_ray import build, load_config, train


def main(passages: str, questions: str, run_dir: str, *overrides: str) -> str:
    """Returns the student's folder."""
    corpus = ["corpus.kind=plain", f"corpus.passages={passages}", f"corpus.questions={questions}"]
    config = load_config(None, [f"run_dir={run_dir}", *corpus, *overrides])
    print(build(config).summary())
    student = train(config)
    print(f"{student.steps} steps: {student.model_dir}")
    return str(student.model_dir)


if __name__ == "__main__":
    main(*sys.argv[1:])
