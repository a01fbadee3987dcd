"""Messages that are texts, as UTF-8 without a byte-order mark: what the readers of files do while they read."""

from __future__ import annotations

import codecs
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from beam_pipelines.arrow.program import KernelResult
from beam_pipelines.arrow.schema import RAW
from beam_pipelines.formats.encoding import MARK_BYTES, canonical, detect
from beam_pipelines.formats.placing import Failures, verdicts
from beam_pipelines.formats.reader import DECODE


@dataclass(frozen=True)
class AsUtf8:
    """Kernel: raw batch in any encoding -> the same in UTF-8. A byte-order mark wins over `encoding`; what is not of it is DECODE."""

    encoding: str = "utf-8"
    stage: str = "decode"
    sees_rejected: bool = True

    def __call__(self, batch: pa.RecordBatch) -> KernelResult:
        raw = batch.column(RAW)
        odd = self._odd(raw)
        if not len(odd):
            return batch, {}
        failures: Failures = {}
        texts: list[bytes] = []
        for row, content in zip(odd.tolist(), raw.take(pa.array(odd)).to_pylist(), strict=True):  # no kernel transcodes
            try:
                texts.append(self._utf8(content))
            except UnicodeError as error:
                failures[row] = (DECODE, f"not {error.encoding if isinstance(error, UnicodeDecodeError) else self.encoding}: {error}")
                texts.append(b"")
        where = np.arange(len(raw))
        where[odd] = len(raw) + np.arange(len(odd))
        whole = pa.concat_arrays([raw, pa.array(texts, pa.binary())]).take(pa.array(where))
        return batch.set_column(batch.schema.get_field_index(RAW), RAW, whole), verdicts(failures)

    def _odd(self, raw: pa.Array) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Rows that are not as they should be: all valid ones where messages are not UTF-8, else those with a mark."""
        odd = raw.is_valid() if canonical(self.encoding) != "utf-8" else pc.starts_with(raw, codecs.BOM_UTF8)
        found: np.ndarray[tuple[int], np.dtype[np.int64]] = np.flatnonzero(odd.fill_null(False).to_numpy(zero_copy_only=False))
        return found

    def _utf8(self, content: bytes) -> bytes:
        encoding, mark = detect(content[:MARK_BYTES], self.encoding)
        return content[mark:] if encoding == "utf-8" else content[mark:].decode(encoding).encode("utf-8")
