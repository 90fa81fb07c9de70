"""``python -m vcppo.learner.buffer --config RUN/config.yaml --endpoint tcp://…``: the buffer process."""

import sys

from vcppo.learner.buffer.bridge import main

if __name__ == "__main__":
    sys.exit(main())
