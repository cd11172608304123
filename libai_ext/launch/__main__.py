"""``python -m libai_ext.launch``, see :mod:`libai_ext.launch.launcher`."""

import sys

from libai_ext.launch.launcher import main

sys.exit(main())
