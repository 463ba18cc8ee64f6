from known_cases import critters, photographs

__all__ = ["critters", "photographs"]
