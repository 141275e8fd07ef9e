"""An OpenAI-compatible endpoint as a generator: its routes, its errors, and how much it is asked at once."""
