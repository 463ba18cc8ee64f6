"""The licence of a base model, as the Hub writes it in a model card. An adapter is made from its base."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from customized_grpo.fields import BUILT_IN
from customized_grpo.policies.architectures import published_license


@dataclass(frozen=True)
class Licence:
    """The fields of a card's front matter; name and link only where the Hub knows no identifier (`other`)."""

    license: str
    license_name: str | None = None
    license_link: str | None = None

    def fields(self) -> dict[str, str]:
        """Those that are set."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @property
    def text(self) -> str:
        """As it is named in a sentence."""
        return {"apache-2.0": "Apache 2.0", "mit": "MIT", "unknown": "not known to us"}.get(
            self.license, self.license_name or self.license
        )


def licence_of(model: str) -> Licence:
    """That of a published or built-in model, by its id or name; `unknown` for any other."""
    if model in BUILT_IN:
        return Licence("mit")
    return Licence(**(published_license(model) or {"license": "unknown"}))
