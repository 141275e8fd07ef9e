"""What every room may use: files, fingerprints, progress, tasks. Knows no other room but `errors`."""
