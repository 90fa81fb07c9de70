"""Child processes: started, followed, restarted, ended with their families."""
