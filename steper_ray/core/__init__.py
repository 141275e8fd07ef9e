"""What every room may use: errors, files, fingerprints, answers, claims, progress, tasks. Knows schema alone."""
