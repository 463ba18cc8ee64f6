"""What a run learns from: samples of (references, prompt), and the lists and pictures they come from."""

from customized_grpo.data.images import fit, load_image, load_mask
from customized_grpo.data.lists import DataError, load_list, split_by_subject
from customized_grpo.data.sample import Sample

__all__ = ["DataError", "Sample", "fit", "load_image", "load_list", "load_mask", "split_by_subject"]
