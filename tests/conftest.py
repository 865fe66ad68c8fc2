"""Settings for all tests."""

import os

from hypothesis import settings

# The gate must say the same of the same commit; everybody else's runs look for new examples.
settings.register_profile("gate", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("gate")
