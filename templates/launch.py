"""The file that Dataflow's template launcher starts (FLEX_TEMPLATE_PYTHON_PY_FILE); what it does is in the package."""

import sys

from beam_pipelines.runners.dataflow.launch import main

if __name__ == "__main__":
    sys.exit(main())
