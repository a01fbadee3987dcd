"""The stages as PTransforms over PCollections of RecordBatch; each is public and needs no YAML.

rows | FromRows(contract) | Conform(contract) | Validate(contract)      ->  .valid, .dead, .counts
"""

from beam_pipelines.transforms.aggregate import Aggregate, Aggregated
from beam_pipelines.transforms.conform import Conform, Conformed
from beam_pipelines.transforms.decode import Decode, Decoded
from beam_pipelines.transforms.deduplicate import Deduplicate, Deduplicated
from beam_pipelines.transforms.enrich import Enrich, Enriched
from beam_pipelines.transforms.mask import Mask
from beam_pipelines.transforms.redelivered import DropRedelivered
from beam_pipelines.transforms.rows import FromRows, ToRows
from beam_pipelines.transforms.transform import Transform, Transformed
from beam_pipelines.transforms.validate import Validate, Validated

__all__ = [
    "Aggregate", "Aggregated", "Conform", "Conformed", "Decode", "Decoded", "Deduplicate", "Deduplicated", "DropRedelivered", "Enrich", "Enriched",
    "FromRows", "Mask", "ToRows", "Transform", "Transformed", "Validate", "Validated",
]  # fmt: skip
