"""The list of repairs, applied once per process by :func:`libai_ext.startup.start`."""

from __future__ import annotations

from libai_ext.compat import attention, gather, layer_norm, linear, nlp_helper, placements


def apply() -> None:
    """Apply every repair; each one does nothing when it is already in place."""
    for repair in (attention, gather, layer_norm, linear, nlp_helper, placements):
        repair.apply()
