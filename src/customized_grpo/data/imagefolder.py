"""An imagefolder with `metadata.jsonl`, the layout of Hugging Face's `datasets`, read without that library.

Read from https://huggingface.co/docs/datasets/image_dataset: a line per picture with `file_name`, relative to the
folder of `metadata.jsonl`, and any further columns; captions are customarily called `text`.
"""

from pathlib import Path

from customized_grpo.data.findings import DataError
from customized_grpo.data.lists import load_list
from customized_grpo.data.sample import Sample

METADATA = "metadata.jsonl"


def load_imagefolder(root: Path) -> list[Sample]:
    """A sample per line: `file_name` is the reference, `text` (or `prompt`) the prompt; the rest as in a list.

    Raises:
        DataError: no `metadata.jsonl`, or everything wrong with it at once.
    """
    if not (root / METADATA).is_file():
        raise DataError(root, [f"no {METADATA}"], 'Write one with a line {"file_name": ..., "text": ...} per picture.')
    return load_list(root / METADATA, spelled={"image_path": "file_name", "prompt": "text"})
