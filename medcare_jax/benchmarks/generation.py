"""Greedy generation beside `transformers`: the same float32 weights, prompts and number of tokens.

End tokens are ignored on both sides, so that every prompt gets exactly as many tokens. Weights are
random or real; the prompts are random ids of varied length, since what they say changes no time.
"""

import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Table

from medcare_jax.benchmarks.peaks import measured_peaks
from medcare_jax.conversion.huggingface import save_huggingface
from medcare_jax.generation.sampler import Sampler
from medcare_jax.models.flops import continuation_flops
from medcare_jax.run.opening import Opened

_SHORTEST, _LONGEST = 24, 160
_NEVER = -1

Generate = Callable[[list[list[int]], int, int], list[list[int]]]


def measure(
    opened: Opened,
    *,
    prompts: int = 64,
    new_tokens: int = 128,
    batches: Sequence[int] = (16, 32, 64),
    repeats: int = 2,
    seed: int = 0,
    report: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Tokens per second and per CPU-second of both, at every batch size.

    Args:
      opened: A float32 model.
      prompts: How many are continued.
      new_tokens: Tokens made for each.
      batches: Rows at once; each contender is judged by its best.
      repeats: Timed runs of each, after one that compiles; the fastest counts.
      seed: Of the prompts.
      report: Told each figure as it comes.

    Returns:
      JSON-able: the setting, `runs` (contender, batch, seconds, cpu_seconds, tokens_per_second,
      tokens_per_cpu_second), the `best` of each, `speedup` by wall and by CPU-seconds,
      `speedup_at_most` by CPU-seconds, which a program would have that does nothing but the
      arithmetic that cannot be spared (`flops`), as fast as the fastest library multiplies large
      matrices here (`matmul_peaks`, FLOP per CPU-second), and `identical`, the share of prompts
      whose tokens are the same on both sides.
    """
    random = np.random.default_rng(seed)
    lengths = random.integers(_SHORTEST, _LONGEST + 1, prompts)
    rows = [random.integers(0, opened.decoder.settings.vocab_size, n).tolist() for n in lengths]
    contenders = {"medcare_jax": _ours(opened), "transformers": _theirs(opened)}
    runs, outputs = [], {}
    # Contenders take turns at each size, so that both meet the same neighbours on the machine.
    for batch in batches:
        for name, generate in contenders.items():
            # Compiles what will be needed; PyTorch, which compiles nothing, is warm after a token.
            generate(rows, new_tokens if name == "medcare_jax" else 1, batch)
            run, outputs[name] = _fastest(generate, rows, new_tokens, batch, repeats)
            made = sum(map(len, outputs[name]))
            speeds = {
                "tokens_per_second": made / run["seconds"],
                "tokens_per_cpu_second": made / run["cpu_seconds"],
            }
            runs.append({"contender": name, "batch": batch, **run, **speeds})
            report(f"{name}, batch {batch}: " + _speed(runs[-1]))
    best = {name: _best(run for run in runs if run["contender"] == name) for name in contenders}
    ours, theirs = best["medcare_jax"], best["transformers"]
    same = [a == b for a, b in zip(*outputs.values(), strict=True)]
    flops = sum(continuation_flops(opened.decoder, int(n), new_tokens) for n in lengths)
    peaks = measured_peaks()
    at_most = max(peaks.values()) * prompts * new_tokens / flops
    return {
        "prompts": prompts,
        "prompt_tokens": int(lengths.sum()),
        "new_tokens": new_tokens,
        "runs": runs,
        "best": best,
        "speedup": {
            unit: ours[f"tokens_per_{unit}"] / theirs[f"tokens_per_{unit}"]
            for unit in ("second", "cpu_second")
        },
        "flops": flops,
        "matmul_peaks": peaks,
        "speedup_at_most": at_most / theirs["tokens_per_cpu_second"],
        "identical": sum(same) / len(same),
    }


def table(result: Mapping[str, Any]) -> Table:
    """The result for a screen."""
    columns = ("contender", "batch", "tok/s", "tok/CPU-s")
    shown = Table(*columns, title=f"Greedy generation of {result['new_tokens']} tokens")
    for run in result["runs"]:
        speeds = (run["tokens_per_second"], run["tokens_per_cpu_second"])
        shown.add_row(run["contender"], str(run["batch"]), *(f"{speed:.0f}" for speed in speeds))
    speedup = result["speedup"]
    shown.caption = (
        f"faster by {speedup['second']:.2f} x, by CPU-seconds {speedup['cpu_second']:.2f} x; "
        f"at the speed of a large matmul it would be {result['speedup_at_most']:.2f} x; "
        f"{result['identical']:.0%} of the prompts got the same tokens"
    )
    return shown


def _speed(run: dict[str, Any]) -> str:
    """A run in a few words."""
    return f"{run['tokens_per_second']:.0f} tok/s, {run['tokens_per_cpu_second']:.0f} tok per CPU-s"


def _fastest(
    generate: Generate, rows: list[list[int]], new: int, batch: int, repeats: int
) -> tuple[dict[str, float], list[list[int]]]:
    """The least wall time and the least CPU time of several runs, and what they made."""
    seconds, cpu_seconds = [], []
    for _ in range(repeats):
        start, cpu = time.perf_counter(), time.process_time()
        made = generate(rows, new, batch)
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - cpu)
    return {"seconds": min(seconds), "cpu_seconds": min(cpu_seconds)}, made


def _best(runs: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The run with the most tokens per second."""
    return max(runs, key=lambda run: run["tokens_per_second"])


def _ours(opened: Opened) -> Generate:
    """This project."""
    sampler = Sampler(opened.decoder, opened.params, end_ids=[_NEVER], pad_id=0)
    return lambda rows, new, batch: sampler.generate(rows, max_new_tokens=new, batch=batch)


def _theirs(opened: Opened) -> Generate:
    """`transformers` with the same weights, prompts of similar length together."""
    import torch
    import transformers

    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/model"
        save_huggingface(path, opened.decoder.settings, opened.params, dtype="float32")
        model = transformers.AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.float32, trust_remote_code=False
        )
    model.eval()
    model.generation_config.eos_token_id = None

    def generate(rows: list[list[int]], new: int, batch: int) -> list[list[int]]:
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        outputs: list[list[int]] = [[] for _ in rows]
        for start in range(0, len(rows), batch):
            chosen = order[start : start + batch]
            width = max(len(rows[i]) for i in chosen)
            ids = np.zeros((len(chosen), width), np.int64)
            mask = np.zeros_like(ids)
            for place, i in enumerate(chosen):
                ids[place, width - len(rows[i]) :] = rows[i]
                mask[place, width - len(rows[i]) :] = 1
            with torch.inference_mode():
                made = model.generate(
                    torch.tensor(ids),
                    attention_mask=torch.tensor(mask),
                    max_new_tokens=new,
                    do_sample=False,
                    pad_token_id=0,
                )
            for i, row in zip(chosen, made[:, width:].tolist(), strict=True):
                outputs[i] = row
        return outputs

    return generate
