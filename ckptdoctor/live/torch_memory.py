"""Memory of live tensors as a source of bytes: read where it lies, block by block."""

from __future__ import annotations

import bisect
from typing import TYPE_CHECKING, Any

from ..errors import ChangedError, ReadError, TruncatedError

if TYPE_CHECKING:
    import torch

__all__ = ["LiveMemory"]


class LiveMemory:
    """Buffers of a model's tensors one behind the other, as if they were a file.

    Only the requested bytes are copied, from whatever device they are on.  A model that is being
    trained meanwhile gives a mixture of old and new values, nothing worse.

    Parameters
    ----------
    name
        What messages call it.
    """

    sequential = False

    def __init__(self, name: str) -> None:
        self.name = name
        self.size = 0
        self._starts: list[int] = []
        self._buffers: list[torch.Tensor] = []
        self._known: dict[Any, int] = {}

    def place(self, storage: torch.UntypedStorage) -> int:
        """Offset of a buffer; one that is known already keeps its own."""
        import torch  # noqa: PLC0415

        key = storage._cdata
        start = self._known.get(key)
        if start is None:
            start = self._known[key] = self.size
            whole = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
            self._starts.append(start)
            self._buffers.append(whole)
            self.size += whole.numel()
        return start

    def pread(self, offset: int, length: int) -> bytes:
        buffer = bytearray(length)
        self.pread_into(offset, memoryview(buffer))
        return bytes(buffer)

    def pread_into(self, offset: int, buffer: memoryview) -> None:
        import torch  # noqa: PLC0415

        length = len(buffer)
        if offset < 0 or offset + length > self.size:
            message = f"expected {length} bytes, the model has {self.size}"
            raise TruncatedError(message, where=f"{self.name}+{offset}")
        if not length:
            return
        into = torch.frombuffer(buffer, dtype=torch.uint8)
        at = bisect.bisect_right(self._starts, offset) - 1
        done = 0
        while done < length:
            whole, start = self._buffers[at], offset + done - self._starts[at]
            step = min(length - done, whole.numel() - start)
            if step > 0:
                self._copy(into[done : done + step], whole, start)
                done += step
            at += 1

    def _copy(self, into: torch.Tensor, whole: torch.Tensor, start: int) -> None:
        stop = start + into.numel()
        if whole.untyped_storage().nbytes() < stop:
            hint = "run again when nothing moves the model"
            raise ChangedError("a tensor lost its memory meanwhile", where=self.name, hint=hint)
        try:
            into.copy_(whole[start:stop])
        except RuntimeError as error:
            reason = (str(error).splitlines() or ["no reason given"])[0]
            raise ReadError(f"cannot be read: {reason:.200}", where=self.name) from None
