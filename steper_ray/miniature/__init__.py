"""The miniature's models: what they are taught, how they are trained, and where they are shipped."""
