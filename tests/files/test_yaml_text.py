from pathlib import Path

import pytest

from customized_grpo.files.yaml_text import YamlError, read_yaml


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path):
    with pytest.raises(YamlError, match=rf"^{tmp_path} cannot be read: Is a directory$"):
        read_yaml(tmp_path)
    with pytest.raises(YamlError, match=r"none\.yaml cannot be read: No such file or directory$"):
        read_yaml(tmp_path / "none.yaml")
