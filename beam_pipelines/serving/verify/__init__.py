"""Verify: batch layer and speed layer of each output compared, and a cause for every row on which they do not agree. Loads no Beam.

layers.py     what is compared, and by which columns rows are matched      compare.py    finding the differences, in bounded memory
rows.py, windows.py   causes, each an SQL over its evidence                evidence.py   who answered when, dead letters, doors
messages.py   keys of archived messages                                    findings.py   the answer, as frozen values
"""

from beam_pipelines.serving.verify.findings import CAUSES, UNEXPLAINED, Compared, Difference, Part, Verification, agreements, verdict
from beam_pipelines.serving.verify.verifying import MEMORY, TOLERANCE, verify

__all__ = [
    "CAUSES",
    "MEMORY",
    "TOLERANCE",
    "UNEXPLAINED",
    "Compared",
    "Difference",
    "Part",
    "Verification",
    "agreements",
    "verdict",
    "verify",
]
