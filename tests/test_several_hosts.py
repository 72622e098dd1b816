"""The tiny job in 2 and 4 real processes on this machine, against one process.

Slow but for the last ones: each run compiles both stages in every process.
"""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.numpy import load_file

from medcare_jax import distributed
from medcare_jax.evaluation.results import read_results
from medcare_jax.training.history import read_history
from tests import quick

ROOT = pathlib.Path(__file__).resolve().parents[1]
DEVICES = 4  # of the whole run, however many processes share them


@pytest.fixture(scope="module")
def dialogues(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "train.json"
    random = np.random.default_rng(5)
    items = []
    for number in range(48):
        words = "".join(random.choice(list("abcdefgh "), int(random.integers(150, 400))))
        turns = [{"from": "human", "value": words}, {"from": "gpt", "value": "It is stable."}]
        items.append({"id": f"case-{number}", "conversations": turns})
    path.write_text(json.dumps(items))
    return path


def start(workdir, dialogues, processes, *flags, devices=DEVICES):
    """The job on dialogues, without evaluation, in so many processes that share the devices."""
    data = (
        "--config.icd10.make=False",
        f"--config.mka.files=('{dialogues}',)",
        f"--config.da.files=('{dialogues}',)",
        "--config.data.rows=4",
        "--config.checkpoint.every_steps=3",
    )
    return start_job(workdir, processes, *data, *flags, devices=devices)


def start_job(workdir, processes, *flags, devices=DEVICES):
    """The tiny job in so many processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    count = f"--xla_force_host_platform_device_count={devices // processes}"
    environ = {**os.environ, "XLA_FLAGS": f"{quick.FLAGS} {count}", "JAX_PLATFORMS": "cpu"}
    return [
        subprocess.Popen(
            [
                sys.executable,
                str(ROOT / "tools" / "medcare.py"),
                f"--config={ROOT / 'configs' / 'tiny.py'}",
                f"--workdir={workdir}",
                *(
                    ("--num_processes=1",)
                    if processes == 1
                    else (
                        f"--coordinator_address={address}",
                        f"--num_processes={processes}",
                        f"--process_id={number}",
                    )
                ),
                *flags,
            ],
            env=environ,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(processes)
    ]


def finish(processes, code=0):
    """What each process said; all must end with the code."""
    said = [process.communicate(timeout=900)[1] for process in processes]
    codes = [process.returncode for process in processes]
    assert codes == [code] * len(processes), "\n\n".join(text[-3000:] for text in said)
    return said


def wait_for_step(workdir, stage, step, processes):
    """Returns once the history has the step."""
    while all(process.poll() is None for process in processes):
        lines = read_history(workdir / stage / "metrics.jsonl")
        if lines and lines[-1]["step"] >= step:
            return
        time.sleep(0.05)
    raise AssertionError("\n\n".join(each.communicate()[1][-3000:] for each in processes))


def assert_same_run(workdir, expected):
    """Losses of every step and the exported weights agree."""
    for stage in ("mka", "da"):
        found = read_history(workdir / stage / "metrics.jsonl")
        wanted = read_history(expected / stage / "metrics.jsonl")
        assert [line["step"] for line in found] == [line["step"] for line in wanted]
        for name in ("loss", "targets", "tokens"):
            np.testing.assert_allclose(
                [line[name] for line in found], [line[name] for line in wanted], rtol=1e-5
            )
    weights = load_file(workdir / "export" / "model.safetensors")
    for name, wanted in load_file(expected / "export" / "model.safetensors").items():
        bound = 1e-5 * np.abs(wanted).max()
        np.testing.assert_allclose(weights[name], wanted, rtol=0, atol=bound, err_msg=name)


@pytest.fixture(scope="module")
def alone(tmp_path_factory, dialogues):
    """The workdir of one process with all devices."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    finish(start(workdir, dialogues, 1))
    return workdir


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "mesh"),
    [
        (2, ("--config.mesh.data=2",)),
        # The tensor axis lies across processes: two of them need the same rows.
        (4, ("--config.mesh.tensor=2",)),
    ],
)
def test_several_processes_are_one(tmp_path, dialogues, alone, processes, mesh):
    workdir = tmp_path / "run"
    said = finish(start(workdir, dialogues, processes, *mesh))
    assert f"4 x cpu in {processes} processes" in said[0]
    assert all("base and data" not in text for text in said[1:])  # one speaks
    assert_same_run(workdir, alone)


@pytest.mark.slow
def test_two_processes_find_the_activation_basis_of_one(tmp_path, dialogues):
    basis = ("--config.constraint.basis=activation", "--config.constraint.energy=0.5")
    finish(start(tmp_path / "one", dialogues, 1, *basis))
    two = start(tmp_path / "two", dialogues, 2, *basis)
    wait_for_step(tmp_path / "two", "da", 2, two)
    two[1].send_signal(signal.SIGTERM)
    finish(two)
    finish(start(tmp_path / "two", dialogues, 2, *basis))
    assert_same_run(tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
def test_sigterm_to_one_of_four_and_on_with_two_and_with_one(tmp_path, dialogues, alone):
    workdir = tmp_path / "run"
    four = start(workdir, dialogues, 4)
    wait_for_step(workdir, "mka", 2, four)
    four[2].send_signal(signal.SIGTERM)
    said = finish(four)
    words = [text[text.index("stopped after step") :].splitlines()[0] for text in said]
    assert len(set(words)) == 1  # all of them, after the same step
    assert not (workdir / "export").exists()
    shutil.copytree(workdir, tmp_path / "other")
    finish(start(workdir, dialogues, 2, "--config.mesh.data=4", "--config.mesh.fsdp=1"))
    assert_same_run(workdir, alone)
    finish(start(tmp_path / "other", dialogues, 1))
    assert_same_run(tmp_path / "other", alone)


@pytest.mark.slow
def test_a_checkpoint_of_eight_devices_goes_on_with_one_two_four_and_sixteen(tmp_path, dialogues):
    rows = ("--config.data.rows=16", "--config.mka.epochs=4")
    finish(start(tmp_path / "whole", dialogues, 1, *rows, devices=8))
    (eight,) = start(tmp_path / "8", dialogues, 1, *rows, "--config.mesh.tensor=2", devices=8)
    wait_for_step(tmp_path / "8", "mka", 1, [eight])
    eight.send_signal(signal.SIGTERM)
    finish([eight])
    done = len(read_history(tmp_path / "8" / "mka" / "metrics.jsonl"))
    wanted = read_history(tmp_path / "whole" / "mka" / "metrics.jsonl")
    assert 0 < done < len(wanted)
    others = {1: (), 2: ("data=2", "fsdp=1"), 4: ("tensor=2",), 16: ("data=4", "fsdp=4")}
    for devices, axes in others.items():
        workdir = tmp_path / str(devices)
        shutil.copytree(tmp_path / "8", workdir)
        mesh = (f"--config.mesh.{axis}" for axis in axes)
        finish(start(workdir, dialogues, 1, *rows, *mesh, devices=devices))
        next_step = read_history(workdir / "mka" / "metrics.jsonl")[done]
        np.testing.assert_allclose(next_step["loss"], wanted[done]["loss"], rtol=1e-6)
        assert_same_run(workdir, tmp_path / "whole")


@pytest.mark.slow
def test_a_killed_process_ends_the_others_and_the_command_goes_on(tmp_path, dialogues, alone):
    workdir = tmp_path / "run"
    four = start(workdir, dialogues, 4)
    wait_for_step(workdir, "mka", 4, four)
    four[3].kill()
    begin = time.monotonic()
    rest = [process.communicate(timeout=120)[1] for process in four[:3]]
    seconds = time.monotonic() - begin
    print(f"the others ended after {seconds:.1f} s")
    assert seconds < distributed.HEARTBEAT_SECONDS
    assert [process.returncode for process in four[:3]] == [1, 1, 1], "\n\n".join(rest)
    assert all("another process of the run has ended" in text for text in rest)
    four[3].communicate()
    finish(start(workdir, dialogues, 4))
    assert_same_run(workdir, alone)


def read_samples(folder):
    """What was answered, by task, protocol and item."""
    lines = (folder / "samples.jsonl").read_text().splitlines()
    samples = [json.loads(line) for line in lines]
    return {(each["task"], each["protocol"], each["id"]): each for each in samples}


def numbers_of(details):
    """Every float among by-products, in order."""
    if isinstance(details, dict):
        return [x for value in details.values() for x in numbers_of(value)]
    if isinstance(details, list):
        return [x for value in details for x in numbers_of(value)]
    return [details] if isinstance(details, float) else []


@pytest.mark.slow
def test_when_the_first_process_is_killed_the_other_ends_too(tmp_path, dialogues):
    """The service that all talk to dies with it, and what ends the other may be JAX itself."""
    workdir = tmp_path / "run"
    first, other = start(workdir, dialogues, 2)
    wait_for_step(workdir, "mka", 2, (first, other))
    first.kill()
    begin = time.monotonic()
    text = other.communicate(timeout=120)[1]
    seconds = time.monotonic() - begin
    print(f"the other ended after {seconds:.1f} s with {other.returncode}")
    assert other.returncode != 0
    assert seconds < distributed.HEARTBEAT_SECONDS
    words = ("another process of the run has ended", "JAX distributed service detected fatal")
    assert any(each in text for each in words), text[-3000:]
    first.communicate()


@pytest.mark.slow
def test_two_processes_score_and_export_as_one_does(tmp_path):
    """The tiny job as it is: scores of three states in both protocols, export, report."""
    protocols = "--config.evaluation.protocols=('generate', 'likelihood')"
    flags = (protocols, "--config.evaluation.write_samples=True")
    finish(start_job(tmp_path / "one", 1, *flags))
    finish(start_job(tmp_path / "two", 2, *flags))
    assert_same_run(tmp_path / "two", tmp_path / "one")
    for stage in ("base", "mka", "da"):
        one, two = (tmp_path / name / "evaluation" / stage for name in ("one", "two"))
        results = [read_results(folder) for folder in (one, two)]
        if stage != "base":  # rounding differs after the first step, and so does the digest
            for each in results:
                assert len(each["model"].pop("digest")) == 64
        assert results[0] == results[1]
        assert results[0]["status"] == "complete"
        wanted, found = read_samples(one), read_samples(two)
        assert {protocol for _, protocol, _ in wanted} == {"generate", "likelihood"}
        assert found.keys() == wanted.keys()
        for name, sample in wanted.items():
            assert found[name]["output"] == sample["output"], name
            numbers = [numbers_of(each[name]["details"]) for each in (found, wanted)]
            np.testing.assert_allclose(*numbers, rtol=1e-4, err_msg=str(name))
    for report in ("report.md", "report.html"):
        assert (tmp_path / "two" / report).stat().st_size > 0


@pytest.mark.slow
def test_what_one_process_finds_wrong_all_say(tmp_path, dialogues):
    workdir = tmp_path / "run"
    two = start(workdir, dialogues, 2, "--config.base.path=nowhere")
    said = finish(two, code=1)
    assert all("nowhere" in text for text in said)
    first = start(workdir, dialogues, 1)
    wait_for_step(workdir, "mka", 1, first)
    said = finish(start(workdir, dialogues, 2), code=1)
    assert f"in use by process {first[0].pid}" in said[0]
    assert f"in use by process {first[0].pid}" in said[1]
    first[0].kill()
    first[0].communicate()


def test_fewer_processes_than_expected(tmp_path, dialogues):
    started, missing = start(tmp_path / "run", dialogues, 2, "--join_timeout=8")
    missing.kill()
    missing.communicate()
    text = finish([started], code=1)[0]
    assert "waited 8 s, and not all processes have come: expected 2 at 127.0.0.1:" in text
    assert "Traceback" not in text
    assert not (tmp_path / "run").exists()
