"""Samples (references and a prompt) and the loaders of every file layout that they can come from."""

from customized_grpo.data.dreambench import dreambench_cases, dreambench_pairs
from customized_grpo.data.findings import DataError
from customized_grpo.data.images import fit, load_image, load_mask
from customized_grpo.data.lists import load_list
from customized_grpo.data.sample import Sample
from customized_grpo.data.sources import load_data
from customized_grpo.data.splits import split_by_subject

__all__ = [
    "DataError",
    "Sample",
    "dreambench_cases",
    "dreambench_pairs",
    "fit",
    "load_data",
    "load_image",
    "load_list",
    "load_mask",
    "split_by_subject",
]
