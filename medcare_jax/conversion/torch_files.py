"""Files of `torch.save` that hold plain tensors; nothing pickled in them is ever run.

The only use of torch outside the benchmarks, and imported only when such a file is met.
"""

import pathlib
import warnings
import zipfile
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from medcare_jax.conversion.tensors import ConversionError, LazyTensor, contiguous, from_array


def read_bin(path: pathlib.Path) -> dict[str, LazyTensor]:
    """The tensors of a `torch.save` file by name, read without executing anything in it.

    Only what torch itself writes since 1.6 is read: an archive that is not compressed, so nothing
    in it takes more memory than it takes on disk.

    Raises:
      FileNotFoundError: No such file.
      ConversionError: Truncated, or anything but a dict of plain tensors.
    """
    import torch

    if not path.exists():
        raise FileNotFoundError(f"{path} is not there; a reference checkpoint needs it")
    if not path.is_file():  # a pipe would be waited for without end
        raise ConversionError(f"{path} is not a file; fetch it again")
    size = path.stat().st_size
    try:
        _check_archive(path, size)
        with warnings.catch_warnings(action="ignore"):  # of what it then refuses
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever a broken pickle makes it stumble over
        raise ConversionError(
            f"{path} is truncated or is not plain tensors ({type(error).__name__}); refused. Ask "
            "for a safetensors file, or fetch it again from where you trust it"
        ) from None
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and _is_plain(value) for name, value in content.items()
    ):
        raise ConversionError(
            f"{path} does not hold a dict of tensors of plain numbers (floats of 16 to 64 bits, "
            "integers); refused"
        )
    # A stride of 0 makes a tensor of any size out of one number.
    nbytes = sum(tensor.nbytes for tensor in content.values())
    if nbytes > size:
        raise ConversionError(f"{path} has {size} bytes, its tensors would take {nbytes}; refused")
    return {name: from_array(_to_numpy(tensor)) for name, tensor in content.items()}


def write_bin(path: pathlib.Path, tensors: Mapping[str, LazyTensor]) -> None:
    """Writes a `torch.save` file: a plain dict of tensors by name."""
    import torch

    content = {
        name: torch.from_numpy(contiguous(tensor[...]).copy()) for name, tensor in tensors.items()
    }
    torch.save(content, path)


def _check_archive(path: pathlib.Path, size: int) -> None:
    """Raises unless a file is a zip archive whose members together are no larger than itself."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    is_stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
    if not is_stored or sum(member.file_size for member in members) > size:
        raise zipfile.BadZipFile("compressed members")


def _is_plain(value: Any) -> bool:
    """Whether a value is a dense tensor with numbers that a weight or a table can have."""
    import torch

    floats = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    integers = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
    return (
        isinstance(value, torch.Tensor)
        and value.dtype in floats + integers
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
    )


def _to_numpy(tensor: Any) -> np.ndarray:
    """A torch tensor's values; NumPy knows bfloat16 only through ml_dtypes."""
    import torch

    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:
        return np.asarray(tensor.view(torch.int16).numpy()).view(ml_dtypes.bfloat16)
    return np.asarray(tensor.numpy())
