"""Shared by every room: errors, files, fingerprints, answers, claims, progress, tasks. Knows schema alone."""
