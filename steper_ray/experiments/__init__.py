"""The paper's tables and figures as graphs over the stages: what each trains, asks and compares; the paper's values."""
