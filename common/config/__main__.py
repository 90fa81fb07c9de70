"""``python -m common.config``: print docs/configuration.md."""

import sys

from common.config.fields import render_markdown

sys.stdout.write(render_markdown())
