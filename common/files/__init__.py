"""Files that are whole or not there, JSON that may be anything, digests of what files hold."""
