"""Every contender on a tiny model, in its own process, as the tool runs it."""

import json

import pytest

from configs import tiny
from medcare_jax.benchmarks import step
from medcare_jax.benchmarks.job import Measurement
from medcare_jax.benchmarks.worker import BUILDERS
from medcare_jax.settings import SettingsError


def measurement(**changes):
    fields = {
        "losses": [5.0, 4.0],
        "seconds": [2.0],
        "cpu_seconds": [3.0],
        "setup_seconds": 1.0,
        "imports_bytes": 10,
        "peak_rss_bytes": 100,
        "peak_device_bytes": None,
        "device": "cpu",
        "trainable": 7,
    }
    return Measurement(**fields | changes)


def tiny_config():
    config = tiny.get_config()
    config.data.row_length, config.data.rows, config.data.accumulation = 24, 4, 2
    config.compute.remat = "full"
    config.compute.loss_chunk = 9
    config.mka.warmup_share = 0.5
    return config.to_dict()


@pytest.mark.slow
@pytest.mark.torch
def test_contenders_agree_on_a_tiny_model(monkeypatch):
    """Rates of 2e-3 move the losses far more than the 1e-4 that contenders may differ by."""
    # One device, as PyTorch has; compiled in a fifth of the time, to the same program.
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
    result = step.measure(tiny_config(), repeats=1, steps=3, warmup=2)
    json.dumps(result)
    rows = result["contenders"]
    assert list(rows) == list(BUILDERS)
    assert not any("error" in row for row in rows.values())
    assert result["losses"]["agree"]
    for row in rows.values():
        assert len(row["losses"]) == 5
        assert row["losses"][0] == row["losses"][1]  # the schedule begins at rate zero
        assert abs(row["losses"][0] - row["losses"][4]) > 1e-2
    of_mixtures = {rows[name]["trainable"] for name in step.SAME_UPDATES}
    assert len(of_mixtures) == 1
    assert rows["peft_lora"]["trainable"] < of_mixtures.pop()
    assert result["tokens_per_step"] == 4 * 24
    assert result["ratios"]["medcare_jax"]["tokens_per_cpu_second"] == 1
    assert result["contenders"]["medcare_jax"]["lora_mfu"]["value"] > 0
    shown = "".join(str(cell) for column in step.table(result).columns for cell in column.cells)
    assert "peft_lora" in shown


def test_the_best_step_and_the_largest_memory_count():
    runs = [
        measurement(seconds=[4.0, 2.0], cpu_seconds=[3.0, 6.0], peak_rss_bytes=100),
        measurement(seconds=[3.0], cpu_seconds=[5.0], peak_rss_bytes=300),
    ]
    row = step.summarise(runs, tokens=120)
    assert (row["tokens_per_second"], row["tokens_per_cpu_second"]) == (60, 40)
    assert row["peak_rss_bytes"] == 300
    assert row["peak_device_bytes"] is None


def test_ratios_are_ours_over_theirs():
    ours = step.summarise([measurement(seconds=[1.0], peak_rss_bytes=30)], 8)
    other = step.summarise([measurement(seconds=[2.0], peak_rss_bytes=100)], 8)
    found = step.ratios(ours, other)
    assert found["tokens_per_second"] == 2
    assert found["peak_rss"] == pytest.approx(0.3)
    assert found["peak_device_memory"] is None


def test_losses_that_differ_are_found():
    same = {"medcare_jax": [measurement()], "torch_rank_space": [measurement()]}
    assert step.compare_losses(same, tolerance=1e-4)["agree"]
    start = same | {"peft_lora": [measurement(losses=[5.1, 9.0])]}
    assert not step.compare_losses(start, tolerance=1e-4)["agree"]
    later = same | {"torch_expert_stack": [measurement(losses=[5.0, 4.1])]}
    assert not step.compare_losses(later, tolerance=1e-4)["agree"]
    other = same | {"peft_lora": [measurement(losses=[5.0, 9.0])]}
    assert step.compare_losses(other, tolerance=1e-4)["agree"]  # learns something else


def test_a_base_on_disk_is_refused():
    config = tiny_config()
    config["base"]["path"] = "some/folder"
    with pytest.raises(SettingsError, match="benchmark_128m"):
        step.measure(config)


def test_a_contender_that_fails_is_named_and_the_others_go_on(monkeypatch):
    def run(job):
        if job.contender == "peft_lora":
            raise step.ContenderError("out of memory")
        return measurement()

    monkeypatch.setattr(step, "run_process", run)
    result = step.measure(tiny_config(), repeats=2, steps=1, warmup=1)
    assert result["contenders"]["peft_lora"] == {"error": "out of memory"}
    assert set(result["ratios"]) == set(BUILDERS) - {"peft_lora"}
    assert "out of memory" in list(step.table(result).columns[1].cells)


def test_the_end_of_a_failed_process_is_quoted():
    job = step.Job("medcare_jax", {"base": {}}, (0.1,), warmup=0)
    with pytest.raises(step.ContenderError, match=r"exit code 1: .*SettingsError"):
        step.run_process(job)
