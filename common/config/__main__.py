"""``python -m common.config``: print docs/configuration.md."""

from common.config.fields import render_markdown

print(render_markdown(), end="")
