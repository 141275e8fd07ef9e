"""What the paper's experiments would cost, before anything runs."""

import pytest

from steper_ray.config.file import load_config
from steper_ray.core.errors import ModelError
from steper_ray.data.estimate import model_size
from steper_ray.experiments.cost import OFFICIAL, cost
from steper_ray.experiments.paper import Scale, run_paper
from steper_ray.experiments.plan import experiments
from steper_ray.experiments.run import Paper


def hours(name: str, *overrides: str) -> dict[str, float]:
    config = load_config("jobs/configs/paper_hotpotqa.yaml", ["demo.seeds=[0]", *overrides])
    paper = Paper(config.run_dir, {"hotpotqa": config}, {})
    line = cost(paper, [(experiments({}, [])[name], "hotpotqa")]).splitlines()[0]
    words = line.replace(",", "").replace("(", "").replace(")", "").split()
    return {
        "teacher": float(words[words.index("teacher") + 1]),
        "training": float(words[words.index("trainings") + 1]),
        "disk": float(words[words.index("GB") - 1]),
    }


def test_hours_follow_the_questions_and_disk_the_students():
    whole, half = hours("table2"), hours("table2", f"corpus.limit={OFFICIAL['hotpotqa'][0] // 2}")
    assert half["teacher"] == pytest.approx(whole["teacher"] / 2, rel=0.05)
    assert half["training"] == pytest.approx(whole["training"] / 2, rel=0.05)
    assert whole["disk"] == half["disk"] == 4 * 16  # four students of 8e9 parameters in bfloat16
    # By hand: 90,447 trees of 20 passages and five branches, twice, 8 operations a parameter and token.
    tokens = 2 * 90_447 * (150 * 20 + sum(25 + 32 * step for step in range(1, 6)))
    assert whole["training"] == pytest.approx(4 * 8 * 8e9 * tokens / (989e12 * 0.4) / 3600, rel=0.01)


def test_a_students_size_is_in_its_name_or_its_files():
    assert model_size("Qwen/Qwen2.5-0.5B") == 0.5e9
    assert model_size("meta-llama/Llama-3.1-70B-Instruct") == 70e9
    assert 0.5e6 < model_size("miniature:base") < 2e6
    with pytest.raises(ModelError, match="not on this disk"):
        model_size("someone/unknown")


def test_a_dry_run_of_the_papers_scale_ends_with_hours_and_disk():
    said: list[str] = []
    run_paper(["table2", "fig4"], Scale.full, [], [], [], dry_run=True, say=said.append)
    assert "together: " in said[-1]
    assert "GPU hours" in said[-1]
    assert "GB of students" in said[-1]
