"""The command as a user runs it: the tiny config in a process of its own, then what it left."""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from medcare_jax.evaluation.results import read_results
from medcare_jax.training.history import read_history
from tests import quick

ROOT = pathlib.Path(__file__).resolve().parents[1]
STAGES = ("mka", "da")


def command(workdir, *flags):
    return [
        sys.executable,
        str(ROOT / "tools" / "medcare.py"),
        f"--config={ROOT / 'configs' / 'tiny.py'}",
        f"--workdir={workdir}",
        *flags,
    ]


def environment():
    """One CPU device, as a laptop has."""
    return {**os.environ, "XLA_FLAGS": quick.FLAGS, "JAX_PLATFORMS": "cpu"}


def run(workdir, *flags):
    return subprocess.run(
        command(workdir, *flags), env=environment(), capture_output=True, text=True, timeout=600
    )


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run") / "workdir"
    done = run(workdir)
    assert done.returncode == 0, done.stderr
    return workdir


def test_every_part_leaves_its_result(finished):
    for name in ("config.json", "data_report.json", "report.md", "report.html"):
        assert (finished / name).stat().st_size > 0
    for name in ("base", "mka", "da"):
        results = read_results(finished / "evaluation" / name)
        assert results["status"] == "complete"
        assert set(results["tasks"]) == {"icd10_unseen", "icd10_retained", "icd10_coding"}
    for stage in STAGES:
        steps = [line["step"] for line in read_history(finished / stage / "metrics.jsonl")]
        assert steps == list(range(1, len(steps) + 1))
        assert list((finished / stage / "tensorboard").iterdir())


def test_the_alignment_stayed_in_the_complement(finished):
    leaks = [line["leak"] for line in read_history(finished / "da" / "metrics.jsonl")]
    assert 0 < max(leaks) <= 1e-6


def test_the_same_command_again_does_nothing_twice(finished):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*.safetensors")}
    again = run(finished)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("scores are there already") == 3
    assert before == {path: path.stat().st_mtime_ns for path in finished.rglob("*.safetensors")}


@pytest.mark.torch
def test_transformers_gives_the_live_models_logits(finished):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from configs import tiny
    from medcare_jax.params import merge
    from medcare_jax.run.job import Job, open_run
    from medcare_jax.run.progress import Display
    from medcare_jax.settings import make_settings
    from medcare_jax.sharding import make_mesh

    settings = make_settings(tiny.get_config())
    mesh = make_mesh(dataclasses.replace(settings.mesh, fsdp=1), jax.devices()[:1])
    exported = AutoModelForCausalLM.from_pretrained(finished / "export", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(finished / "export")
    ids = np.array([tokenizer("Which chapter holds J45.2?").input_ids], np.int32)
    with jax.set_mesh(mesh), jax.numpy_dtype_promotion("standard"):
        job = Job(open_run(settings, finished, Display(is_shown=False), mesh))
        base = {"base": job.run.base.params}
        knowledge = job.train_mka().learning["knowledge"]  # finished: read from its checkpoint
        trees = job.train_da({**base, "knowledge": knowledge})
        decoder, params = job.run.decoder(job.da.components), {"params": merge(trees)}
        positions = np.arange(ids.shape[1], dtype=np.int32)[None]
        hidden = decoder.apply(params, ids, positions, np.ones_like(ids))
        live = decoder.apply(params, hidden, method="unembed")
    assert any(leaf.any() for leaf in jax.tree.leaves(trees["alignment"]))
    with torch.no_grad():
        reloaded = exported(torch.tensor(ids.astype(np.int64))).logits.numpy()
    np.testing.assert_allclose(reloaded, live, atol=1e-4)


def test_no_record_text_is_in_logs_or_metrics(finished):
    question = json.loads((finished / "data" / "1-stage" / "train.json").read_text())[0]
    text = question["conversations"][0]["value"].split('"')[1].encode()
    assert text in (finished / "data" / "1-stage" / "train.json").read_bytes()
    holders = [
        path
        for path in finished.rglob("*")
        if path.is_file()
        and "data" not in path.relative_to(finished).parts[:1]
        and text in path.read_bytes()
    ]
    assert holders == []


def test_a_changed_setting_is_refused(finished):
    done = run(finished, "--config.adapters.alpha=9.0")
    assert done.returncode == 1
    assert "adapters.alpha: 8.0 -> 9.0" in done.stderr
    assert "Traceback" not in done.stderr


def test_da_does_not_go_on_over_another_mka(finished, tmp_path):
    workdir = shutil.copytree(finished, tmp_path / "workdir")
    shutil.rmtree(workdir / "mka")
    before = sha256(workdir / "export" / "model.safetensors")
    done = run(workdir, "--config.mka.learning_rate=0.01")
    assert done.returncode == 1
    assert "knowledge.digest" in done.stderr
    assert sha256(workdir / "export" / "model.safetensors") == before


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--config.base.path=nowhere", "nowhere"),
        ("--config.constraint.kind=projektion", "allowed are projection, penalty"),
        ("--config.mka.files=('absent.json',)", "absent.json"),
        ("--config.mesh.fsdp=3", "3 devices, but there are 1"),
        ("--config.data.accumulation=3", "not a multiple"),
    ],
)
def test_bad_input_is_one_screen(tmp_path, flag, message):
    done = run(tmp_path / "workdir", flag)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) < 24
    assert not list((tmp_path / "workdir").rglob("*.safetensors"))


def test_an_unknown_key_names_its_neighbour(tmp_path):
    done = run(tmp_path / "workdir", "--config.constraint.knid=none")
    assert done.returncode != 0
    assert "kind" in done.stderr + done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_killed_in_a_stage_the_export_is_the_same_to_the_bit(finished, tmp_path, stage, how):
    workdir = tmp_path / "workdir"
    process = subprocess.Popen(command(workdir), env=environment(), stderr=subprocess.DEVNULL)
    history = workdir / stage / "metrics.jsonl"
    while process.poll() is None:
        with contextlib.suppress(FileNotFoundError):
            if history.read_text().count("\n") >= 3:
                break
        time.sleep(0.02)
    process.send_signal(how)
    code = process.wait(timeout=120)
    assert code == (0 if how == signal.SIGTERM else -signal.SIGKILL)
    assert not (workdir / "export").exists()
    done = run(workdir)
    assert done.returncode == 0, done.stderr
    for name in ("model.safetensors", "config.json"):
        assert sha256(workdir / "export" / name) == sha256(finished / "export" / name)
