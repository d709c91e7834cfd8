"""Where a network was read, and what lies there."""

import json
from pathlib import Path

import pytest

import dlm
from dlm.huggingface.checkpoint import Origin

TINY = Path(dlm.__file__).parent / "assets" / "tiny"


def test_no_token_and_no_default_is_kept() -> None:
    given = {
        "token": "secret",
        "revision": "main",
        "cache_dir": None,
        "subfolder": "",
        "proxies": 1,
    }
    assert Origin.of("owner/name", given) == Origin("owner/name", {})
    given = {"token": "secret", "revision": "v2", "subfolder": "instruct"}
    assert Origin.of(Path("folder"), given) == Origin(
        "folder", {"revision": "v2", "subfolder": "instruct"}
    )


def test_files_of_a_subfolder(tmp_path: Path) -> None:
    inside = tmp_path / "instruct"
    inside.mkdir()
    (inside / "generation_config.json").write_text(json.dumps({"eos_token_id": 3}))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (inside / name).write_bytes((TINY / name).read_bytes())
    there, above = Origin(str(tmp_path), {"subfolder": "instruct"}), Origin(str(tmp_path), {})
    assert there.options(None) == {"eos_token_id": 3}
    assert above.options(None) is None
    assert len(there.tokenizer(None)) == 768
    assert above.tokenizer(None) is None


def test_a_corrupt_tokenizer_is_told(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match=r"cannot read the tokenizer of .*; give one as tokenizer"):
        Origin(str(tmp_path), {}).tokenizer(None)
