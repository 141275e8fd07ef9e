"""Stages put together: the demo on the miniature, and rounds of self-distillation."""
