import pytest

from medcare_jax.benchmarks.job import Job
from medcare_jax.settings import AdapterSettings


@pytest.mark.parametrize("use_rslora", [False, True])
def test_the_scale_is_that_of_the_settings(use_rslora):
    sizes = {"rank": 9, "alpha": 18.0, "use_rslora": use_rslora}
    job = Job("any", {"adapters": sizes, "data": {"rows": 2, "row_length": 3}}, (), 0)
    assert job.scale == AdapterSettings(**sizes, experts=2).scale
    assert job.batch_shape == (2, 3)
