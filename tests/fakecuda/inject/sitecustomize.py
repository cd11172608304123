"""Python imports this in each process whose PYTHONPATH names its folder."""

import os

if "FAKECUDA_LIBRARY" in os.environ:
    import fake_device

    fake_device.install_before_oneflow()
