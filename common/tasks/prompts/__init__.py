"""What prompts of rows are made of: columns, chats, tools, templates, and filters of rows."""
