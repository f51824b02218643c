"""From a plain torch model to a decorrelated one and back.

``candidates`` says what can be converted, and why not; ``convert`` has :func:`decorrelate` and :func:`fuse`. This room
imports rules and layers.
"""

from decorlib.conversion.candidates import ConversionReport, conversion_report
from decorlib.conversion.convert import decorrelate, fuse

__all__ = ["ConversionReport", "conversion_report", "decorrelate", "fuse"]
