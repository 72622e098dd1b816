"""Times a conversion against a plain copy of the same bytes, and measures its peak memory.

    python tools/benchmark_conversion.py --folder=DIR [--layers=32] [--output=result.json]

Writes a folder of random bfloat16 weights in the shape of Qwen1.5-7B (15 GB; fewer layers make it
smaller), copies its files with a read/write loop, converts it with tools/convert.py, and removes
all that it wrote. Both end with fsync; before each, the system is asked to forget the source.
"""

import importlib.metadata
import json
import os
import pathlib
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time

from absl import flags

from medcare_jax.run.command import run

_FOLDER = flags.DEFINE_string("folder", None, "Where to work; needs twice the model's size.")
_LAYERS = flags.DEFINE_integer("layers", 32, "Layers of the model; each is 0.4 GB.")
_DTYPE = flags.DEFINE_string("dtype", None, "Of the converted weights; unset: bfloat16, as read.")
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the result; unset: printed only.")
flags.mark_flag_as_required("folder")

_COPY_BYTES = 16 * 2**20
_LIBRARIES = ("medcare-jax", "jax", "numpy", "transformers")


def main() -> None:
    """Runs the benchmark and prints its result."""
    pathlib.Path(_FOLDER.value).mkdir(parents=True, exist_ok=True)
    place = pathlib.Path(tempfile.mkdtemp(dir=_FOLDER.value))
    try:
        result = measure(place)
    finally:
        shutil.rmtree(place)
    text = json.dumps(result, indent=1, sort_keys=True)
    print(text)
    if _OUTPUT.value:
        pathlib.Path(_OUTPUT.value).write_text(text + "\n", encoding="utf-8")


def measure(place: pathlib.Path) -> dict[str, object]:
    """Writes, copies and converts; seconds, bytes and peak memory."""
    from medcare_jax.conversion.synthetic import write_model

    source = place / "source"
    nbytes = write_model(source, layers=_LAYERS.value)
    forget(source)
    copied = copy(source, place / "copy")
    shutil.rmtree(place / "copy")
    forget(source)
    converted = convert(source, place / "target")
    return {
        "gigabytes": round(nbytes / 1e9, 3),
        "layers": _LAYERS.value,
        "dtype": _DTYPE.value or "bfloat16",
        "copy_seconds": round(copied, 2),
        "convert_seconds": round(converted, 2),
        "ratio": round(converted / copied, 3),
        "peak_rss_gigabytes": round(
            resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9, 3
        ),
        "machine": f"{os.cpu_count()} x {platform.processor() or platform.machine()}",
        "load_average": [round(each, 2) for each in os.getloadavg()],
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in _LIBRARIES},
    }


def copy(source: pathlib.Path, target: pathlib.Path) -> float:
    """Seconds of a plain read/write loop over a folder's files, until they are on disk."""
    start = time.perf_counter()
    target.mkdir()
    for path in sorted(source.iterdir()):
        with path.open("rb") as reader, (target / path.name).open("wb") as writer:
            while block := reader.read(_COPY_BYTES):
                writer.write(block)
            writer.flush()
            os.fsync(writer.fileno())
    return time.perf_counter() - start


def convert(source: pathlib.Path, target: pathlib.Path) -> float:
    """Seconds of the command from its start to its end, report and comparison included."""
    tool = pathlib.Path(__file__).with_name("convert.py")
    line = [sys.executable, tool, f"--source={source}", f"--target={target}", "--to=huggingface"]
    line += [f"--dtype={_DTYPE.value}"] if _DTYPE.value else []
    start = time.perf_counter()
    subprocess.run(line, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def forget(folder: pathlib.Path) -> None:
    """Asks the system to drop a folder's files from its cache, so that they are read from disk."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    run(main)
