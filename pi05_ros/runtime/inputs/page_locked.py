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


def page_locked(size: int) -> np.ndarray:
    """Uninitialized uint8 ``[size]``, page-locked unless the system has no more of that."""
    try:
        return np.asarray(torch.empty(size, dtype=torch.uint8, pin_memory=True).numpy())
    except RuntimeError as error:
        logger.warning("images are decoded into pageable memory: %s", str(error).splitlines()[0])
        return pageable(size)


def pixel_memory() -> Callable[[int], np.ndarray]:
    """What makes the memory of decoded images: `page_locked` where this process uses a GPU."""
    initialized = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return page_locked if initialized else pageable
