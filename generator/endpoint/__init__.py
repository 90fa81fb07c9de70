"""The OpenAI-compatible endpoint that agents ask the policy at. Docs: docs/agents.md.

chat_messages.py  messages and tools as requests bring them, in one form that can be compared
chat_form.py      a request's body and the reply's, streamed or not
tool_calls.py     calls of tools in the policy's text
streamed_text.py  a turn's text while it is sampled
conversation.py   one session: which tokens a request stands behind. Pure
chat_encoder.py   what a session says, as tokens of one model
session_keys.py   keys that hold for one rollout
server.py         the port
refusal.py        what a caller is told instead of an answer
"""
