"""Memory for batches, used again once nobody holds the batch: fresh memory costs more than filling it."""

from __future__ import annotations

import sys
import threading

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


class Buffers:
    """A few buffers; a tensor made from one, and every view of it, keeps it from being used again.

    Args:
        most: buffers kept; a caller that holds more tensors gets fresh memory.
    """

    def __init__(self, most: int = 4) -> None:
        self.most = most
        self._kept: list[npt.NDArray[np.float32]] = []
        self._lock = threading.Lock()  # batches are also made ahead, in threads
        self._unused = references([np.empty(0, np.float32)])[0]

    def empty(self, rows: int, columns: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """(rows, columns) of a floating-point dtype, uninitialised."""
        size = -(-rows * columns * dtype.itemsize // 4)  # in float32
        with self._lock:
            for i, count in enumerate(references(self._kept)):
                if count == self._unused and size <= len(self._kept[i]):
                    return _shaped(self._kept[i], rows, columns, dtype)
            fresh = np.empty(size + size // 4, np.float32)  # room for a batch that is a little longer
            self._kept = [*self._kept, fresh][-self.most :]
            return _shaped(fresh, rows, columns, dtype)


def _shaped(buffer: npt.NDArray[np.float32], rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(buffer).view(dtype)[: rows * columns].view(rows, columns)


def references(arrays: list[npt.NDArray[np.float32]]) -> list[int]:
    """Of each array: how many hold it, one more for each tensor's storage that lies in it."""
    return [sys.getrefcount(array) for array in arrays]
