"""What every room may use: files, fingerprints. Knows no other room but `errors`."""
