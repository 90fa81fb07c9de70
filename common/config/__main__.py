"""``python -m vcppo.common.config``: print docs/configuration.md."""

import sys

from vcppo.common.config.fields import render_markdown

sys.stdout.write(render_markdown())
