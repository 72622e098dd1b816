"""What a person reads: every number of a plan, in its unit, and the verdict."""

import pytest

from medcare_jax.planning import screen

GIB = 2**30
PLAN = {
    "base": "base.random",
    "stage": "mka",
    "topology": "v5e:4x4",
    "slices": 2,
    "chips": 32,
    "mesh": {"data": 2, "fsdp": 16, "tensor": 1},
    "rows": 128,
    "rows_per_device": 4,
    "accumulation": 3,
    "row_length": 3072,
    "remat": "ffn",
    "versions": {"jax": "0.1", "libtpu": "0.2"},
    "fits": True,
    "hbm_limit": 16 * GIB,
    "hbm_peak": 13 * GIB,
    "hbm_free": 3 * GIB,
    "hbm": {"base": 2 * GIB, "batch": 3 * 2**20, "temporary": 11 * GIB},
    "flops": {"per_device": 2.5e14, "useful_share": 0.625},
    "compute_seconds": [1.5, 2.5],
    "network_seconds": [0.25, 0.75],
    "step_seconds": [4.0, 8.0],
    "tokens_per_second": [64000.0, 128000.0],
    "lora_mfu": [0.21, 0.43],
    "collectives": [{"kind": "all-gather", "axis": "fsdp", "bytes": 5 * GIB, "count": 99}],
    "assumptions": "some that are stated",
}


@pytest.mark.parametrize(
    "line",
    [
        "MKA on v5e:4x4 x 2 slices (32 chips)",
        "mesh     data 2 x fsdp 16 x tensor 1",
        "128 rows of 3072 tokens in 3 microbatch(es), 4 rows per device; remat ffn",
        "base          2.000 GiB",
        "batch         3.000 MiB",
        "peak         13.000 of 16.00 GiB: FITS, 3.00 GiB free",
        "250 TFLOP per device, 62% useful",
        "compute    1.5 to 2.5 s",
        "network    0.25 to 0.75 s",
        "step       4 to 8 s",
        "64,000 to 128,000 (2,000 to 4,000 per chip)",
        "LoRA-MFU   21% to 43%",
        "all-gather          fsdp            5.000 GiB in 99",
        "jax 0.1, libtpu 0.2. Estimates: some that are stated",
    ],
)
def test_every_number_stands_on_the_screen(line):
    assert line in screen.render(PLAN)


def test_days_take_the_place_of_the_hint():
    assert "--tokens" in screen.render(PLAN)
    text = screen.render(PLAN | {"days": [1.5, 3.0], "chip_hours": [1200, 2400], "tokens": 10**9})
    assert "1.50 to 3.00 days, 1,200 to 2,400 chip-hours for 1,000,000,000 tokens" in text
    assert "--tokens" not in text


def test_what_does_not_fit_has_a_verdict_and_remedies_and_no_speed():
    refused = {name: value for name, value in PLAN.items() if name not in ("step_seconds", "flops")}
    refused |= {"fits": False, "hbm_free": -2 * GIB, "largest_kind": "temporary"}
    refused |= {"remedies": ["the first", "the second"]}
    del refused["assumptions"]
    text = screen.render(refused)
    assert "DOES NOT FIT, 2.00 GiB over" in text
    assert "most of it is temporary" in text
    assert text.index("1. the first") < text.index("2. the second")
    assert "LoRA-MFU" not in text
    assert "the program was not compiled to its end" in text


def test_one_line_of_a_search():
    assert screen.summary(PLAN) == (
        "  mesh 2x16x1     rows/device 4 remat ffn       HBM  13.00 GiB  step 4.00-8.00 s"
        "  LoRA-MFU 21% to 43%"
    )
    assert screen.summary(PLAN | {"fits": False}).endswith("GiB  does not fit")
    assert screen.summary({"error": "no such slice\nand more"}) == "  refused: no such slice"
