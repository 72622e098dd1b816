import json

import numpy as np
import pytest

from configs import tiny
from medcare_jax.benchmarks import packing
from medcare_jax.conversion.bases import byte_tokenizer


def write_dialogues(path, sizes):
    """A file of dialogues whose answers have so many tokens; returns its path."""
    dialogue = lambda size: [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a" * size}]
    lines = [json.dumps({"conversations": dialogue(int(size))}) for size in sizes]
    path.write_text("\n".join(lines))
    return path


def config():
    values = tiny.get_config()
    values.data.row_length, values.data.rows = 256, 2
    return values.to_dict()


def test_shares_are_those_of_the_tokens_that_are_there(tmp_path):
    sizes = [*np.random.default_rng(0).integers(1, 60, 41), 900]
    data = write_dialogues(tmp_path / "train.jsonl", sizes)
    result = packing.measure(config(), data=data, tokenizer=byte_tokenizer(), is_timed=False)
    assert (result["dialogues"], result["over_long"]) == (41, 1)
    assert result["real_share_packed"] > result["real_share_padded"]
    assert result["real_share_padded"] > result["real_share_padded_of_waiting_devices"]
    rows = 41 * result["mean_tokens"] / (256 * result["real_share_packed"])
    assert rows == pytest.approx(round(rows))  # whole rows


def test_padding_in_numbers():
    lengths = np.array([10, 20, 30, 40, 5, 5, 5, 5, 99])
    assert packing.padded_share(lengths, 4) == 120 / (160 + 20)
    assert packing.padded_share(np.full(8, 7), 4) == 1


@pytest.mark.slow
def test_both_ways_are_timed(tmp_path):
    """One shape of each kind, since dialogues are of one length."""
    data = write_dialogues(tmp_path / "train.jsonl", [20] * 16)
    seen = []
    result = packing.measure(
        config(), data=data, tokenizer=byte_tokenizer(), repeats=1, report=seen.append
    )
    rates = [result[f"useful_tokens_per_cpu_second_{way}"] for way in ("packed", "padded")]
    assert result["ratio_per_cpu_second"] == pytest.approx(rates[0] / rates[1])
    assert seen[-1].startswith("1/1 (2, 256): ")
    cells = [cell for column in packing.table(result).columns for cell in column.cells]
    assert "real tokens" in cells
    assert len(packing.table(result).rows) == 3


@pytest.mark.parametrize(("sizes", "fit"), [([20] * 15, 15), ([900] * 20, 0)])
def test_too_few_dialogues_are_refused(tmp_path, sizes, fit):
    data = write_dialogues(tmp_path / "few.jsonl", sizes)
    with pytest.raises(ValueError, match=rf"few\.jsonl has {fit} dialogues .* at least 16"):
        packing.measure(config(), data=data, tokenizer=byte_tokenizer())
