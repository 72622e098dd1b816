"""The command as a user gives it: every cell of its table, and everything that it refuses."""

import importlib.util
import json
import os
import pathlib
import pickle
import shutil
import struct
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy
from absl import app, flags

from medcare_jax.conversion import fold, load_base, load_peft, load_reference
from medcare_jax.params import ALIGNMENT, BASE, KNOWLEDGE, NOISE, digest, merge
from medcare_jax.run import command
from medcare_jax.run.restore import open_model
from tests.conversion.hub_server import serve
from tests.run.workdirs import make_workdir, write_base

ROOT = pathlib.Path(__file__).parents[2]
LOGITS = 1e-4
# PEFT 0.21 asks transformers 5 for an attribute by its old name.
PEFT_WARNING = "ignore:.is_gradient_checkpointing:FutureWarning"


@pytest.fixture(scope="session")
def tool():
    """The module of the command, loaded once because its flags can be defined once only."""
    path = ROOT / "tools" / "convert.py"
    spec = importlib.util.spec_from_file_location("convert_command", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def convert(tool, capsys):
    """Runs the command in this process; gives its exit code and what it wrote."""

    def run(*arguments):
        flags.FLAGS.unparse_flags()
        for name in flags.FLAGS:
            flags.FLAGS[name].unparse()
        rest = flags.FLAGS(["convert.py", *map(str, arguments)])
        try:
            command._guarded(tool.main, rest)
            code = 0
        except app.UsageError as error:
            print(error)
            code = 1
        except SystemExit as end:
            code = end.code
        said = capsys.readouterr()
        return code, said.out + said.err

    return run


@pytest.fixture
def to(convert, tmp_path):
    """Converts to a new folder, which it gives."""

    def run(kind, source, *arguments, name="out"):
        target = tmp_path / name
        code, said = convert(f"--to={kind}", f"--source={source}", f"--target={target}", *arguments)
        assert code == 0, said
        return target

    return run


@pytest.fixture
def refused(convert, tmp_path):
    """Expects an error on one screen that leaves nothing behind; gives the message."""

    def run(kind, source, *arguments):
        before = sorted(tmp_path.iterdir())
        target = f"--target={tmp_path / 'out'}"
        code, said = convert(f"--to={kind}", f"--source={source}", target, *arguments)
        assert code == 1
        assert "Traceback" not in said
        assert len(said.splitlines()) < 40
        assert sorted(tmp_path.iterdir()) == before
        return said

    return run


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 8 MiB that nothing else is on."""
    place = tmp_path / "disk"
    place.mkdir()
    line = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", place]
    try:
        subprocess.run(line, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a small disk cannot be mounted here, which needs root ({error})")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


@pytest.fixture(scope="module")
def golden(shared):
    pytest.importorskip("torch")
    return shared / "golden"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A workdir over a base that lies on disk, and the base."""
    place = tmp_path_factory.mktemp("run")
    base = write_base(place / "base")
    return make_workdir(place / "workdir", base), base


def logits(folder, adapter=None):
    """What transformers (and peft) make of a folder, on the golden batch or on ids of our own."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    if adapter is not None:
        import peft

        model = peft.PeftModel.from_pretrained(model, adapter)

    def run(ids, mask=None):
        mask = None if mask is None else torch.tensor(np.asarray(mask))
        with torch.no_grad():
            return model(torch.tensor(np.asarray(ids)), attention_mask=mask).logits.numpy()

    return run


def check_golden(expected, found):
    """Compares logits where there is no padding."""
    given = safetensors.numpy.load_file(expected)
    real = given["attention_mask"] == 1
    np.testing.assert_allclose(
        found(given["input_ids"], given["attention_mask"])[real],
        given["logits"][real],
        rtol=0,
        atol=LOGITS,
    )


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.torch
class TestGolden:
    """The authors' checkpoints through the command alone, then the released libraries."""

    def test_base(self, golden, to):
        out = to("huggingface", golden / "base")
        check_golden(golden / "base/io.safetensors", logits(out))
        for name, tensor in safetensors.numpy.load_file(golden / "base/model.safetensors").items():
            found = safetensors.numpy.load_file(out / "model.safetensors")[name]
            assert found.tobytes() == tensor.tobytes()

    def test_attention_alone_is_the_base_of_stage_two(self, golden, to):
        base = f"--base={golden / 'base'}"
        out = to("huggingface", golden / "mka", base, "--keep=attention")
        check_golden(golden / "taia/io.safetensors", logits(out))

    @pytest.mark.parametrize("stage", ["da", "da_final"])
    def test_stage_two(self, golden, to, stage):
        out = to("huggingface", golden / stage, f"--base={golden / 'taia'}")
        check_golden(golden / stage / "io.safetensors", logits(out))

    @pytest.mark.filterwarnings(PEFT_WARNING)
    def test_stage_two_as_one_peft_adapter(self, golden, to):
        out = to("peft", golden / "da", f"--base={golden / 'taia'}")
        check_golden(golden / "da/io.safetensors", logits(golden / "taia", out))

    @pytest.mark.filterwarnings(PEFT_WARNING)
    def test_knowledge_as_folder_and_as_adapter(self, golden, to):
        """Attention and shared expert at the scale of training; the routed experts left out."""
        base = f"--base={golden / 'base'}"
        folder = to("huggingface", golden / "mka", base)
        adapter = to("peft", golden / "mka", base, name="adapter")
        given = safetensors.numpy.load_file(golden / "mka/io.safetensors")
        variants = safetensors.numpy.load_file(golden / "taia/variants.safetensors")
        right, real = variants["share_training_scale"], given["attention_mask"] == 1
        for found in (logits(folder), logits(golden / "base", adapter)):
            ours = found(given["input_ids"], given["attention_mask"])
            np.testing.assert_allclose(ours[real], right[real], rtol=0, atol=LOGITS)

    @pytest.mark.filterwarnings(PEFT_WARNING)
    def test_a_peft_folder_folds(self, golden, to):
        """The stage-1 folder is also a PEFT folder, of its attention."""
        out = to("huggingface", golden / "mka", f"--base={golden / 'base'}", "--from=peft")
        check_golden(golden / "taia/io.safetensors", logits(out))

    @pytest.mark.slow
    @pytest.mark.filterwarnings(PEFT_WARNING)
    def test_from_the_base_to_the_end_in_processes_of_their_own(self, golden, tmp_path):
        """As a user carries both stages over: each command stands on what the last one wrote."""
        tool = [sys.executable, ROOT / "tools/convert.py"]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        for target, source, base, *more in (
            ("merged", golden / "mka", golden / "base", "--to=huggingface", "--keep=attention"),
            ("folder", golden / "da", tmp_path / "merged", "--to=huggingface"),
            ("adapter", golden / "da", tmp_path / "merged", "--to=peft"),
        ):
            places = [f"--source={source}", f"--base={base}", f"--target={tmp_path / target}"]
            line = [*tool, *places, *more]
            done = subprocess.run(line, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
        expected = golden / "da/io.safetensors"
        check_golden(expected, logits(tmp_path / "folder"))
        check_golden(expected, logits(tmp_path / "merged", tmp_path / "adapter"))

    def test_the_report_says_how_close_it_came(self, golden, to, convert):
        out = to("huggingface", golden / "da", f"--base={golden / 'taia'}", "--dtype=bfloat16")
        report = json.loads((out / "conversion_report.json").read_text())
        assert report["kept"] == [KNOWLEDGE, ALIGNMENT]
        assert (report["scale"], report["dtype"]) == (2.0, "bfloat16")
        assert 2**-9 < report["rounding"]["largest"] <= 2**-8
        agreement = report["agreement"]
        assert 1e-3 < agreement["max_logit_difference"] < 0.2
        assert 0 < agreement["kl"] < 1e-2
        assert agreement["argmax_agreement"] > 0.9
        assert report["source"]["sha256"].keys() == {BASE, KNOWLEDGE, ALIGNMENT}
        code, said = convert(f"--verify={out}")
        assert code == 0
        assert "2 files" not in said
        exact = to("huggingface", golden / "da", f"--base={golden / 'taia'}", name="exact")
        report = json.loads((exact / "conversion_report.json").read_text())
        assert report["agreement"]["max_logit_difference"] < LOGITS
        assert report["rounding"]["largest"] == 0


class TestOurRun:
    """A workdir at any stage and step."""

    def test_folded(self, made, to, tmp_path):
        workdir, _ = made
        for stage, step in (("da", 1), ("da", 4), ("mka", 2)):
            name = f"{stage}{step}"
            flag = (f"--stage={stage}", f"--step={step}")
            out = to("huggingface", workdir.workdir, *flag, name=name)
            model = open_model(workdir.workdir, stage=stage, step=step)
            kept = {part: tree for part, tree in model.trees.items() if part != NOISE}
            expected = fold(merge(kept), model.settings.adapters)
            assert digest(load_base(out)[1]) == digest(expected)
            assert (out / "tokenizer.json").exists()

    def test_ablations_are_one_flag_each(self, made, to):
        workdir, base = made
        model = open_model(workdir.workdir)
        attention = to("huggingface", workdir.workdir, "--keep=attention", name="attention")
        assert digest(load_base(attention)[1]) == digest(model.trees[BASE])
        without = to("huggingface", workdir.workdir, "--keep=attention,knowledge", name="w-o-da")
        kept = {part: model.trees[part] for part in (BASE, KNOWLEDGE)}
        assert digest(load_base(without)[1]) == digest(fold(merge(kept), model.settings.adapters))
        alone = to("huggingface", workdir.workdir, "--keep=alignment", name="alignment")
        trees = {BASE: load_base(base)[1], ALIGNMENT: model.trees[ALIGNMENT]}
        assert digest(load_base(alone)[1]) == digest(fold(merge(trees), model.settings.adapters))

    @pytest.mark.torch
    @pytest.mark.filterwarnings(PEFT_WARNING)
    def test_peft_is_the_live_model(self, made, to):
        """Attention of rank r, knowledge and alignment of rank 2r each, as one adapter."""
        pytest.importorskip("torch")
        workdir, base = made
        adapter = to("peft", workdir.workdir, name="adapter")
        folder = to("huggingface", workdir.workdir, name="folder")
        ids = np.random.default_rng(0).integers(0, 272, (2, 9))
        np.testing.assert_allclose(
            logits(base, adapter)(ids), logits(folder)(ids), rtol=0, atol=LOGITS
        )
        config = json.loads((adapter / "adapter_config.json").read_text())
        ranks = {config["r"], *config["rank_pattern"].values()}
        assert ranks == {4, 16}
        alone = to("peft", workdir.workdir, "--keep=alignment", name="alone")
        tree = load_peft(alone, workdir.base.settings)[0]
        assert digest(tree) == digest(workdir.trees["da", 4][ALIGNMENT])

    @pytest.mark.torch
    @pytest.mark.parametrize("layout", ["final", "mid-run"])
    def test_reference_folders(self, made, to, layout):
        pytest.importorskip("torch")
        workdir, _ = made
        out = to("reference", workdir.workdir, f"--layout={layout}")
        adapters, trees = load_reference(out, workdir.base.settings)
        assert adapters == workdir.settings.adapters
        assert trees.keys() == {KNOWLEDGE, ALIGNMENT}
        assert digest(trees[ALIGNMENT]) == digest(workdir.trees["da", 4][ALIGNMENT])
        assert (out / "model.safetensors").exists() == (layout == "final")
        report = json.loads((out / "conversion_report.json").read_text())
        assert report["agreement"]["max_logit_difference"] == 0

    @pytest.mark.torch
    def test_stage_one_keeps_its_noise_in_reference_format_only(self, made, to, refused):
        pytest.importorskip("torch")
        workdir, base = made
        out = to("reference", workdir.workdir, "--stage=mka", name="stage-1")
        _, trees = load_reference(out, workdir.base.settings)
        for name in (KNOWLEDGE, NOISE):
            assert digest(trees[name]) == digest(workdir.trees["mka", 3][name])
        for kind in ("huggingface", "peft"):
            flag = (f"--base={base}", "--keep=knowledge,noise")
            said = refused(kind, out, *flag)
            assert "a mixture cannot be folded" in said
            assert "--keep=attention,knowledge" in said
            assert "--to=reference" in said

    def test_another_base_is_refused(self, made, refused, tmp_path):
        moved = tmp_path / "moved"
        shutil.copytree(made[0].workdir, moved)
        shutil.copytree(made[1], tmp_path / "base")
        edit(tmp_path / "base/config.json", lambda config: config.update(rope_theta=5e5))
        new = str(tmp_path / "base")
        edit(moved / "config.json", lambda config: config["base"].update(path=new))
        assert "the adapters were learned on" in refused("huggingface", moved)


@pytest.mark.torch
class TestCheckpoint:
    """Foreign adapters become a workdir that the job resumes from (see tests/run)."""

    def test_it_needs_the_config_of_the_run(self, golden, refused):
        said = refused("checkpoint", golden / "mka", f"--base={golden / 'base'}")
        assert "name that run with --config" in said


def make_plain(folder, **changes):
    """A tiny Llama whose tensors may be changed before they are written."""
    config = {
        "model_type": "llama",
        "vocab_size": 23,
        "hidden_size": 12,
        "intermediate_size": 14,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "head_dim": 6,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 64,
        "tie_word_embeddings": True,
    }
    shapes = {"model.embed_tokens.weight": (23, 12), "model.norm.weight": (12,)}
    for layer in range(2):
        at = f"model.layers.{layer}."
        shapes |= {
            f"{at}input_layernorm.weight": (12,),
            f"{at}post_attention_layernorm.weight": (12,),
            f"{at}self_attn.q_proj.weight": (18, 12),
            f"{at}self_attn.k_proj.weight": (6, 12),
            f"{at}self_attn.v_proj.weight": (6, 12),
            f"{at}self_attn.o_proj.weight": (12, 18),
            f"{at}mlp.gate_proj.weight": (14, 12),
            f"{at}mlp.up_proj.weight": (14, 12),
            f"{at}mlp.down_proj.weight": (12, 14),
        }
    shapes = {name: shape for name, shape in (shapes | changes).items() if shape}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    random = np.random.default_rng(0)
    tensors = {
        name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()
    }
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    return folder


class TestBadInput:
    """A clear message, exit code 1, nothing left behind."""

    @pytest.fixture
    def plain(self, tmp_path):
        return make_plain(tmp_path / "plain")

    def test_truncated_weights(self, plain, refused):
        path = plain / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-100])
        assert "is truncated" in refused("huggingface", plain)

    @pytest.mark.parametrize("header", [b"{}", b"{'a'}", b"\xff" * 9])
    def test_corrupt_header(self, plain, refused, header):
        (plain / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
        assert "model" in refused("huggingface", plain)

    def test_a_shard_that_is_not_there(self, plain, refused):
        names = safetensors.numpy.load_file(plain / "model.safetensors")
        (plain / "model.safetensors").rename(plain / "model-00001-of-00002.safetensors")
        weight_map = dict.fromkeys(names, "model-00001-of-00002.safetensors")
        weight_map["model.norm.weight"] = "model-00002-of-00002.safetensors"
        index = {"metadata": {}, "weight_map": weight_map}
        (plain / "model.safetensors.index.json").write_text(json.dumps(index))
        assert "1 absent of 2 shards: model-00002" in refused("huggingface", plain)

    def test_names_and_shapes_both_ways_with_a_count(self, tmp_path, refused):
        changes = {
            "model.layers.1.mlp.up_proj.weight": (12, 14),
            "model.layers.0.self_attn.k_proj.weight": (),
            "model.layers.2.mlp.up_proj.weight": (14, 12),
        }
        said = refused("huggingface", make_plain(tmp_path / "odd", **changes))
        head, *lines = said.strip().splitlines()
        assert "1 missing (-), 1 unexpected (+), 1 of another shape (!), of 20 expected" in head
        assert lines == [
            "  - model.layers.0.self_attn.k_proj.weight [6, 12]",
            "  ! model.layers.1.mlp.up_proj.weight expected [14, 12], found [12, 14]",
            "  + model.layers.2.mlp.up_proj.weight [14, 12]",
        ]

    def test_a_tensor_listed_twice(self, plain, refused):
        path = plain / "model.safetensors"
        content = path.read_bytes()
        size = struct.unpack("<Q", content[:8])[0]
        header = content[8 : 8 + size].rstrip()
        start = header.index(b'"model.norm.weight":')
        end = header.index(b"}", start) + 1
        header = header[:-1] + b"," + header[start:end] + b"}"
        path.write_bytes(struct.pack("<Q", len(header)) + header + content[8 + size :])
        assert "model.norm.weight" in refused("huggingface", plain)

    def test_an_adapter_for_another_base(self, made, to, plain, tmp_path, refused):
        adapter = to("peft", made[0].workdir, name="adapter")
        said = refused("huggingface", adapter, f"--base={plain}")
        assert "unexpected (+)" in said
        assert "of another shape (!)" in said

    @pytest.mark.torch
    def test_stage_one_without_routers(self, golden, tmp_path, refused, to):
        import torch

        folder = tmp_path / "mid-run"
        shutil.copytree(golden / "mka", folder)
        path = folder / "non_lora_trainables.bin"
        kept = torch.load(path, weights_only=True)
        kept = {name: tensor for name, tensor in kept.items() if ".switch." not in name}
        torch.save(kept, path)
        base = f"--base={golden / 'base'}"
        said = refused("checkpoint", folder, base)
        assert "has no router" in said
        to("huggingface", folder, base)  # the knowledge does not need them

    @pytest.mark.torch
    def test_a_pickle_is_not_run(self, golden, tmp_path, refused):
        folder = tmp_path / "evil"
        shutil.copytree(golden / "da", folder)
        mark = tmp_path / "ran"

        class Evil:
            def __reduce__(self):
                return (os.mkdir, (str(mark),))

        (folder / "non_lora_trainables.bin").write_bytes(pickle.dumps(Evil()))
        assert "not plain tensors" in refused("huggingface", folder, f"--base={golden / 'taia'}")
        assert not mark.exists()
        pickle.loads(pickle.dumps(Evil()))  # the control: it does run where nobody is careful
        assert mark.exists()

    @pytest.mark.parametrize("kind", ["huggingface", "peft", "reference"])
    def test_a_disk_that_fills_up(self, made, small_disk, convert, kind):
        """A real one: room for nothing, for the weights of a folded model alone, for all."""
        if kind == "reference":
            pytest.importorskip("torch")
        workdir, base = made
        weights = (base / "model.safetensors").stat().st_size
        line = [f"--to={kind}", f"--source={workdir.workdir}"]
        target, ballast = small_disk / "out", small_disk / "ballast"
        ends = []
        for free in (4096, weights + 4096, 7 * 2**20):
            ballast.write_bytes(b"x" * (shutil.disk_usage(small_disk).free - free))
            code, said = convert(*line, f"--target={target}")
            ends.append(code)
            assert "Traceback" not in said
            if code == 0:
                break
            assert str(small_disk) in said
            assert "Make room" in said or "make room" in said
            assert [path.name for path in small_disk.iterdir()] == ["ballast"]
            ballast.unlink()
        assert ends == [1] * (len(ends) - 1) + [0]
        assert len(ends) > 1

    def test_a_disk_that_is_too_small(self, plain, refused, monkeypatch):
        free = shutil.disk_usage(plain)._replace(free=1000)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
        assert "GiB free; make room or name a target on another disk" in refused(
            "huggingface", plain
        )

    def test_a_target_that_exists(self, plain, convert, tmp_path):
        (tmp_path / "there").mkdir()
        flag = (f"--source={plain}", f"--target={tmp_path / 'there'}")
        code, said = convert("--to=huggingface", *flag)
        assert code == 1
        assert "there exists; name another target" in said
        assert list((tmp_path / "there").iterdir()) == []

    @pytest.mark.parametrize(
        ("kind", "arguments", "message"),
        [
            ("peft", (), "huggingface or checkpoint, not peft"),
            ("huggingface", ("--keep=knowledge",), "it has no adapters"),
            ("huggingface", ("--from=peft",), "name their base with --base"),
            ("huggingface", ("--from=reference", "--base=nowhere"), "is not there"),
            ("huggingface", ("--base=anywhere",), "--base is of adapters"),
            ("huggingface", ("--stage=mka",), "--stage and --step are of runs"),
            ("huggingface", ("--step=3",), "--stage and --step are of runs"),
            ("checkpoint", ("--dtype=float16",), "--dtype is for --to=huggingface"),
            ("checkpoint", ("--shard_gib=1",), "--shard_gib means nothing without --to=hugg"),
            ("huggingface", ("--layout=mid-run",), "--layout means nothing without --to=ref"),
            ("huggingface", ("--as=knowledge",), "--as means nothing without --to=checkpoint"),
            ("huggingface", ("--resume_at=da",), "--resume_at means nothing without --to=che"),
        ],
    )
    def test_what_makes_no_sense(self, plain, refused, kind, arguments, message):
        assert message in refused(kind, plain, *arguments)

    def test_the_embedded_model_by_its_name(self, plain, to, monkeypatch):
        monkeypatch.setattr("medcare_jax.conversion.bases.find_embedded_model", lambda: plain)
        out = to("huggingface", "embedded")
        assert "SmolLM2-135M-Instruct" in (out / "README.md").read_text()
        assert digest(load_base(out)[1]) == digest(load_base(plain)[1])

    def test_a_run_names_its_own_base(self, made, refused):
        run, base = made
        assert "--base is of adapters" in refused("huggingface", run.workdir, f"--base={base}")

    def test_flags_that_do_not_go_together(self, convert):
        for arguments in ((), ("--verify=x", "--source=y"), ("--source=y", "--target=z")):
            code, said = convert(*arguments)
            assert code == 1
            assert "Give --source, --target and --to, or --verify" in said

    def test_verifying_converts_and_uploads_nothing(self, convert, tmp_path):
        code, said = convert(f"--verify={tmp_path}", "--push=me/new", "--dtype=float16")
        assert code == 1
        assert "--dtype, --push: without meaning beside --verify" in said


class TestVerify:
    """An export against its own report."""

    def test_a_changed_a_missing_and_a_new_file(self, tmp_path, to, convert):
        out = to("huggingface", make_plain(tmp_path / "plain"))
        assert convert(f"--verify={out}")[0] == 0
        content = (out / "model.safetensors").read_bytes()
        (out / "model.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        (out / "README.md").unlink()
        (out / "new.txt").write_text("x")
        code, said = convert(f"--verify={out}")
        assert code == 1
        assert said.strip().splitlines()[1:] == [
            "  - README.md",
            "  ! model.safetensors",
            "  + new.txt",
        ]

    def test_no_report(self, tmp_path, convert):
        code, said = convert(f"--verify={tmp_path}")
        assert code == 1
        assert "conversion_report.json is not there" in said


def test_the_same_source_gives_the_same_bytes_in_small_files(tmp_path, to):
    plain = make_plain(tmp_path / "plain")
    one, two = (
        to("huggingface", plain, "--dtype=bfloat16", "--shard_gib=1e-6", name=name) for name in "ab"
    )
    files = sorted(path.name for path in one.iterdir())
    assert len([name for name in files if name.endswith(".safetensors")]) > 2
    assert files == sorted(path.name for path in two.iterdir())
    for name in files:
        assert (one / name).read_bytes() == (two / name).read_bytes()


def test_a_name_that_cannot_be_pushed_to_is_refused_before_the_conversion(refused, tmp_path):
    plain = make_plain(tmp_path / "plain")
    said = refused("huggingface", plain, "--dtype=bfloat16", "--push=mine")
    assert "--push=mine: expected ORG/NAME or ORG/NAME@BRANCH" in said


def test_a_workdir_is_not_pushed(refused, tmp_path):
    plain = make_plain(tmp_path / "plain")
    assert "--push uploads an export" in refused("checkpoint", plain, "--push=me/new")


@pytest.mark.slow
def test_from_the_hub_to_the_hub_in_a_process_of_its_own(tmp_path):
    """As a user does, with `HF_ENDPOINT`; the second time without any connection."""
    plain = make_plain(tmp_path / "plain")
    command_line = [sys.executable, ROOT / "tools/convert.py", "--to=huggingface"]
    command_line += ["--source=org/plain@v1", "--dtype=bfloat16"]
    with serve() as hub:
        files = {path.name: path.read_bytes() for path in plain.iterdir()}
        hub.repositories["org/plain"] = {"v1": files}
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "XLA_FLAGS": "",
            "HF_ENDPOINT": hub.endpoint,
            "HF_HOME": str(tmp_path / "hub"),
            "HF_TOKEN": "hf_test",
        }
        for online, more in ((True, ["--target=a", "--push=me/new"]), (False, ["--target=b"])):
            done = subprocess.run(
                command_line + more,
                capture_output=True,
                text=True,
                cwd=tmp_path,
                env=environment | {"HF_HUB_OFFLINE": "0" if online else "1"},
            )
            assert done.returncode == 0, done.stderr
    assert "pushed to http://127.0.0.1" in done.stdout or not online
    (pushed,) = hub.pushed
    sent = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    assert (pushed.repository, pushed.files) == ("me/new", sent)
    assert sent == {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()}
    assert b"| base | org/plain@v1, sha256" in sent["README.md"]
