"""A plan as a person reads it."""

from typing import Any

_GIB = 2**30


def render(plan: dict[str, Any]) -> str:
    """One screen of text."""
    mesh = " x ".join(f"{name} {size}" for name, size in plan["mesh"].items())
    lines = [
        f"{plan['stage'].upper()} on {plan['topology']}"
        + (f" x {plan['slices']} slices" if plan["slices"] > 1 else "")
        + f" ({plan['chips']} chips)",
        f"  base     {plan['base']}",
        f"  mesh     {mesh}",
        f"  batch    {plan['rows']} rows of {plan['row_length']} tokens in {plan['accumulation']} "
        f"microbatch(es), {plan['rows_per_device']} rows per device; remat {plan['remat']}",
        "",
        *_memory(plan),
    ]
    if "step_seconds" in plan:
        lines += ["", *_speed(plan)]
    return "\n".join([*lines, "", _footer(plan)])


def summary(plan: dict[str, Any]) -> str:
    """One line, for a search."""
    if "error" in plan:
        return "  refused: " + plan["error"].splitlines()[0]
    mesh = "x".join(str(size) for size in plan["mesh"].values())
    line = (
        f"  mesh {mesh:10} rows/device {plan['rows_per_device']} remat {plan['remat']:9}"
        f" HBM {plan['hbm_peak'] / _GIB:6.2f} GiB"
    )
    if not plan["fits"]:
        return line + "  does not fit"
    low, high = plan["step_seconds"]
    return line + f"  step {low:.2f}-{high:.2f} s  LoRA-MFU {_percent(plan['lora_mfu'])}"


def _memory(plan: dict[str, Any]) -> list[str]:
    """HBM by kind, and the verdict."""
    rows = [f"  {kind:10} {_size(size)}" for kind, size in plan["hbm"].items() if size is not None]
    free, limit = plan["hbm_free"] / _GIB, plan["hbm_limit"] / _GIB
    verdict = (
        f"FITS, {free:.2f} GiB free" if plan["fits"] else f"DOES NOT FIT, {-free:.2f} GiB over"
    )
    rows.append(f"  {'peak':10} {plan['hbm_peak'] / _GIB:8.3f} of {limit:.2f} GiB: {verdict}")
    if not plan["fits"]:
        rows.append(f"  most of it is {plan['largest_kind']}; cheapest remedies first:")
        rows += [f"    {i}. {text}" for i, text in enumerate(plan["remedies"], start=1)]
    return ["HBM per device", *rows]


def _speed(plan: dict[str, Any]) -> list[str]:
    """Work, collectives, time."""
    flops, (low, high) = plan["flops"], plan["step_seconds"]
    slow, fast = plan["tokens_per_second"]
    rows = [
        "Step",
        f"  work       {flops['per_device'] / 1e12:.3g} TFLOP per device, "
        f"{flops['useful_share']:.0%} useful",
        f"  compute    {plan['compute_seconds'][0]:.3g} to {plan['compute_seconds'][1]:.3g} s",
        f"  network    {plan['network_seconds'][0]:.3g} to {plan['network_seconds'][1]:.3g} s",
        f"  step       {low:.3g} to {high:.3g} s",
        f"  tokens/s   {slow:,.0f} to {fast:,.0f} ({slow / plan['chips']:,.0f} to "
        f"{fast / plan['chips']:,.0f} per chip)",
        f"  LoRA-MFU   {_percent(plan['lora_mfu'])}",
        "Collectives per device and step",
    ]
    rows += [
        f"  {each['kind']:19} {each['axis']:12} {_size(each['bytes'])} in {each['count']}"
        for each in plan["collectives"]
    ]
    if "days" in plan:
        days, hours = plan["days"], plan["chip_hours"]
        rows += [
            "Run",
            f"  {days[0]:.2f} to {days[1]:.2f} days, {hours[0]:,.0f} to {hours[1]:,.0f} chip-hours "
            f"for {plan['tokens']:,} tokens",
        ]
    else:
        rows.append("Run: name the stage's tokens with --tokens to see days and chip-hours")
    return rows


def _size(size: int) -> str:
    """Bytes in the unit that shows them.

    >>> _size(3 * 2**20), _size(5 * 2**30)
    ('   3.000 MiB', '   5.000 GiB')
    """
    unit, name = (_GIB, "GiB") if size >= _GIB else (2**20, "MiB")
    return f"{size / unit:8.3f} {name}"


def _percent(shares: list[float]) -> str:
    """A range of shares."""
    return f"{shares[0]:.0%} to {shares[1]:.0%}"


def _footer(plan: dict[str, Any]) -> str:
    """Where the numbers are from."""
    versions = ", ".join(f"{name} {number}" for name, number in plan["versions"].items())
    return f"Compiled ahead of time with {versions}. Estimates: " + plan.get(
        "assumptions", "none, the program was not compiled to its end"
    )
