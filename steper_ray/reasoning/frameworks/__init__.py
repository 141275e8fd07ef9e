"""The frameworks, one a module: what one step is, what it asks the retriever, its gold form. All pure text."""

from steper_ray.reasoning.frameworks.base import Fact, Framework
from steper_ray.reasoning.frameworks.ircot import IRCoT
from steper_ray.reasoning.frameworks.layout import layout_for
from steper_ray.reasoning.frameworks.react import ReAct
from steper_ray.reasoning.frameworks.self_ask import SelfAsk

#: By the name that `reasoning.framework` gives them; each has its layout in `prompt.LAYOUTS`.
FRAMEWORKS: dict[str, Framework] = {"ircot": IRCoT(), "self_ask": SelfAsk(), "react": ReAct()}

__all__ = ["FRAMEWORKS", "Fact", "Framework", "layout_for"]
