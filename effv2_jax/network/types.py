"""Types that signatures share."""

from typing import Any

PyTree = Any  # nested dictionaries, tuples and dataclasses whose leaves are arrays, or their shapes
