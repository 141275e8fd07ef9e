"""The values that the paper prints (StepER, EMNLP 2025, arXiv 2510.07923), by table or figure, data set and row.

In %, except the share of duplicates and retrieval recall (0 to 1). Values of figures are read off the plots.
"""

from __future__ import annotations

from collections.abc import Mapping

Values = Mapping[str, float]
_TABLE1 = {
    "no retrieval": (29.83, 35.59, 33.69, 29.18, 38.76, 35.01, 8.68, 17.91, 13.22),
    "single-step RAG": (35.97, 43.10, 38.88, 38.25, 49.08, 46.15, 11.18, 20.91, 22.57),
    "IRCoT": (41.80, 49.94, 44.80, 43.40, 53.82, 50.80, 17.20, 27.57, 28.40),
    "Self-Ask": (38.80, 47.41, 43.00, 40.80, 52.00, 48.20, 15.83, 23.58, 23.85),
    "ReAct": (40.20, 49.50, 43.00, 33.60, 43.96, 39.60, 14.80, 24.73, 21.20),
    "teacher, ITER-RETGEN": (44.60, 50.92, 46.20, 48.20, 60.12, 53.40, 24.20, 33.17, 30.00),
    "teacher, IRCoT": (60.16, 67.06, 62.37, 49.60, 61.31, 57.23, 24.30, 35.29, 34.74),
    "teacher, Self-Ask": (57.80, 66.44, 61.00, 50.60, 62.60, 59.40, 25.20, 36.68, 33.80),
    "SAIL": (47.90, 54.06, 49.50, 44.56, 56.30, 51.41, 6.41, 16.34, 10.62),
    "KARD": (47.80, 54.48, 51.40, 43.80, 54.59, 53.00, 14.60, 25.54, 24.60),
    "CoN": (45.66, 53.93, 48.89, 42.46, 53.34, 51.00, 16.36, 26.85, 25.86),
    "Vanilla-KD": (60.06, 65.55, 62.16, 46.40, 57.28, 54.80, 20.92, 32.46, 30.13),
    "StepER": (63.60, 69.45, 66.00, 51.00, 62.80, 61.00, 23.59, 36.13, 34.07),
}
_TABLE2 = {
    "uniform": (58.40, 33.58),
    "weight-first": (57.70, 32.46),
    "weight-last": (58.00, 33.37),
    "difficulty-aware": (61.00, 34.07),
}
_TABLE3 = {
    "student as it was": (48.20, 23.85),
    "Vanilla-KD": (56.40, 37.00),
    "StepER": (57.80, 38.80),
    "teacher": (59.40, 33.80),
}
_TABLE5 = {"3": 56.45, "4": 56.81, "5": 57.23, "6": 56.85, "7": 56.43}
_TABLE7 = {
    "StepER, S = 3": (56.8, 0.71, 0.16),
    "StepER, S = 4": (59.6, 0.73, 0.24),
    "StepER, S = 5": (61.0, 0.74, 0.26),
    "Vanilla-KD, S = 5": (54.8, 0.70, 0.20),
    "single-step RAG": (46.15, 0.53, 0.0),
}
_FIG3 = {"Vanilla-KD": 54.8, "+ first": 55.7, "+ first + one mid": 58.8, "StepER": 61.0}
#: Fig. 3's ratings by its judge, read off the plot.
JUDGED_FIG3 = {
    row: dict(zip(("initialization", "expansion", "aggregation"), values, strict=True))
    for row, values in {
        "Vanilla-KD": (72.5, 50.0, 48.0),
        "+ first": (74.6, 52.6, 48.0),
        "+ first + one mid": (72.4, 55.0, 49.6),
        "StepER": (77.0, 59.6, 54.6),
    }.items()
}
_FIG4 = {
    "StepER": (41.3, 51.8, 53.5, 56.1),
    "Vanilla-KD": (38.0, 47.2, 49.8, 52.4),
    "IRCoT": (24.3, 33.8, 39.2, 47.8),
}
_FIG5 = {
    ("hotpotqa", "2wiki"): (55.8, 51.4),
    ("hotpotqa", "musique"): (32.6, 29.5),
    ("musique", "2wiki"): (51.4, 50.2),
    ("musique", "hotpotqa"): (55.2, 52.4),
}
#: Of HotpotQA; the paper's judge, sub-question answering and reasoning initialization.
_TABLE4 = {
    "teacher": (56.76, 70.35, 86.0),
    "student as it was": (48.35, 66.70, 86.0),
    "Vanilla-KD": (50.30, 62.95, 81.0),
    "StepER": (55.70, 72.00, 87.9),
}
#: Seconds and accuracy; teachers of 72B.
_FIG6 = {
    "StepER, 0.5B": (0.85, 41.3),
    "StepER, 1.5B": (1.0, 51.8),
    "StepER, 3B": (2.3, 53.5),
    "StepER, 7B": (2.8, 56.0),
    "teacher, IRCoT": (15.2, 53.3),
    "teacher, Self-Ask": (18.8, 47.5),
}
#: Steps a question used -> questions and their accuracy (Table 6, of 500 questions).
TABLE6 = {"1": (0, None), "2": (11, 36.4), "3": (126, 67.5), "4": (206, 65.5), "5": (157, 51.6)}
#: Students of Fig. 4 by their size.
SIZES = ("0.5B", "1.5B", "3B", "7B")


def _tables() -> dict[tuple[str, str], dict[str, Values]]:
    found: dict[tuple[str, str], dict[str, Values]] = {}
    for at, data in enumerate(("2wiki", "hotpotqa", "musique")):
        names = ("em", "f1", "acc")
        found["table1", data] = {
            row: dict(zip(names, values[3 * at : 3 * at + 3], strict=True)) for row, values in _TABLE1.items()
        }
    for at, data in enumerate(("hotpotqa", "musique")):
        found["table2", data] = {row: {"acc": values[at]} for row, values in _TABLE2.items()}
        found["table3", data] = {row: {"acc": values[at]} for row, values in _TABLE3.items()}
    found["table5", "hotpotqa"] = {f"S = {steps}": {"acc": value} for steps, value in _TABLE5.items()}
    found["table7", "hotpotqa"] = {
        row: dict(zip(("acc", "recall", "duplicates"), values, strict=True))
        for row, values in _TABLE7.items()
    }
    found["table4", "hotpotqa"] = {
        row: dict(zip(("acc", "sub_answers", "started"), values, strict=True))
        for row, values in _TABLE4.items()
    }
    found["fig6", "2wiki"] = {
        row: dict(zip(("seconds", "acc"), values, strict=True)) for row, values in _FIG6.items()
    }
    found["fig3", "hotpotqa"] = {row: {"acc": value} for row, value in _FIG3.items()}
    for (learned, asked), values in _FIG5.items():
        rows = zip(("StepER", "Vanilla-KD"), values, strict=True)
        found.setdefault(("fig5", asked), {}).update(
            {f"{model}, learned on {learned}": {"acc": value} for model, value in rows}
        )
    found["fig4", "2wiki"] = {
        f"{model}, {size}": {"acc": value}
        for model, values in _FIG4.items()
        for size, value in zip(SIZES, values, strict=True)
    }
    return found


#: (experiment, data set) -> row -> metric -> the paper's value.
PUBLISHED = _tables()
