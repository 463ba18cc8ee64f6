"""Words that many messages share."""


def counted(count: int, noun: str) -> str:
    """`1 image`, `3 images`: for nouns whose plural takes an s."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
