import jax
import numpy as np
import pytest

from configs import tiny
from medcare_jax.benchmarks import jax_step
from medcare_jax.benchmarks.jax_step import make_batch, make_params
from medcare_jax.benchmarks.job import Job
from medcare_jax.benchmarks.weights import draw
from medcare_jax.models.decoder import Decoder
from medcare_jax.models.families import decoder_settings
from medcare_jax.params import flatten
from medcare_jax.settings import MeshSettings, make_settings
from medcare_jax.sharding import make_mesh
from medcare_jax.training.stages import MKA


def decoder_and_settings(dtype="bfloat16"):
    config = tiny.get_config()
    config.base.dtype = dtype
    settings = make_settings(config)
    model = decoder_settings(settings.base.random)
    return Decoder(model, settings.adapters, MKA.components, settings.compute), settings


def test_every_leaf_is_drawn_by_name_in_its_dtype():
    decoder, settings = decoder_and_settings()
    leaves = flatten(make_params(decoder, settings, make_mesh(MeshSettings(), jax.devices()[:1])))
    kernel = leaves["model/layers/mlp/up_proj/kernel"]
    assert kernel.dtype == jax.numpy.bfloat16
    expected = draw(0, "model/layers/mlp/up_proj/kernel", 2, kernel.shape[1:])
    np.testing.assert_array_equal(kernel[2], expected.astype(kernel.dtype))
    lora_a = leaves["model/layers/mlp/up_proj/noise/lora_a"]
    assert lora_a.dtype == np.float32
    assert (leaves["model/norm/scale"] == 1).all()
    assert {path for path, leaf in leaves.items() if not leaf.any()} == {
        path for path in leaves if path.endswith("lora_b")
    }


def test_the_step_runs_on_one_device_as_pytorchs_does(monkeypatch):
    """Its time is held against one device's peak, and against contenders that know one only."""

    def seen(settings, devices=None):
        raise RuntimeError(f"on {len(devices or jax.devices())} devices")

    monkeypatch.setattr(jax_step, "make_mesh", seen)
    with pytest.raises(RuntimeError, match="on 1 devices"):
        jax_step.build(Job("medcare_jax", tiny.get_config().to_dict(), (0.1,), 0))


def test_rows_are_whole_dialogues_of_targets():
    decoder, settings = decoder_and_settings()
    config = {"seed": 0, "data": {"rows": 3, "row_length": 10}}
    batch = make_batch(Job("medcare_jax", config, (), 0), decoder)
    assert batch.tokens.shape == (3, 10)
    assert batch.is_target.sum() == 3 * 9
    assert (batch.segments == 1).all()
    assert batch.positions[1].tolist() == list(range(10))
