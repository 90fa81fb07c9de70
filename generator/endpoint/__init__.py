"""The OpenAI-compatible endpoint that agents ask the policy at. Docs: docs/agents.md.

messages.py       messages and tools as requests bring them, in one form that can be compared
chat_form.py      a request's body and the reply's, streamed or not
tool_calls.py     calls of tools in the policy's text
conversation.py   one session: which tokens a request stands behind. Pure
session_keys.py   keys that hold for one rollout
server.py         the port
"""
