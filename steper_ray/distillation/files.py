"""Another name of `core.files`, for callers that are not moved yet."""

from steper_ray.core.files import replace_folder, write_text

__all__ = ["replace_folder", "write_text"]
