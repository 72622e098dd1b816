"""Every block of docs/formats.md runs, in order, as a reader would paste it."""

import pathlib
import re
import tempfile
from typing import Any

import pytest

from medcare_jax.conversion import load_peft, load_reference

PAGE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "formats.md"


# PEFT 0.21 asks transformers 5 for an attribute by its old name.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
@pytest.mark.slow
@pytest.mark.torch
def test_the_blocks_run(
    shared: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    monkeypatch.setattr(tempfile, "mkdtemp", lambda: str(tmp_path))
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) > 5
    names: dict[str, Any] = {}
    for number, block in enumerate(blocks):
        exec(compile(block, f"block {number} of {PAGE.name}", "exec"), names)
        if "reference" in names:
            names["reference"] = shared / "golden"
    settings = names["settings"]
    assert load_reference(tmp_path / "da", settings)[0] == names["adapters"]
    assert set(load_peft(tmp_path / "adapter", settings)[1].values()) == {2.0}
    assert load_reference(tmp_path / "gradients", settings)[1].keys() == {"knowledge", "alignment"}
