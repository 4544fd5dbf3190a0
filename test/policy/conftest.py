import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from trained_tokenizers import TokenizerFiles, to_huggingface, train


@pytest.fixture(scope="session")
def tokenizer_files(tmp_path_factory) -> TokenizerFiles:
    folder = tmp_path_factory.mktemp("tokenizer")
    model = train(folder)
    path = folder / "tokenizer.json"
    to_huggingface(model).save(str(path))
    return TokenizerFiles(model, path)
