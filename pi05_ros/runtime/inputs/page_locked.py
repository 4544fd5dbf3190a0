"""Page-locked memory, from which a GPU reads by itself: what is decoded there is not copied again.

Two images of 1280x720 are 5.5 MB, whose copy into such memory is part of each inference otherwise.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import torch

from pi05_ros.runtime.inputs.pixel_pool import pageable

logger = logging.getLogger(__name__)

MOST_BYTES = 2**26
"""More stays pageable (six images of 4K): what is locked is taken from every other process."""


def page_locked(size: int) -> np.ndarray:
    """Uninitialized uint8 ``[size]``, page-locked unless it is large or no more is to be had."""
    if size > MOST_BYTES:
        return pageable(size)
    try:
        return np.asarray(torch.empty(size, dtype=torch.uint8, pin_memory=True).numpy())
    except RuntimeError as error:
        logger.warning("images are decoded into pageable memory: %s", str(error).splitlines()[0])
        return pageable(size)


def pixel_memory() -> Callable[[int], np.ndarray]:
    """What makes the memory of decoded images: `page_locked` where this process uses a GPU."""
    initialized = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return page_locked if initialized else pageable
