"""LiBai compiles its text-data helper with ``make`` at each start; the wheel has no Makefile.

Symptom: ``default_setup`` ends the process with "Making C++ dataset helpers module failed".
Affected: LiBai 0.1.1 as installed by pip, which has built the helper already.
Retire when ``compile_helper`` looks for the built module first.
"""

from __future__ import annotations

import importlib.util

import libai.data.data_utils as data_utils


def compile_helper() -> None:
    """Do nothing if pip built the helper.

    Raises:
        ImportError: the helper is missing, so LiBai was not installed by pip.
    """
    if importlib.util.find_spec("libai.data.data_utils.helpers") is None:
        raise ImportError(
            "LiBai's compiled module libai.data.data_utils.helpers is missing: "
            "install LiBai again with pip (its build needs pybind11 and a C++ compiler)"
        )


def apply() -> None:
    data_utils.compile_helper = compile_helper
