"""Foreign adapters become a workdir, and the job goes on from it as if it had learned them."""

import filecmp
import functools
import json
import os
import pathlib
import shutil
import subprocess
import sys
import types

import jax
import numpy as np
import pytest

from configs import tiny
from medcare_jax.conversion import save_peft, save_reference
from medcare_jax.conversion.tensors import ConversionError
from medcare_jax.params import ALIGNMENT, BASE, KNOWLEDGE, NOISE, digest, flatten
from medcare_jax.run import adoption
from medcare_jax.run.convert import Conversion, convert
from medcare_jax.run.restore import ATTENTION, open_model, read_adapters
from medcare_jax.settings import make_settings
from medcare_jax.sharding import ShardingError
from tests.run.workdirs import make_workdir, write_base

STEPS = 4  # of 8 rows, one of the 32 dialogues each
ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run over a base on disk, and its adapters in the authors' and PEFT's formats."""
    pytest.importorskip("torch")
    place = tmp_path_factory.mktemp("made")
    write_base(place / "base")
    shutil.copytree(place / "base", place / "other")
    (place / "other/config.json").write_text((place / "base/config.json").read_text() + " ")
    run = make_workdir(place / "run", place / "base")
    settings, adapters = run.base.settings, run.settings.adapters
    knowledge = run.trees["mka", 3][KNOWLEDGE]
    ffn = {"model": {"layers": {"mlp": knowledge["model"]["layers"]["mlp"]}}}
    stage_two = {KNOWLEDGE: ffn, ALIGNMENT: run.trees["da", 4][ALIGNMENT]}
    save_reference(place / "stage-1", settings, adapters, run.trees["mka", 3])
    save_reference(place / "stage-2", settings, adapters, stage_two)
    save_peft(place / "peft", settings, adapters, [knowledge])
    return place, run


def adopt(made, target, source, *, keep=(), base="base", role="", resume_at="da", **changes):
    """Adopts one of the made folders into a run of the tiny config, with changed keys."""
    place, _ = made
    config = tiny.get_config()
    config.base.path = str(place / base)
    config.mesh.update(data=8, fsdp=1)
    config.icd10.make = False
    turns = [{"from": "human", "value": "Fever?"}, {"from": "gpt", "value": "No. " * 99}]
    file = place / "train.json"
    file.write_text(json.dumps([{"id": str(n), "conversations": turns} for n in range(32)]))
    config.mka.files = config.da.files = (str(file),)
    config.update_from_flattened_dict(changes)
    asked = Conversion(
        source=str(place / source),
        target=target,
        to="checkpoint",
        base=str(place / "base") if source != "base" else "",
        keep=keep,
        role=role,
        resume_at=resume_at,
        settings=make_settings(config),
    )
    lines = []
    convert(asked, lines.append)
    return lines


@pytest.mark.parametrize("leak", [1e-3, float("nan")])
def test_a_leak_that_is_too_large_or_no_number_is_refused(leak, monkeypatch):
    monkeypatch.setattr(adoption, "max_leak", lambda *_: leak)
    run = types.SimpleNamespace(settings=make_settings(tiny.get_config()))
    assert run.settings.constraint.is_exact
    with pytest.raises(ConversionError, match="reaches into the knowledge's subspace"):
        adoption._check_leak(run, {}, types.SimpleNamespace(basis={}))


def test_stage_one_counts_as_done(made, tmp_path):
    lines = adopt(made, tmp_path / "w", "stage-1")
    assert "goes on with da" in lines[-1]
    found = read_adapters(tmp_path / "w", stage="mka")
    assert found.step == STEPS
    for name, tree in made[1].trees["mka", 3].items():
        assert digest(found.trees[name]) == digest(tree)
    assert {path.name for path in tmp_path.iterdir()} == {"w"}


def test_stage_one_goes_on_and_what_it_lacks_begins(made, tmp_path):
    """Without its noise, as the authors' mid-run folders are."""
    adopt(made, tmp_path / "w", "stage-1", keep=(ATTENTION, KNOWLEDGE), resume_at="mka")
    found = read_adapters(tmp_path / "w", stage="mka")
    assert found.step == 0
    assert digest(found.trees[KNOWLEDGE]) == digest(made[1].trees["mka", 3][KNOWLEDGE])
    noise = flatten(found.trees[NOISE])
    assert all(bool((leaf == 0).all()) == path.endswith("lora_b") for path, leaf in noise.items())


@pytest.mark.slow
def test_an_adapter_of_lower_rank_and_other_scale_is_the_same_function(made, tmp_path):
    """Ranks that it has not are zero in both factors, so they take no room from the alignment."""
    adopt(made, tmp_path / "w", "peft", **{"adapters.rank": 6, "adapters.alpha": 9.0})
    found = flatten(read_adapters(tmp_path / "w", stage="mka").trees[KNOWLEDGE])
    for path, leaf in flatten(made[1].trees["mka", 3][KNOWLEDGE]).items():
        rank = leaf.shape[-1] if path.endswith("lora_a") else leaf.shape[-2]
        axis = 2 if path.endswith("lora_a") else 1
        ours = np.asarray(found[path])
        ratio = 1.0 if path.endswith("lora_a") else 2.0 / 1.5
        np.testing.assert_allclose(ours.take(range(rank), axis), leaf * ratio, rtol=1e-6)
        assert not ours.take(range(rank, ours.shape[axis]), axis).any()


def test_stage_two_goes_on_where_nothing_is_promised(made, tmp_path):
    """Its alignment overlaps with the knowledge, so a projecting run refuses it."""
    with pytest.raises(ConversionError, match=r"leak .*, at most 1e-06.*constraint\.kind=penalty"):
        adopt(made, tmp_path / "w", "stage-2")
    assert list(tmp_path.iterdir()) == []
    adopt(made, tmp_path / "w", "stage-2", **{"constraint.kind": "penalty"})
    found = read_adapters(tmp_path / "w")
    run = made[1]
    assert digest(found.trees[ALIGNMENT]) == digest(run.trees["da", 4][ALIGNMENT])
    expected = flatten(run.trees["mka", 3][KNOWLEDGE])
    for path, leaf in flatten(found.trees[KNOWLEDGE]).items():
        np.testing.assert_array_equal(leaf, expected[path])
    assert not any(leaf.any() for leaf in flatten(found.trees[ATTENTION]).values())
    base = open_model(tmp_path / "w").trees[BASE]
    assert digest(base) == digest(run.base.params)  # nothing was merged, not even rounding


def test_peft_as_alignment(made, tmp_path):
    place, run = made
    tree = run.trees["da", 4][ALIGNMENT]
    save_peft(tmp_path / "alone", run.base.settings, run.settings.adapters, [tree])
    adopting = functools.partial(adopt, made, source=tmp_path / "alone", role=ALIGNMENT)
    with pytest.raises(ConversionError, match="reaches into the knowledge's subspace"):
        adopting(tmp_path / "u")  # which is that of data, as nothing else was asked for
    adopting(tmp_path / "w", **{"constraint.basis": "span"})
    found = read_adapters(tmp_path / "w")
    assert digest(found.trees[ALIGNMENT]) == digest(tree)
    knowledge = flatten(found.trees[KNOWLEDGE])
    assert not any(leaf.any() for leaf in knowledge.values())
    with pytest.raises(ConversionError, match=r"self_attn/k_proj.*alignment_on_attention"):
        adopt(made, tmp_path / "v", "peft", role=ALIGNMENT)


def test_a_base_alone(made, tmp_path):
    lines = adopt(made, tmp_path / "w", "base")
    assert "goes on with the first stage" in lines[-1]
    assert not (tmp_path / "w/mka").exists()


def test_the_demos_files_are_reported_where_they_will_be(made, tmp_path):
    demo = {"icd10.make": True, "mka.files": (), "da.files": ()}
    adopt(made, tmp_path / "w", "base", **demo)
    report = json.loads((tmp_path / "w/data_report.json").read_text())
    for stage, name in (("mka", "1-stage"), ("da", "2-stage")):
        (file,) = report[stage]["files"]
        assert file["path"] == str(tmp_path / "w/data" / name / "train.json")
        assert pathlib.Path(file["path"]).is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"adapters.rank": 2}, r"rank 8, the run's module 4; raise adapters\.rank"),
        ({"adapters.experts": 5}, r"adapters\.experts = 5, the source 3"),
        ({"base": "other"}, "with digest .* the source's base is base with"),
        ({"role": ALIGNMENT, "resume_at": "mka"}, "an alignment is learned in DA"),
        ({"data.rows": 9}, r"data\.rows = 9 cannot be cut"),
    ],
)
def test_what_does_not_fit(made, tmp_path, arguments, message):
    with pytest.raises((ConversionError, ShardingError), match=message):
        adopt(made, tmp_path / "w", "stage-1", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_hand_over_that_the_host_cannot_do_is_refused(made, tmp_path, monkeypatch):
    """A basis of data is decomposed on the CPU, which JAX may have been told to leave out."""
    found = jax.local_devices

    def without_cpu(*args, backend=None, **more):
        if backend == "cpu":
            raise RuntimeError("Unknown backend cpu")
        return found(*args, **more)

    monkeypatch.setattr(jax, "local_devices", without_cpu)
    with pytest.raises(ValueError, match="add cpu to it, such as JAX_PLATFORMS=tpu,cpu"):
        adopt(made, tmp_path / "w", "stage-2", role=ALIGNMENT)
    assert list(tmp_path.iterdir()) == []


def test_an_alignment_is_not_dropped_silently(made, tmp_path):
    with pytest.raises(ConversionError, match="has an alignment; .* --as=alignment"):
        adopt(made, tmp_path / "w", "stage-2", role=KNOWLEDGE)


@pytest.mark.slow
def test_the_job_goes_on_to_the_same_bytes_as_the_run_that_learned_them(tmp_path):
    """A run trained through, against its MKA exported, adopted and gone on from."""
    pytest.importorskip("torch")
    python = {"env": {**os.environ, "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}, "check": True}
    config = f"--config={ROOT / 'configs/tiny.py'}"

    def command(tool, *arguments):
        line = [sys.executable, str(ROOT / "tools" / tool), *map(str, arguments)]
        subprocess.run(line, capture_output=True, **python)

    # Of both runs: random weights drawn under other flags of XLA differ in their last bit.
    base = write_base(tmp_path / "base")
    run = (config, f"--config.base.path={base}")
    command("medcare.py", *run, f"--workdir={tmp_path / 'whole'}")
    source = (f"--source={tmp_path / 'whole'}", "--stage=mka", f"--target={tmp_path / 'stage-1'}")
    command("convert.py", *source, "--to=reference")
    source = (f"--source={tmp_path / 'stage-1'}", f"--base={base}", "--to=checkpoint")
    command("convert.py", *source, f"--target={tmp_path / 'adopted'}", *run)
    command("medcare.py", *run, f"--workdir={tmp_path / 'adopted'}")
    files = [tmp_path / name / "export/model.safetensors" for name in ("whole", "adopted")]
    assert filecmp.cmp(*files, shallow=False)
