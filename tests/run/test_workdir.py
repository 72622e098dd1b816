"""A workdir has one holder."""

import pathlib
import subprocess
import sys

import pytest

from medcare_jax.run.workdir import WorkdirError, check_path, hold


def test_another_process_is_refused_and_named(tmp_path):
    script = f"""
import pathlib, sys
from medcare_jax.run.workdir import hold
with hold(pathlib.Path({str(tmp_path)!r})):
    print("held", flush=True)
    sys.stdin.read()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    with pytest.raises(WorkdirError, match=f"process {process.pid};"), hold(tmp_path):
        pass
    process.kill()  # the lock goes with its holder, however that ends
    process.wait()
    process.stdin.close()
    process.stdout.close()
    with hold(tmp_path):
        pass


@pytest.mark.parametrize("address", ["gs://bucket/run", "s3://bucket/run"])
def test_the_address_of_a_bucket_is_refused(address):
    with pytest.raises(WorkdirError, match="mount the bucket"):
        check_path(pathlib.Path(address))
    check_path(pathlib.Path("/mnt/bucket/run"))


def test_a_lock_that_is_a_link_is_refused_and_what_it_points_to_untouched(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("thesis")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/.lock").symlink_to(victim)
    with pytest.raises(WorkdirError, match="it is a link"), hold(tmp_path / "run"):
        pass
    assert victim.read_text() == "thesis"
