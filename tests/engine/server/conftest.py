"""Lets the tests of this folder import the fake engine beside them, and scripts that they start import it too."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
