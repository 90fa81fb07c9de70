"""What every process of ours needs: a watchdog, a guard of its memory, an end."""
