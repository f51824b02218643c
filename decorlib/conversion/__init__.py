"""From a plain torch model to a decorrelated one and back.

``candidates`` says what can be converted, and why not; ``convert`` has :func:`decorrelate`, ``calibrate`` sets means so
that the function is kept, ``fusing`` has :func:`fuse`, ``sharding`` shards the rest of a model. This room imports rules
and layers.
"""

from decorlib.conversion.calibrate import calibrate
from decorlib.conversion.candidates import ConversionReport, conversion_report
from decorlib.conversion.convert import decorrelate
from decorlib.conversion.fusing import fuse
from decorlib.conversion.sharding import shard

__all__ = ["ConversionReport", "calibrate", "conversion_report", "decorrelate", "fuse", "shard"]
