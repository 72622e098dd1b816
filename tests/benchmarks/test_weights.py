import numpy as np

from medcare_jax.benchmarks.weights import draw, draw_tokens


def test_numbers_depend_on_seed_path_and_layer():
    first = draw(0, "model/layers/mlp/up_proj/kernel", 0, (20, 36))
    for other in (
        draw(1, "model/layers/mlp/up_proj/kernel", 0, (20, 36)),
        draw(0, "model/layers/mlp/gate_proj/kernel", 0, (20, 36)),
        draw(0, "model/layers/mlp/up_proj/kernel", 1, (20, 36)),
    ):
        assert abs(np.corrcoef(first.ravel(), other.ravel())[0, 1]) < 0.2


def test_sizes_are_those_that_training_begins_with():
    kernel = draw(0, "up_proj/kernel", 0, (200, 300))
    assert np.isclose(kernel.std(), 0.02, rtol=0.02)
    lora_a = draw(0, "up_proj/noise/lora_a", 0, (400, 50))
    assert 0.99 / 20 < np.abs(lora_a).max() <= 1 / 20
    assert not draw(0, "up_proj/noise/lora_b", 0, (50, 400)).any()
    assert (draw(0, "model/norm/scale", 0, (7,)) == 1).all()


def test_tokens_stay_below_the_vocabulary():
    tokens = draw_tokens(3, (50, 60), 11)
    assert (tokens.shape, tokens.dtype) == ((50, 60), np.int32)
    assert (tokens.min(), tokens.max()) == (0, 10)
