"""Models by path: runs have their adapters folded in, and generate what live adapters would."""

import jax.numpy as jnp
import numpy as np
import pytest

from medcare_jax.conversion.tensors import ConversionError
from medcare_jax.models.aggregators import KNOWLEDGE_COMPONENTS
from medcare_jax.models.decoder import Decoder
from medcare_jax.models.folding import fold
from medcare_jax.params import BASE, KNOWLEDGE, digest, flatten, merge
from medcare_jax.run.opening import open_folded
from medcare_jax.settings import ComputeSettings
from tests.run.workdirs import make_workdir, write_base


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    place = tmp_path_factory.mktemp("run")
    return place / "base", make_workdir(place / "workdir", write_base(place / "base"))


def logits(decoder, params):
    ids = jnp.arange(1, 10, dtype=jnp.int32)[None]
    hidden = decoder.apply({"params": params}, ids, ids - 1, jnp.ones_like(ids))
    return decoder.apply({"params": params}, hidden, method="unembed")


def test_a_folder_is_its_base(made):
    base, run = made
    opened = open_folded(str(base))
    assert digest(opened.params) == digest(run.base.params)
    assert opened.tokenizer.chat_template


def test_mka_at_a_step_is_the_base_with_its_knowledge_and_without_noise(made):
    _, run = made
    opened = open_folded(str(run.workdir), stage="mka", step=2)
    compute = ComputeSettings(dtype="float32", adapter_dtype="float32", remat="none")
    live = Decoder(run.base.settings, run.settings.adapters, KNOWLEDGE_COMPONENTS, compute)
    params = merge({BASE: run.base.params, KNOWLEDGE: run.trees["mka", 2][KNOWLEDGE]})
    ours = logits(opened.decoder, opened.params)
    np.testing.assert_allclose(ours, logits(live, params), rtol=0, atol=2e-5)
    other = logits(opened.decoder, open_folded(str(run.workdir)).params)
    assert np.abs(ours - other).max() > 1e-3, "the latest stage is another model"


def test_folding_rounds_no_more_than_the_dtype_asked_for(made, tmp_path):
    base, _ = made
    run = make_workdir(tmp_path / "narrow", base, dtype="bfloat16")
    opened = flatten(open_folded(str(run.workdir), stage="mka", step=2, dtype="float32").params)
    params = merge({BASE: run.base.params, KNOWLEDGE: run.trees["mka", 2][KNOWLEDGE]})
    exact = flatten(fold(params, run.settings.adapters, dtype=jnp.float32))
    for path, leaf in opened.items():
        assert leaf.dtype == jnp.float32
        np.testing.assert_array_equal(leaf, exact[path].astype(jnp.float32), err_msg=path)


def test_what_is_no_whole_model_is_refused(made, tmp_path):
    base, _ = made
    with pytest.raises(ConversionError, match="--stage and --step are of runs"):
        open_folded(str(base), stage="mka")
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ConversionError, match="adapters only"):
        open_folded(str(tmp_path))
    with pytest.raises(FileNotFoundError):
        open_folded(str(tmp_path / "nowhere"))
