"""The licence of a base model, as the Hub writes it in a model card. An adapter is made from its base."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from customized_grpo.fields import BUILT_IN


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


def _flux1(model: str) -> Licence:
    link = f"https://huggingface.co/{model}/blob/main/LICENSE.md"
    return Licence("other", "flux-1-dev-non-commercial-license", link)


def _klein_9b(model: str) -> Licence:
    return Licence("other", "flux-non-commercial-license", f"https://huggingface.co/{model}")


_FLUX = "black-forest-labs"
LICENCES = {
    **{f"{_FLUX}/{name}": _flux1(f"{_FLUX}/{name}") for name in ("FLUX.1-dev", "FLUX.1-Kontext-dev")},
    **{f"{_FLUX}/FLUX.2-klein-{name}": Licence("apache-2.0") for name in ("4B", "base-4B")},
    **{f"{_FLUX}/FLUX.2-klein-{name}": _klein_9b(f"{_FLUX}/FLUX.2-klein-{name}") for name in ("9B", "base-9B")},
    **{f"Qwen/Qwen-Image-Edit-{name}": Licence("apache-2.0") for name in ("2509", "2511")},
    **dict.fromkeys(BUILT_IN, Licence("mit")),
}


def licence_of(model: str) -> Licence:
    """That of the published models of docs/models.md; `unknown` for any other."""
    return LICENCES.get(model, Licence("unknown"))
