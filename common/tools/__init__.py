"""Tools that a policy may call between its turns. Docs: docs/tools.md.

tool.py             what a tool is; its arguments are checked by its own JSON schema
call_formats.py     the calls in a turn's text, as models write them. Pure
toolbox.py          runs the calls of one turn, within limits
tool_options.py     what a user writes in the YAML
tool_task.py        the environment: questions of any task of one turn, and tools
calculator.py  python_tool.py  search_tool.py  mcp_tool.py  own_tool.py     the tools
products.py         the questions of `vcppo demo --task tools`
"""
